"""Score raw rows with the ONNX file that `mmoe.export` writes.

This file needs Python 3.11, numpy and onnxruntime, but no other file of mmoe. Copy it into your program:

    scorer = OnnxScorer("network.onnx")
    scores = scorer.predict([{"age": 41, "city": "Bonn"}, {"age": None, "city": "Cork"}])

N rows, P level slots of a row, K positions of one column, M numeric columns, L predictions, E experts.
"""

import datetime
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

ROWS_PER_PASS = 8192
WHOLE_NUMBER = re.compile(r"(-?[0-9]+)(\.0*)?")
BOOLEAN_SPELLINGS = (("False", "True"), ("false", "true"), ("FALSE", "TRUE"), ("0", "1"))
TRUTH = {name: bool(truth) for spelling in BOOLEAN_SPELLINGS for truth, name in enumerate(spelling)}
MAX_FLOAT32 = float(np.finfo(np.float32).max)
EPOCH, SECOND = datetime.datetime(1970, 1, 1), datetime.timedelta(seconds=1)
NUMERIC_DATE = re.compile(r"(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})([T ].*)?")
UNITS = ("s", "ms", "us", "ns")  # of Unix times
MAX_SECONDS = 1e11  # the largest Unix time, in the year 5138

Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class OnnxScorer:
    """Encode raw rows with the schema in an exported file, and run its network.

    Rows are a list of mappings, or a mapping from column names to lists or arrays. They need the input
    columns of the run, and may have others. A missing value is None or NaN. Columns may hold what
    `Run.predict` takes, but dates in text must be written as 2024-01-31 or 31/1/2024, perhaps with a time.

    Attributes:
        schema: the run's schema.json.
        columns: the names of the input columns.

    Raises:
        ValueError: the file has no schema. In `encode` and `predict`: a column is missing, or a value is
            invalid.
    """

    def __init__(self, path: Path | str, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=list(providers))
        metadata = self.session.get_modelmeta().custom_metadata_map
        if "schema" not in metadata:
            raise ValueError(f"{path}: must be a file that mmoe.export wrote; it has no schema")
        self.schema: dict[str, Any] = json.loads(metadata["schema"])
        self._numeric = self.schema["numeric"]
        self._categorical = [_LevelColumn(column) for column in self.schema["categorical"]]
        used = [column.name for column in self._categorical] + [column["name"] for column in self._numeric]
        self.columns = list(dict.fromkeys(used))

    def encode(self, rows: Rows) -> dict[str, np.ndarray]:
        """The inputs of the network: `levels` [N, P], int64, and `numbers` [N, M], float32."""
        raw = {name: _column(rows, name) for name in self.columns}
        count = len(next(iter(raw.values()))) if raw else len(rows)
        for name, values in raw.items():
            if len(values) != count:
                what = f"{self.columns[0]} has {count} values, {name} has {len(values)}"
                raise ValueError(f"columns must have the same length; {what}")
        with_dates = {column["name"]: column for column in self._numeric if column["is_datetime"]}
        dates = {
            name: _dates(raw[name], name, column["unit"], column["day_first"])
            for name, column in with_dates.items()
        }
        offsets = [*accumulate((column.num_codes for column in self._categorical), initial=0)]
        levels = [np.empty((count, 0), np.int64)]
        for column, offset in zip(self._categorical, offsets, strict=False):
            values = _date_part(dates[column.name], column.part) if column.part else raw[column.name]
            codes = column.encode(values)  # [N, K]
            levels.append(np.where(codes < 0, offsets[-1], codes + offset))
        numbers = np.empty((count, len(self._numeric)), np.float32)
        for i, number in enumerate(self._numeric):
            name = number["name"]
            found = _days(dates[name]) if number["is_datetime"] else _numbers(raw[name], name)
            numbers[:, i] = found.astype(np.float64) - number["origin"] if number["origin"] else found
        return {"levels": np.concatenate(levels, axis=1), "numbers": numbers}

    def predict(self, rows: Rows, gates: bool = False) -> dict[str, np.ndarray]:
        """The predictions of the tasks, as columns [N] with the names that `Run.predict` gives them.

        `gates` adds the gate weights, as `{task}_gate_{expert}`.
        """
        inputs = self.encode(rows)
        starts = range(0, len(inputs["levels"]), ROWS_PER_PASS)
        if not starts:
            raise ValueError("there are no rows to score")
        blocks = [{name: x[start : start + ROWS_PER_PASS] for name, x in inputs.items()} for start in starts]
        outputs = [self.session.run(["predictions", "gates"], block) for block in blocks]
        predictions, weights = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
        columns: dict[str, np.ndarray] = {}
        first = 0
        for task in self.schema["tasks"]:
            name, kind, classes = task["name"], task["kind"], task.get("classes", ())
            own = predictions[:, first : first + max(1, len(classes))]  # [N, L of this task]
            first += own.shape[1]
            if kind == "multiclass":
                columns[f"{name}_class"] = np.array(classes, object)[own.argmax(1)]
                columns |= {f"{name}_probability_{label}": own[:, i] for i, label in enumerate(classes)}
            else:
                columns[f"{name}_{'probability' if kind == 'binary' else 'prediction'}"] = own[:, 0]
        if gates:
            for i, task in enumerate(self.schema["tasks"]):
                columns |= {f"{task['name']}_gate_{e}": weights[:, i, e] for e in range(weights.shape[2])}
        return columns


