"""Every way to write a file gives the same values, or a one-line error."""

import codecs
import csv
import decimal
import gzip
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import sample_lines

from mmoe.data.census import CensusData
from mmoe.data.census_files import COLUMNS, NUMERIC
from mmoe.data.columns import Categorical, Numeric
from mmoe.data.csv_file import BLOCK_BYTES
from mmoe.data.csv_options import CsvOptions
from mmoe.data.data_files import find_files
from mmoe.data.encode import decode
from mmoe.data.raw_rows import RawRows, RowFormat, read_rows
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.predict import encode_rows
from mmoe.raw.numbers import numbers_of

LINES = sample_lines("census-income.test")[:40]
FIELDS = [[field.strip() for field in line.split(",")] for line in LINES]
FRAME = pd.DataFrame(FIELDS, columns=COLUMNS).astype(dict.fromkeys(NUMERIC, float))
INPUTS = [name for name in COLUMNS if name not in ("income", "education", "instance_weight")]

PLAIN_ROWS = RowFormat(lambda _: CsvOptions(missing=("",)), may_be_missing=False)


def schema_of(frame: pd.DataFrame, inputs: list[str]) -> Schema:
    text = [name for name in inputs if not pd.api.types.is_numeric_dtype(frame[name])]
    return Schema(
        tuple(Categorical(name, tuple(sorted(set(frame[name])))) for name in text),
        tuple(Numeric(name, 0.0, 1.0, (0.0, 1.0)) for name in inputs if name not in text),
        (),
    )


SCHEMA = schema_of(FRAME, INPUTS)


def chunks(
    path: str | Path, schema: Schema = SCHEMA, rows: int = 4096, format: RowFormat | None = None
) -> Generator[RawRows]:
    """The raw rows of a file for a run on census files, or on rows of another `format`."""
    format = format or CensusData.row_format({}, schema)
    return read_rows(find_files(path), format, schema, (), rows)


def read(path: str | Path, schema: Schema = SCHEMA, format: RowFormat | None = None) -> pd.DataFrame:
    """The inputs of a file, encoded and decoded."""
    names = [column.name for column in (*schema.categorical, *schema.numeric)]
    encoded = encode_rows(chunks(path, schema, format=format), schema, Counter(), may_be_missing=False)
    frames = [decode(chunk.rows, schema) for chunk in encoded]
    return pd.concat(frames, ignore_index=True)[names].astype(object)


EXPECTED = FRAME[[column.name for column in (*SCHEMA.categorical, *SCHEMA.numeric)]].astype(object)


def assert_same(path: str | Path) -> None:
    pd.testing.assert_frame_equal(read(path), EXPECTED, check_exact=True)


def error_of(path: str | Path, schema: Schema = SCHEMA) -> str:
    with pytest.raises(UserError) as error:
        read(path, schema)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def table(frame: pd.DataFrame = FRAME, **options: object) -> bytes:
    return frame.to_csv(**{"index": False, **options}).encode()  # type: ignore[call-overload]


def official(lines: list[str] = LINES, separator: str = ",") -> bytes:
    return "".join(line.replace(", ", separator) + "\n" for line in lines).encode("latin-1")


def counted(start: int, label: bool = True) -> bytes:
    lines = LINES if label else [line.rpartition(",")[0] for line in LINES]
    return official([f"{i},{line}" for i, line in enumerate(lines, start)])


def quoted(frame: pd.DataFrame = FRAME, **options: object) -> bytes:
    return table(frame, quoting=csv.QUOTE_ALL, **options)


NAMES = {name: f" {name.upper()} " for name in COLUMNS}

TEXTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "official": ("a.csv", official),
    "official without the label": ("a.data", lambda: official([n.rpartition(",")[0] for n in LINES])),
    "gzip": ("a.csv.gz", lambda: gzip.compress(official())),
    "gzip in capitals": ("A.TSV.GZ", lambda: gzip.compress(table(sep="\t"))),
    "gzip without its ending": ("a.csv", lambda: gzip.compress(official())),
    "header": ("a.csv", table),
    "header of the official spelling": ("a.txt", lambda: (", ".join(COLUMNS) + "\n").encode() + official()),
    "header and an index": ("a.csv", lambda: table(index=True)),
    "header and a named index": ("a.csv", lambda: table(FRAME.rename_axis("id"), index=True)),
    "other order": ("a.csv", lambda: table(FRAME[sorted(COLUMNS, reverse=True)])),
    "inputs alone": ("a.csv", lambda: table(FRAME[INPUTS])),
    "other case and blanks": ("a.csv", lambda: table(FRAME.rename(columns=NAMES))),
    "index from 0": ("a.csv", lambda: counted(0)),
    "index from 1": ("a.csv", lambda: counted(1)),
    "index without the label": ("a.csv", lambda: counted(0, label=False)),
    "numbers as header": ("a.csv", lambda: table(FRAME.set_axis(range(42), axis=1))),
    "numbers as header and an index": ("a.csv", lambda: table(FRAME.set_axis(range(42), axis=1), index=True)),
    "header of R": ("a.csv", lambda: quoted(FRAME.set_axis([f"V{i}" for i in range(1, 43)], axis=1))),
    "row names of R": ("a.csv", lambda: (",".join(COLUMNS) + "\n").encode() + counted(1)),
    "quoted": ("a.csv", lambda: quoted(header=False)),
    "quoted with blanks": ("a.csv", lambda: quoted(header=False).replace(b'","', b'", "')),
    "quoted text": ("a.csv", lambda: table(quoting=csv.QUOTE_NONNUMERIC)),
    "quoted, with an index": ("a.csv", lambda: quoted(header=False, index=True)),
    "tab": ("a.tsv", lambda: table(sep="\t")),
    "tab, official": ("a.tsv", lambda: official(separator="\t")),
    "tab in .csv": ("a.csv", lambda: table(sep="\t")),
    "semicolon": ("a.csv", lambda: table(sep=";")),
    "bar": ("a.txt", lambda: table(sep="|")),
    "bar, official": ("a.txt", lambda: official(separator="|")),
    "UTF-8 with its mark": ("a.csv", lambda: codecs.BOM_UTF8 + table()),
    "UTF-16": ("a.csv", lambda: table().decode().encode("utf-16")),
    "UTF-16, big-endian": ("a.csv", lambda: codecs.BOM_UTF16_BE + table().decode().encode("utf-16-be")),
    "UTF-32": ("a.csv", lambda: official().decode("latin-1").encode("utf-32")),
    "carriage returns": ("a.csv", lambda: table(lineterminator="\r")),
    "Windows": ("a.csv", lambda: table(lineterminator="\r\n") + b"\r\n\r\n"),
    "whole numbers": ("a.csv", lambda: table(FRAME.astype({"year": int, "age": int}))),
    "codes as decimals": ("a.csv", lambda: table(FRAME.astype({"industry_code": float}))),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_ways_to_write_text(kind: str):
    name, make = TEXTS[kind]
    Path(name).write_bytes(make())
    assert_same(name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_letters_beyond_ascii(encoding: str):
    frame = FRAME.assign(race="Québécois")
    Path("a.csv").write_bytes(table(frame).decode().encode(encoding))
    assert set(read("a.csv", schema_of(frame, INPUTS))["race"]) == {"Québécois"}


def test_quotes_keep_separators_and_quotes():
    frame = FRAME.assign(race='a, "b"', sex='5" disk')
    schema = schema_of(frame, INPUTS)
    Path("a.csv").write_bytes(table(frame))
    assert set(read("a.csv", schema)["race"]) == {'a, "b"'}
    Path("a.csv").write_bytes(official([line.replace(" Male", ' 5" disk') for line in LINES]))
    assert '5" disk' in set(read("a.csv", schema)["sex"])
    frame = FRAME.assign(race="two\nlines")
    Path("a.csv").write_bytes(table(frame))
    assert set(read("a.csv", schema_of(frame, INPUTS))["race"]) == {"two\nlines"}


def test_long_files_are_read_block_by_block():
    text = official(LINES * 600)  # 12 MB: several blocks, which end within lines
    Path("a.csv").write_bytes(text)
    whole = read("a.csv")
    pd.testing.assert_frame_equal(whole[-40:].reset_index(drop=True), EXPECTED, check_exact=True)
    assert len(whole) == 600 * 40
    Path("a.csv").write_bytes(text + official([LINES[0].replace(",", ";", 1)]))
    assert error_of("a.csv").startswith("a.csv, line 24001: must have 42 comma-separated fields, has 41")
    Path("a.csv").write_bytes(
        codecs.BOM_UTF16_LE + text.decode("latin-1").encode("utf-16-le") + b"\x00\xd8x\x00"
    )
    assert error_of("a.csv").startswith("a.csv: damaged or incomplete file ('utf-16-le' codec can't decode")
    Path("a.csv").write_bytes(table() + b"1" * 3 * BLOCK_BYTES)
    assert error_of("a.csv").startswith("a.csv, line 42: must be a row of fields")


def test_other_decimal_points_of_rows_to_predict():
    schema = Schema((Categorical("a", ("1,5", "2")),), (Numeric("b", 0.0, 1.0, (0.0, 1.0)),), ())
    format = RowFormat(lambda _: CsvOptions(decimal=",", thousands="."), may_be_missing=False)
    Path("a.csv").write_text("a;b\n1,5;1.234,5\n2;7\n")
    assert read("a.csv", schema, format).to_numpy().tolist() == [["1,5", 1234.5], ["2", 7.0]]
    Path("a.csv").write_text("a;b\n1,5;1,5\n\n2;1.5\n")
    message = r"^a.csv, line 4, column 2 \(b\): must be a number with csv.decimal=',', is '1.5'$"
    with pytest.raises(UserError, match=message):
        read("a.csv", schema, format)


def test_a_run_on_other_columns_needs_a_header():
    schema = Schema((Categorical("colour", ("red", "été")),), (Numeric("size", 0.0, 1.0, (0.0, 1.0)),), ())
    Path("a.csv").write_text("size;shop;colour\n1;x;red\nTRUE;y;été\n")
    frame = read("a.csv", schema, PLAIN_ROWS)
    assert frame["colour"].tolist() == ["red", "été"]
    assert frame["size"].tolist() == [1.0, 1.0]
    Path("a.csv").write_text("1;x;red\n2;y;été\n")
    with pytest.raises(UserError, match=r"a.csv: must have the columns 'colour', 'size'; it begins with"):
        read("a.csv", schema, PLAIN_ROWS)


def edited(row: int, name: str, value: str, **options: object) -> bytes:
    frame = FRAME.astype(object)
    frame.loc[row, name] = value
    return table(frame, **options)


INVALID_TEXTS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "missing column": (
        "a.csv",
        lambda: table(FRAME.drop(columns=["race", "age"])),
        "a.csv: must have the columns 'race', 'age'; it begins with ['class_of_worker', 'industry_code',",
    ),
    "duplicate column": (
        "a.csv",
        lambda: table().replace(b"wage_per_hour", b"age", 1),
        "a.csv: two columns are named 'age'; names must differ",
    ),
    "two of a name": (
        "a.csv",
        lambda: table().replace(b",education", b",race", 1),
        "a.csv: two columns are named 'race'; names must differ",
    ),
    "two of similar names": (
        "a.csv",
        lambda: table().replace(b",education", b",Race", 1).replace(b",race", b",RACE", 1),
        "a.csv: must have one column 'race'; has 'Race' and 'RACE'",
    ),
    "unknown header": (
        "a.csv",
        lambda: table(FRAME.rename(columns={n: f"x_{n}" for n in COLUMNS})),
        "a.csv, line 1: must be a header with the names of the run's inputs, or a row of 42 fields, is",
    ),
    "an index that does not count": (
        "a.csv",
        lambda: counted(5),
        "a.csv, line 1: the row number must be 0 or 1 in the first row, is",
    ),
    "too few fields": (
        "a.csv",
        lambda: official([line.rpartition(", ")[0] for line in LINES][:1] + LINES[:1]),
        "a.csv, line 2: must have 41 comma-separated fields, has 42",
    ),
    "another number of fields": (
        "a.csv",
        lambda: b"1,2,3\n",
        "a.csv, line 1: must have 42 comma-separated fields (41 without the label), or a header; has 3",
    ),
    "no number": (
        "a.csv",
        lambda: edited(3, "age", "old"),
        "a.csv, line 5, column 1 (age): must be a number, is 'old'",
    ),
    "not finite": (
        "a.csv",
        lambda: edited(3, "age", "1e39", sep=";"),
        "a.csv, line 5, column 1 (age): must be a finite number in the range of float32, is 1e+39",
    ),
    "no value": (
        "a.csv",
        lambda: table(FRAME.assign(age=FRAME["age"].where(FRAME.index != 2))),
        "a.csv, line 4, column 1 (age): must not be missing",
    ),
    "no level": (
        "a.csv",
        lambda: edited(3, "race", " "),
        "a.csv, line 5, column 11 (race): must not be missing",
    ),
    "open quote": (
        "a.csv",
        lambda: official([*LINES[:2], LINES[2].replace(" Not", ' "Not', 1)]),
        "a.csv, line 3: a quote must be closed before the file ends",
    ),
    "text after a quote": (
        "a.csv",
        lambda: official([*LINES[:2], '"' + LINES[2].replace(",", '"x,', 1)]),
        f"a.csv, line 3, column 1 (age): must be a number, is '{FIELDS[2][0]}x'",
    ),
    "UTF-16 without its mark": (
        "a.csv",
        lambda: table().decode().encode("utf-16-le"),
        "a.csv: must not have NUL bytes; a file in UTF-16 must begin with a byte order mark",
    ),
    "a mark that is not true": (
        "a.csv",
        lambda: codecs.BOM_UTF8 + edited(3, "race", "é").decode().encode("latin-1"),
        "a.csv, line 5: must be UTF-8 text",
    ),
    "nothing": ("a.csv", lambda: b"", "a.csv: is empty"),
    "header alone": ("a.csv", lambda: ",".join(COLUMNS).encode() + b"\n", ""),
    "numbers as header alone": ("a.csv", lambda: ",".join(map(str, range(42))).encode(), ""),
    "half of a gzip file": ("a.tsv.gz", lambda: gzip.compress(table())[:-30], "a.tsv.gz: damaged or"),
}


