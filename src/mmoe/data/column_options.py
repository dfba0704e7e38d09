"""What a configuration says about a column: its kind, and how it is encoded."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mmoe.checks.arguments import check_integers
from mmoe.data.columns import NUMBER_ENCODINGS, TARGET_ENCODINGS
from mmoe.errors import ArgumentError, unknown_key

KINDS = ("numeric", "categorical", "multi", "datetime")
LEVEL_KINDS = ("categorical", "multi")
KINDS_OF_OPTIONS = {  # the kinds of columns that have each option
    "size": LEVEL_KINDS, "min_count": LEVEL_KINDS, "buckets": LEVEL_KINDS, "separator": ("multi",),
    "max_values": ("multi",), "day_first": ("datetime",),
}  # fmt: skip
ENCODINGS = {
    **dict.fromkeys(LEVEL_KINDS, ("auto", "one_hot", "embedding", "hash", *TARGET_ENCODINGS)),
    **dict.fromkeys(("numeric", "datetime"), ("auto", *NUMBER_ENCODINGS)),
}


@dataclass(frozen=True)
class ColumnOptions:
    """The options of a column.

    Attributes:
        kind: `numeric`, `categorical`, `multi` (several levels in a row) or `datetime`.
        encoding: for levels: `one_hot` (one input for each), `embedding` (a learned vector for each), `hash`
            (a learned vector for each hash bucket), `target` (statistics of the training labels of each
            level), `one_hot_and_target` (both), or `auto`: one-hot for up to 256 levels. For numbers and
            dates: `standard` (z-scores), `min_max` (0 to 1), `unscaled` (the numbers as they are),
            `piecewise_linear` (quantile bins), `piecewise_linear_and_values` (also one input for each
            frequent number), or `auto`: as `inputs` in the configuration says.
        size: the size of the learned vectors; 0 chooses it by the number of levels.
        min_count: levels in fewer training rows are encoded as one level, `(rare)`.
        buckets: the number of hash buckets.
        separator: the text between two levels of a `multi` column; empty for lists.
        max_values: the number of levels of a row that are used, for a `multi` column.
        day_first: for dates: whether 1/2/2025 is the first of February. None: the training rows tell.

    Raises:
        ArgumentError: a value is out of range, or does not fit the kind.
    """

    kind: str
    encoding: str = "auto"
    size: int = 0
    min_count: int = 1
    buckets: int = 100_000
    separator: str = ""
    max_values: int = 32
    day_first: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(f"kind={self.kind}: must be one of {', '.join(KINDS)}")
        if self.encoding not in ENCODINGS[self.kind]:
            rule = f"must be one of {', '.join(ENCODINGS[self.kind])} for a {self.kind} column"
            raise ArgumentError(f"encoding={self.encoding}: {rule}")
        check_integers(0, size=self.size)
        check_integers(1, min_count=self.min_count, buckets=self.buckets, max_values=self.max_values)
        if not isinstance(self.day_first, bool | None):
            raise ArgumentError(f"day_first={self.day_first}: must be true or false")
        if not isinstance(self.separator, str):
            raise ArgumentError(f"separator={self.separator!r}: must be text")
        for key, kinds in KINDS_OF_OPTIONS.items():
            value = getattr(self, key)
            if self.kind not in kinds and value != self.__dataclass_fields__[key].default:
                raise ArgumentError(f"{key}={value}: a {self.kind} column does not have it")
        if self.encoding in ("one_hot", *TARGET_ENCODINGS) and self.size:
            raise ArgumentError(f"size={self.size}: must be left out with encoding={self.encoding}")


def column_options(name: str, given: Any) -> ColumnOptions:
    """The options that a configuration gives for a column: a kind, or a mapping with `kind` and options.

    Raises:
        ArgumentError: names the column, and the key or value that breaks a rule.
    """
    if isinstance(given, ColumnOptions):
        return given
    values = {"kind": given} if isinstance(given, str) else given
    if not isinstance(values, Mapping):
        rule = f"must be one of {', '.join(KINDS)}, or a mapping with kind and options"
        raise ArgumentError(f"columns.{name}={given}: {rule}")
    known = [one.name for one in fields(ColumnOptions)]
    for key in values:
        if key not in known:
            raise ArgumentError(f"columns.{name}.{key}: {unknown_key(str(key), known)}")
    if "kind" not in values:
        raise ArgumentError(f"columns.{name}.kind: must be given")
    try:
        return ColumnOptions(**values)
    except ArgumentError as error:
        raise ArgumentError(f"columns.{name}.{error}") from None


def to_plain(columns: Mapping[str, ColumnOptions]) -> dict[str, Any]:
    """The options as plain values, for the key of the cache."""
    return {name: asdict(options) for name, options in columns.items()}
