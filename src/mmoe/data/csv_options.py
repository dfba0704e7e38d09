"""How delimited text is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mmoe.errors import UserError, unknown_key

THOUSANDS = ("", ",", ".", "'", " ", "_")


@dataclass(frozen=True)
class CsvOptions:
    """How delimited text is written.

    Quotes are as usual: "a ""b"", c" is one field. A quoted field may hold line ends.

    Args:
        delimiter: one character; null: a tab in .tsv files, else the comma, tab, semicolon or bar that splits
            the first lines into equally many fields.
        header: whether the first line holds the column names.
        encoding: of files without a byte order mark; null: UTF-8, or Windows-1252 if the start of the file is
            not valid UTF-8.
        decimal: the decimal point, "." or ",".
        thousands: the separator of groups of three digits, or null.
        missing: spellings of a missing value. Blanks around a field do not count.
        names: the column names of files without a header; null: those of the header, or column_1, column_2,
            ...
        ragged: whether the last column takes the rest of a line, with all its delimiters. There are no quotes
            then.
    """

    delimiter: str | None = None
    header: bool = True
    encoding: str | None = None
    decimal: str = "."
    thousands: str | None = None
    missing: Sequence[str] = ("", "?", "NA")
    names: Sequence[str] | None = None
    ragged: bool = False

    @classmethod
    def parse(cls, values: Mapping[str, Any] | None) -> "CsvOptions":
        """Make options from the mapping `csv` of a YAML file.

        Raises:
            UserError: a key does not exist, or a value breaks its rule.
        """
        known = [field.name for field in fields(cls)]
        for key in values or {}:
            if key not in known:
                raise UserError(f"csv.{key}: {unknown_key(str(key), known)}")
        options = dict(values or {})
        for key in ("missing", "names"):
            if options.get(key) is not None:
                is_list = isinstance(options[key], Sequence) and not isinstance(options[key], str)
                if not is_list:
                    raise UserError(f"csv.{key}={options[key]}: must be a list")
                options[key] = tuple(map(str, options[key]))  # YAML reads -1 as a number
        if "missing" in options:
            options["missing"] = options["missing"] or ()
        parsed = cls(**options)
        if parsed.names and parsed.header:
            raise UserError(f"csv.names={parsed.names}: must be null where csv.header is true")
        return parsed

    @property
    def has_plain_numbers(self) -> bool:
        """Whether numbers are written with a decimal point and without a thousands separator."""
        return self.decimal == "." and not self.thousands

    def __post_init__(self) -> None:
        def check(is_valid: bool, key: str, rule: str) -> None:
            if not is_valid:
                raise UserError(f"csv.{key}={getattr(self, key)!r}: must be {rule}")

        delimiter = self.delimiter
        is_character = (
            isinstance(delimiter, str) and len(delimiter.encode()) == 1 and delimiter not in '"\r\n'
        )
        check(
            delimiter is None or is_character, "delimiter", "one ASCII character, not a quote or a line end"
        )
        check(isinstance(self.header, bool), "header", "true or false")
        check(isinstance(self.ragged, bool), "ragged", "true or false")
        check(self.encoding is None or _is_encoding(self.encoding), "encoding", "an encoding such as latin-1")
        check(self.decimal in (".", ","), "decimal", "a point or a comma")
        others = [character for character in THOUSANDS if character != self.decimal]
        other = {".": ",", ",": "."}[self.decimal]
        hint = f"; {self.decimal!r} needs \"csv.decimal='{other}'\"" if self.thousands == self.decimal else ""
        check((self.thousands or "") in others, "thousands", f"null or one of {others[1:]}{hint}")
        check_names(self.names or (), "csv.names")


def check_names(names: Sequence[str], where: str) -> None:
    """Raise UserError if two columns have the same name."""
    if len(set(names)) < len(names):
        duplicate = next(name for i, name in enumerate(names) if name in names[:i])
        raise UserError(f"{where}: two columns are named {duplicate!r}; names must differ")


def _is_encoding(name: str) -> bool:
    try:
        "".encode(name)  # fails for a codec that does not encode text, such as hex
    except (LookupError, TypeError, ValueError):
        return False
    return True