@pytest.mark.parametrize("kind", INVALID_TEXTS)
def test_invalid_text(kind: str):
    name, make, message = INVALID_TEXTS[kind]
    Path(name).write_bytes(make())
    if message:
        assert error_of(name).startswith(message)
    else:
        assert list(chunks(name)) == []  # `predict` says that there are no rows


def decimals(name: str, kind: pa.DataType) -> pa.Array:
    return pa.array([decimal.Decimal(str(value)) for value in FRAME[name]]).cast(kind)


CODES = FRAME["industry_code"].astype(int)
COLUMN_KINDS: dict[str, tuple[str, Callable[[], pa.Array]]] = {
    "decimal": ("age", lambda: decimals("age", pa.decimal128(8, 3))),
    "large decimal": ("wage_per_hour", lambda: decimals("wage_per_hour", pa.decimal256(50, 9))),
    "integer": ("age", lambda: pa.array(FRAME["age"].astype(np.uint8))),
    "float": ("age", lambda: pa.array(FRAME["age"].astype(np.float32))),
    "half": ("age", lambda: pa.array(FRAME["age"].astype(np.float16).to_numpy())),
    "text": ("age", lambda: pa.array([f" {value:g} " for value in FRAME["age"]])),
    "large text": ("age", lambda: pa.array([f"+{value}" for value in FRAME["age"]], pa.large_string())),
    "bytes": ("age", lambda: pa.array([f"{value:e}".encode() for value in FRAME["age"]])),
    "dictionary of numbers": ("age", lambda: pa.array(FRAME["age"].astype(int)).dictionary_encode()),
    "dictionary of text": ("age", lambda: pa.array(FRAME["age"].astype(str)).dictionary_encode()),
    "level: integer": ("industry_code", lambda: pa.array(CODES)),
    "level: float": ("industry_code", lambda: pa.array(CODES.astype(float))),
    "level: decimal": ("industry_code", lambda: pa.array([decimal.Decimal(f"{c}.00") for c in CODES])),
    "level: text of a float": ("industry_code", lambda: pa.array([f"{c}.0" for c in CODES])),
    "level: bytes": ("race", lambda: pa.array([value.encode() for value in FRAME["race"]])),
    "level: large text": ("race", lambda: pa.array(FRAME["race"], pa.large_string())),
    "level: view": ("race", lambda: pa.array(list(FRAME["race"]), pa.string_view())),
    "level: dictionary": ("race", lambda: pa.array(FRAME["race"]).dictionary_encode()),
    "level: dictionary of numbers": ("industry_code", lambda: pa.array(CODES).dictionary_encode()),
    "level: blanks": ("race", lambda: pa.array([f" {value}\t" for value in FRAME["race"]])),
}  # fmt: skip


