import codecs
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import sample_lines
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmoe.data import headerless_csv
from mmoe.data.census import read
from mmoe.data.census_files import COLUMNS, NUMERIC, SAMPLE_DIR

LINE = sample_lines()[0]
BOM = "\N{BYTE ORDER MARK}".encode().decode("latin-1")


def with_field(column: str, value: str, line: str = LINE) -> str:
    fields = line.split(", ")
    fields[COLUMNS.index(column)] = value
    return ", ".join(fields)


def write(path: Path, *lines: str, end: str = "\n") -> Path:
    path.write_bytes("".join(line + end for line in lines).encode("latin-1"))
    return path


def by_pandas(path: Path) -> pd.DataFrame:
    return pd.read_csv(
        path, header=None, names=COLUMNS, skipinitialspace=True, keep_default_na=False, na_values=[],
        encoding="latin-1", dtype={c: float if c in NUMERIC else str for c in COLUMNS},
    )  # fmt: skip


def assert_equal(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    for column in COLUMNS:
        values = ours[column] if column in NUMERIC else ours[column].astype(str)
        expected = theirs[column] if column in NUMERIC else theirs[column].str.strip()
        assert np.array_equal(values.to_numpy(), expected.to_numpy()), column


def test_reads_the_sample_as_pandas_does():
    path = SAMPLE_DIR / "census-income.data.gz"
    assert_equal(read(path), by_pandas(path))


def test_reads_the_real_rows_as_pandas_does(real_dir: Path):
    for name in ("census-income.data.gz", "census-income.test.gz"):
        assert_equal(read(real_dir / name), by_pandas(real_dir / name))


def test_na_and_question_mark_are_levels(tmp_path: Path):
    line = with_field("hispanic_origin", "NA", with_field("migration_msa", "?"))
    frame = read(write(tmp_path / "a", line))
    assert frame["hispanic_origin"][0] == "NA"
    assert frame["migration_msa"][0] == "?"
    assert not frame.isna().any().any()


def test_text_is_latin_1(tmp_path: Path):
    assert read(write(tmp_path / "a", with_field("race", "Québécois")))["race"][0] == "Québécois"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_line_ends_and_empty_lines(tmp_path: Path, end: str):
    frame = read(write(tmp_path / "a", LINE, with_field("age", "90"), end=end))
    assert frame["age"].tolist() == [float(LINE.split(",")[0]), 90.0]


def test_spaces_around_a_level_are_stripped(tmp_path: Path):
    frame = read(write(tmp_path / "a", LINE, LINE.replace(", ", ",")))
    assert all(len(frame[c].cat.categories) == 1 for c in COLUMNS if c not in NUMERIC)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (LINE.rsplit(", ", 1)[0], "line 3: must have 42 comma-separated fields, has 41"),
        (LINE + ", x", "line 3: must have 42 comma-separated fields, has 43"),
        (with_field("age", "young"), "line 3, column 1 (age): must be a finite number, is 'young'"),
        (with_field("age", "nan"), "line 3, column 1 (age): must be a finite number, is 'nan'"),
        (with_field("dividends", "1e999"), "line 3, column 19 (dividends): must be a finite number"),
        (with_field("dividends", "1e39"), "line 3, column 19 (dividends): must be a finite number"),
        (with_field("age", "1_000"), "line 3, column 1 (age): must be a finite number, is '1_000'"),
        (with_field("age", ""), "line 3, column 1 (age): must not be empty"),
        (with_field("sex", ""), "line 3, column 13 (sex): must not be empty"),
        (
            with_field("income", "50000+"),
            "line 3, column 42 (income): must be one of ['- 50000.', '50000+.'], is '50000+'",
        ),
    ],
)
def test_mistakes_name_file_line_and_column(tmp_path: Path, line: str, message: str):
    path = write(tmp_path / "bad.data", LINE, "", line, LINE)
    with pytest.raises(ValueError, match=r"bad\.data") as error:
        read(path)
    assert f"{path}, {message}" in str(error.value)


def test_a_header_line_is_recognised(tmp_path: Path):
    with pytest.raises(ValueError, match=r"line 1, column 1 \(age\).*a header line"):
        read(write(tmp_path / "a", ", ".join(COLUMNS), LINE))


def test_a_byte_order_mark_is_skipped(tmp_path: Path):
    assert read(write(tmp_path / "a", BOM + LINE, LINE))["age"].nunique() == 1
    with pytest.raises(ValueError, match=r"line 2, column 1 \(age\): must be a finite number, is 'young'"):
        read(write(tmp_path / "a", BOM + LINE, with_field("age", "young")))


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file(tmp_path: Path, content: bytes):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="a: has no rows"):
        read(tmp_path / "a")


def test_broken_gzip_files(tmp_path: Path):
    whole = gzip.compress(f"{LINE}\n".encode() * 1000)
    for content in (whole[:-20], b"not gzip", whole[:-8] + b"\0" * 8, whole[:40] + b"\xff" * 40 + whole[80:]):
        (tmp_path / "a.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.gz: damaged or incomplete gzip file"):
            read(tmp_path / "a.gz")