class _LevelColumn:
    """A categorical column of the schema. Its codes count from 0; -1 is a level without a code."""

    def __init__(self, column: Mapping[str, Any]) -> None:
        self.name: str = column["source"] or column["name"]
        self.part, self.levels, self.buckets = column["part"], column["levels"], column["buckets"]
        self.is_multi, self.separator = column["is_multi"], column["separator"]
        self.max_values: int = column["max_values"]
        self.code_of = {level: code for code, level in enumerate(self.levels)}
        size = self.buckets or len(self.levels)
        self.num_codes: int = size + column["has_missing"] + column["has_rare"]
        self.missing = size if column["has_missing"] or column["has_rare"] else -1
        self.rare = self.num_codes - 1 if column["has_rare"] else -1

    def encode(self, values: list[Any]) -> np.ndarray:
        """The codes [N, K] of raw values."""
        if self.is_multi:
            rows = [self._split(value) for value in values]
        else:
            rows = [[_level(value, self.name)] for value in values]
        code_of = self._codes({level: None for row in rows for level in row if level is not None})
        found = np.full((len(rows), self.max_values), -1, np.int64)
        for i, row in enumerate(rows):
            # A known level counts once in a row, and the first `max_values` of a row are kept.
            codes = dict.fromkeys(code_of[level] for level in row if code_of[level] >= 0)
            found[i, : len(codes)] = [*codes][: self.max_values]
        return found

    def _codes(self, levels: Mapping[str, Any]) -> dict[str | None, int]:
        """The code of each level, and of None, which is a missing level."""
        codes: dict[str | None, int] = {None: self.missing}
        if self.buckets:
            return codes | {level: zlib.crc32(level.encode()) % self.buckets for level in levels}
        booleans = _boolean_spelling(self.levels)
        for level in levels:
            other = booleans[TRUTH[level]] if booleans and level in TRUTH else _other_number_spelling(level)
            codes[level] = self.code_of.get(level, self.code_of.get(other, self.rare))
        return codes

    def _split(self, value: Any) -> list[str | None]:
        """The levels of a row of a multi-valued column; a missing row has the level None."""
        if isinstance(value, list | tuple | set | frozenset | np.ndarray):
            levels = [_level(_plain(one), self.name) for one in value]
            return [level for level in levels if level]
        text = _level(value, self.name)
        if text and not self.separator:
            raise ValueError(f"column {self.name}: must hold lists of levels, holds {text[:40]!r}")
        pieces = [piece.strip() for piece in text.split(self.separator)] if text else [None]
        return [piece for piece in pieces if piece != ""]


def _column(rows: Rows, name: str) -> list[Any]:
    """The values of a column as plain Python objects, None where missing."""
    if isinstance(rows, list | tuple):
        for i, row in enumerate(rows):
            if name not in row:
                raise ValueError(f"row {i}: column {name} is missing; the columns are {', '.join(row)}")
        return [_plain(row[name]) for row in rows]
    if name not in rows:
        raise ValueError(f"column {name} is missing; the columns are {', '.join(map(str, rows))}")
    values = rows[name]  # type: ignore[call-overload]
    if not isinstance(values, list | tuple):
        values = np.asarray(values)
        if values.ndim != 1:
            raise ValueError(f"column {name}: must be a list or an array [N], has the shape {values.shape}")
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    """The Python object of a value of numpy, and None for a missing value."""
    if isinstance(value, np.ndarray | list | tuple):
        return value
    if isinstance(value, np.generic):
        value = (value.astype("datetime64[us]") if isinstance(value, np.datetime64) else value).item()
    try:
        return None if value != value else value
    except TypeError:  # pandas.NA
        return None


def _level(value: Any, column: str) -> str | None:
    """The name of a level; None if it is missing or blank. The whole number 4.0 is the level "4"."""
    if value is None:
        return None
    if isinstance(value, str | bytes):
        return (value.decode() if isinstance(value, bytes) else value).strip() or None
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))
    if isinstance(value, Decimal):
        return str(value.normalize())
    if isinstance(value, int | float | datetime.date | datetime.time):
        return str(value)
    raise ValueError(f"column {column}: must hold text, holds {value!r}")


def _other_number_spelling(level: str) -> str:
    """Spell the whole number 4 as 4.0, and 4.0 as 4. Any other level stays as it is."""
    match = WHOLE_NUMBER.fullmatch(level)
    return level if not match else match[1] if match[2] else f"{level}.0"