def with_column(name: str, column: pa.Array) -> pa.Table:
    whole = pa.Table.from_pandas(FRAME)
    return whole.set_column(whole.column_names.index(name), name, column)


@pytest.mark.parametrize("kind", COLUMN_KINDS)
def test_columns_of_parquet(kind: str):
    name, make = COLUMN_KINDS[kind]
    pq.write_table(with_column(name, make()), "a.parquet")
    assert_same("a.parquet")


@pytest.mark.parametrize("kind", [pa.decimal128(30, 9), pa.decimal256(50, 9), pa.decimal128(30, 20)])
def test_decimals_are_exact(kind: pa.DataType):
    numbers = [*range(0, 3000, 7), 0.1, -2.675]
    array = pa.array([decimal.Decimal(str(number)) for number in numbers]).cast(kind)
    for given in (array, array.dictionary_encode()):
        assert numbers_of(pd.Series(given, dtype=pd.ArrowDtype(given.type))).tolist() == numbers


@pytest.mark.parametrize("name", ["a.pq", "a.parq", "A.PARQUET"])
def test_endings_of_parquet(name: str):
    FRAME.rename(columns=NAMES).to_parquet(name)
    assert_same(name)


@pytest.mark.parametrize("known", [("False", "True"), ("false", "true"), ("FALSE", "TRUE"), ("0", "1")])
def test_truth_values(known: tuple[str, str]):
    schema = Schema((Categorical("a", known),), (Numeric("b", 0.0, 1.0, (0.0, 1.0)),), ())
    pd.DataFrame({"a": [True, False], "b": [True, False]}).to_parquet("a.parquet")
    frame = read("a.parquet", schema, PLAIN_ROWS)
    assert frame["a"].tolist() == [known[1], known[0]]
    assert frame["b"].tolist() == [1.0, 0.0]