def test_an_unreadable_path(tmp_path: Path):
    with pytest.raises(ValueError, match="is a directory; name a file"):
        read(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        read(tmp_path / "nowhere")


def assert_rejected_or_read_as_written(path: Path, content: bytes) -> None:
    """Check that reading `content` raises a one-line error, or gives the rows that a plain loop reads."""
    path.write_bytes(content)
    try:
        frame = read(path)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith(str(path))
        assert "\n" not in message
        assert len(message) < 600
        return
    marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF32_LE: "utf-32"}
    text = content.decode(
        next((marks[mark] for mark in sorted(marks, key=len)[::-1] if content.startswith(mark)), "latin-1")
    )
    lines = [line for line in text.replace("\r", "\n").split("\n") if line]
    assert len(frame) == len(lines)
    for i, line in enumerate(lines):
        for column, field in zip(COLUMNS, line.split(","), strict=True):
            value = frame[column][i]
            assert value == (float(field) if column in NUMERIC else field.strip(" \t"))


fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(st.lists(st.tuples(st.integers(0, 600), st.binary(max_size=3)), min_size=1, max_size=3))
def test_mutated_bytes_are_rejected_or_read_as_written(tmp_path: Path, edits: list[tuple[int, bytes]]):
    content = f"{LINE}\n{LINE}\n".encode("latin-1")
    for position, piece in edits:
        position %= len(content)
        content = content[:position] + piece + content[position + len(piece) :]
    assert_rejected_or_read_as_written(tmp_path / "a", content)


FIELD = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "",
            " ",
            "?",
            "NA",
            "nan",
            "inf",
            "-1",
            "1e3",
            "0x1F",
            "1_000",
            "\0",
            "a\0b",
            '"',
            '"a',
            "\ufeff",
            "\x1a",
        ]
    ),
    st.floats().map(str),
    st.integers(50_000, 300_000).map(lambda size: "x" * size),
)


@fuzz
@given(
    fields=st.dictionaries(st.tuples(st.integers(0, 2), st.integers(0, 41)), FIELD, max_size=3),
    cut=st.one_of(st.none(), st.tuples(st.integers(0, 2), st.integers(0, 60))),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\r", "\n\r", "\n\n", ""]), min_size=3, max_size=3),
    encoding=st.sampled_from(["latin-1", "utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "cp037"]),
)
def test_mutated_fields_and_encodings_are_rejected_or_read_as_written(
    tmp_path: Path,
    fields: dict[tuple[int, int], str],
    cut: tuple[int, int] | None,
    ends: list[str],
    encoding: str,
):
    lines = [LINE.split(", ") for _ in range(3)]
    for (line, position), value in fields.items():
        lines[line][position] = value
    if cut:  # too few or too many fields
        line, count = cut
        lines[line] = (lines[line] * 2)[:count]
    text = "".join(", ".join(line) + end for line, end in zip(lines, ends, strict=True))
    assert_rejected_or_read_as_written(tmp_path / "a", text.encode(encoding, "replace"))


@pytest.mark.slow
def test_the_blocks_of_a_large_file_are_joined(tmp_path: Path):
    lines = sample_lines() * 4  # 12 MB
    frame = read(write(tmp_path / "a", *lines, end="\r\n"))
    once = read(SAMPLE_DIR / "census-income.data.gz")
    pd.testing.assert_frame_equal(frame, pd.concat([once] * 4, ignore_index=True), check_exact=True)
    with pytest.raises(
        ValueError, match=rf"line {len(lines) + 1}: must have 42 comma-separated fields, has 1"
    ):
        read(write(tmp_path / "a", *lines, "end", LINE))


def test_a_byte_order_mark_between_blocks_is_text(tmp_path: Path):
    with pytest.raises(ValueError, match=r"line 2, column 1 \(age\): must be a finite number"):
        read(write(tmp_path / "a", LINE, BOM + LINE))
    assert headerless_csv.parse((BOM + "a,1\n").encode("latin-1"), {"x": pa.binary(), "y": pa.float64()})[
        "x"
    ].to_pylist() == [(BOM + "a").encode("latin-1")]


def test_numbers_are_read_in_blocks(tmp_path: Path):
    numbers = np.arange(30_000, dtype=np.float32).reshape(-1, 3)
    np.savetxt(tmp_path / "n.csv", numbers, delimiter=",", fmt="%g")
    blocks = list(headerless_csv.read_numbers(tmp_path / "n.csv", ["a", "b", "c"]))
    assert np.array_equal(np.concatenate(blocks), numbers)
    (tmp_path / "n.csv").write_text("1,2,3\n1,x,3\n")
    with pytest.raises(ValueError, match=r"n\.csv, line 2, column 2 \(b\): must be a finite number"):
        list(headerless_csv.read_numbers(tmp_path / "n.csv", ["a", "b", "c"]))