def _boolean_spelling(levels: Sequence[str]) -> tuple[str, str] | None:
    """How a vocabulary spells false and true; None if its levels are not booleans."""
    return next((pair for pair in BOOLEAN_SPELLINGS if levels and set(levels) <= set(pair)), None)


def _numbers(values: list[Any], name: str) -> np.ndarray:
    """The numbers of a column [N], NaN where missing. Text may hold numbers."""
    found = np.array([_number(value, f"column {name}, row {i}") for i, value in enumerate(values)])
    wrong = np.abs(found) > MAX_FLOAT32
    if wrong.any():
        row = int(wrong.argmax())
        rule = "must be a finite number in the range of float32"
        raise ValueError(f"column {name}, row {row}: {rule}, is {values[row]}")
    return found


def _number(value: Any, where: str) -> float:
    if type(value) is int and abs(value) < 2**63:
        return value  # numpy rounds int64 to float32 once, and not by way of float64
    text = value.strip() if isinstance(value, str) else ""
    if value is None or (isinstance(value, str) and not text):
        return math.nan
    if text.lower() in ("false", "true"):
        return float(text.lower() == "true")
    try:
        if text.isascii() and "_" not in text:  # float() allows more than the training does
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{where}: must be a number, is {str(value)[:40]!r}")


def _dates(values: list[Any], name: str, unit: str, day_first: bool) -> np.ndarray:
    """The dates of a column in UTC, datetime64[s] [N], NaT where missing.

    Numbers are Unix times of this unit, also in text; without a unit, numbers are not dates.
    """
    if not unit or not all(map(_is_unix_time, values)):
        seconds = [_seconds(value, f"column {name}, row {i}", day_first) for i, value in enumerate(values)]
        return np.array(seconds, "datetime64[s]")
    unix = _numbers(values, name).astype(np.float64) / 1000.0 ** UNITS.index(unit)
    wrong = np.abs(unix) > MAX_SECONDS
    if wrong.any():
        row = int(wrong.argmax())
        rule = f"must be a date, or a Unix time in {unit} as in the training rows"
        raise ValueError(f"column {name}, row {row}: {rule}, is {str(values[row])[:40]!r}")
    whole = np.floor(np.round(unix, 9))  # dates are rounded to nanoseconds, as pandas does
    return np.where(np.isnan(whole), np.datetime64("NaT"), np.nan_to_num(whole).astype("datetime64[s]"))


def _is_unix_time(value: Any) -> bool:
    """Whether a value is missing, a finite number, or text that holds one. Blank text counts as missing."""
    try:
        return value is None or (not isinstance(value, bool) and not math.isinf(_number(value, "")))
    except ValueError:
        return False


def _seconds(value: Any, where: str, day_first: bool) -> int | None:
    """The seconds since 1970 of a date; None if it is missing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        date = datetime.datetime.fromisoformat(_iso(value, day_first)) if isinstance(value, str) else value
    except ValueError:
        date = None
    if isinstance(date, datetime.datetime):
        offset = date.utcoffset() or datetime.timedelta()
        return int((date.replace(tzinfo=None) - EPOCH - offset) // SECOND)
    if isinstance(date, datetime.date):
        return (date - EPOCH.date()).days * 86400
    rule = "must be a date: text such as 2024-01-31T12:00:00 or 31/12/2024, or a date object"
    raise ValueError(f"{where}: {rule}; is {str(value)[:40]!r}")


def _iso(text: str, day_first: bool) -> str:
    """A date such as 31/12/2024 12:00 in ISO format; any other text as it is, without outer blanks.

    If the date is impossible in the given order of day and month, the other order is used.
    """
    match = NUMERIC_DATE.fullmatch(text.strip())
    if not match:
        return text.strip()
    first, second, year, time = match.groups()
    is_day_first = int(first) > 12 if day_first is False else int(second) <= 12
    day, month = (first, second) if is_day_first else (second, first)
    return f"{year}-{month:0>2}-{day:0>2}{time or ''}"


def _days(dates: np.ndarray) -> np.ndarray:
    """Days since 1970 [N], NaN where the date is missing."""
    return np.where(np.isnat(dates), np.nan, dates.astype(np.int64) / 86400.0)


def _date_part(dates: np.ndarray, part: str) -> list[int | None]:
    """The year, the month (1 to 12), the weekday (0 is Monday) or the hour of dates; None where missing."""
    if part == "year":
        found = dates.astype("datetime64[Y]").astype(np.int64) + 1970
    elif part == "month":
        found = dates.astype("datetime64[M]").astype(np.int64) % 12 + 1
    elif part == "weekday":
        found = (dates.astype(np.int64) // 86400 + 3) % 7  # 1970 began on a Thursday
    else:
        found = dates.astype(np.int64) // 3600 % 24
    return [None if gap else n for n, gap in zip(found.tolist(), np.isnat(dates), strict=True)]