BAD_COLUMNS: dict[str, tuple[str, Callable[[], pa.Array], str]] = {
    "list": ("sex", lambda: pa.array([["Male"]] * 40), "a.parquet: column sex: must hold text, holds list"),
    "list of numbers": (
        "age",
        lambda: pa.array([[1]] * 40),
        "a.parquet: column age: must hold numbers, holds list",
    ),
    "struct": (
        "sex",
        lambda: pa.array([{"a": 1}] * 40),
        "a.parquet: column sex: must hold text, holds struct",
    ),
    "map": (
        "sex",
        lambda: pa.array([[("a", 1)]] * 40, pa.map_(pa.string(), pa.int64())),
        "a.parquet: column sex: must hold text, holds map",
    ),
    "date": (
        "year",
        lambda: pa.array([1] * 40, pa.date32()),
        "a.parquet: column year: must hold numbers, holds date32",
    ),
    "time": (
        "year",
        lambda: pa.array([1] * 40, pa.timestamp("s")),
        "a.parquet: column year: must hold numbers",
    ),
    "text": (
        "age",
        lambda: pa.array(["1", "x", *["1"] * 38]),
        "a.parquet, column age, row 2: must be a number, is 'x'",
    ),
    "null": (
        "age",
        lambda: pa.array([*[1] * 30, None, *[1] * 9]),
        "a.parquet, column age, row 31: must not be missing",
    ),
    "nothing but null": (
        "age",
        lambda: pa.nulls(40),
        "a.parquet, column age, row 1: must not be missing",
    ),
    "NaN": ("age", lambda: pa.array([np.nan] * 40), "a.parquet, column age, row 1: must not be missing"),
    "large": (
        "age",
        lambda: pa.array([1e39] * 40),
        "a.parquet, column age, row 1: must be a finite number in the range",
    ),
    "level null": (
        "sex",
        lambda: pa.array([*["Male"] * 39, None]),
        "a.parquet, column sex, row 40: must not be missing",
    ),
    "nothing but level null": (
        "sex",
        lambda: pa.nulls(40),
        "a.parquet, column sex, row 1: must not be missing",
    ),
    "empty level": (
        "sex",
        lambda: pa.array(["Male", " "] * 20),
        "a.parquet, column sex, row 2: must not be missing",
    ),
    "not UTF-8": (
        "sex",
        lambda: pa.array([*[b"Male"] * 9, *[b"M\xff"] * 31]),
        "a.parquet, column sex: must hold UTF-8 text",
    ),
    "text that is not UTF-8": (
        "sex",
        lambda: pa.array([*[b"Male"] * 9, *[b"M\xff"] * 31]).view(pa.string()),
        "a.parquet, column sex: damaged, or not UTF-8 text",
    ),
}


@pytest.mark.parametrize("kind", BAD_COLUMNS)
def test_invalid_columns_of_parquet(kind: str):
    name, make, message = BAD_COLUMNS[kind]
    pq.write_table(with_column(name, make()), "a.parquet")
    assert error_of("a.parquet").startswith(message)


def test_names_of_parquet():
    FRAME.drop(columns="race").to_parquet("a.parquet")
    begin = "it begins with ['age', 'class_of_worker', 'industry_code']"
    assert error_of("a.parquet") == f"a.parquet: must have a column 'race'; {begin}"
    whole = pa.Table.from_pandas(FRAME)
    pq.write_table(whole.append_column("race", whole["race"]), "a.parquet")
    assert error_of("a.parquet") == "a.parquet: two columns are named 'race'; names must differ"
    pq.write_table(whole.append_column("Race", whole["sex"]), "a.parquet")
    assert_same("a.parquet")  # the exact name wins over a similar one


def test_damaged_parquet_files():
    FRAME.to_parquet("whole.parquet")
    whole = Path("whole.parquet").read_bytes()
    for content in (b"", official(), whole[:-9], whole[:-4] + b"PARE", whole[:4] + whole[-8:]):
        Path("a.parquet").write_bytes(content)
        assert error_of("a.parquet").startswith("a.parquet: damaged or incomplete file (")
    FRAME[:0].to_parquet("a.parquet")
    assert list(chunks("a.parquet")) == []


def odd_table(rng: np.random.Generator) -> tuple[pa.Table, Schema]:
    """A table with a few columns of random types."""
    rows = int(rng.integers(1, 60))
    whole = rng.integers(0, 90, rows)
    makers: list[Callable[[], pa.Array]] = [
        lambda: pa.array(whole.astype(rng.choice(["i1", "u2", "i4", "i8", "f4", "f8"]))),
        lambda: pa.array([decimal.Decimal(int(v)).scaleb(-2) for v in whole], pa.decimal128(9, 2)),
        lambda: pa.array(whole % 2 == 0),
        lambda: pa.array(
            [str(v) for v in whole], rng.choice([pa.string(), pa.large_string(), pa.string_view()])
        ),
        lambda: pa.array([str(v).encode() for v in whole]),
        lambda: pa.array([str(v) for v in whole]).dictionary_encode(),
        lambda: pa.array([None if v == 7 else int(v) for v in whole], pa.int64()),
        lambda: pa.array([[int(v)] for v in whole]),
        lambda: pa.array([{"a": int(v)} for v in whole]),
        lambda: pa.array(whole.astype("datetime64[D]")),
        lambda: pa.nulls(rows),
    ]
    chosen = rng.choice(len(makers), 4, p=[0.2, 0.14, 0.14, 0.15, 0.1, 0.15, 0.04, 0.02, 0.02, 0.02, 0.02])
    names = ["a", "b", "c", "d"]
    schema = Schema(
        tuple(Categorical(name, tuple(map(str, range(90)))) for name in names[:2]),
        tuple(Numeric(name, 0.0, 1.0, (0.0, 1.0)) for name in names[2:]),
        (),
    )
    return pa.table({name: makers[i]() for name, i in zip(names, chosen, strict=True)}), schema


def test_random_damage_to_parquet_files():
    """Damage raises a one-line error. If pages have checksums, it may also change nothing."""
    rng = np.random.default_rng(0)
    rejected, same = 0, 0
    for number in range(240):
        columns, schema = odd_table(rng)
        checked = bool(rng.integers(2))
        pq.write_table(
            columns,
            "whole.parquet",
            row_group_size=int(rng.integers(5, 80)),
            compression=str(rng.choice(["none", "snappy", "gzip", "zstd", "brotli", "lz4"])),
            use_dictionary=bool(rng.integers(2)),
            data_page_version=str(rng.choice(["1.0", "2.0"])),
            write_page_checksum=checked,
        )
        try:
            expected = read("whole.parquet", schema)
        except UserError:
            expected = None
        whole = Path("whole.parquet").read_bytes()
        for _ in range(3):
            content = bytearray(whole)
            if rng.random() < 0.2:
                del content[int(rng.integers(len(content))) :]
            else:
                content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
            Path("a.parquet").write_bytes(content)
            try:
                found = read("a.parquet", schema)
            except UserError:
                rejected += 1
                continue
            if checked and expected is not None:
                pd.testing.assert_frame_equal(found, expected, check_exact=True, obj=f"file {number}")
                same += 1
    assert rejected > 200
    assert same > 30


def test_generators_close_their_files():
    def open_files() -> set[str]:
        links = Path("/proc/self/fd").iterdir()
        return {str(link.readlink()) for link in links if link.is_symlink()}

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    Path("a.csv").write_bytes(table(pd.concat([FRAME] * 600)))
    pd.concat([FRAME] * 20).to_parquet("a.parquet")
    for name in ("a.csv", "a.parquet"):
        path = Path(name).resolve()
        parts = chunks(path, rows=7)
        next(parts)
        assert str(path) in open_files()
        parts.close()
        assert str(path) not in open_files()


@pytest.mark.slow
@pytest.mark.parametrize("until", ["the end", "the first rows"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_an_error_never_aborts_the_process(encoding: str, until: str):
    """A library's background threads once outlived the interpreter, which then exited with code 134."""
    text = table(pd.concat([FRAME] * 600)) + b"1,2\n"
    Path("a.csv").write_bytes(text.decode().encode("utf-16") if encoding == "utf-16" else text)
    code = (
        "from mmoe.data.raw_rows import default_format, read_rows\n"
        "from mmoe.data.schema import Numeric, Schema\n"
        "schema = Schema((), (Numeric('age', 0.0, 1.0, (0.0, 1.0)),), ())\n"
        "rows = read_rows(['a.csv'], default_format(schema), schema, [], 7000)\n"
    )
    code += "list(rows)" if until == "the end" else "next(rows)\nraise ValueError('line 24002')"
    for _ in range(3):
        together = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
        for process in together:
            _, err = process.communicate()
            assert process.returncode == 1
            assert b"line 24002" in err
