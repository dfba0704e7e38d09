"""Tables from CSV, Parquet and Arrow files, and from DataFrames."""

import bz2
import csv
import datetime
import gzip
import os
import threading
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from mmoe.data.csv_file import BLOCK_BYTES
from mmoe.data.csv_options import CsvOptions
from mmoe.data.csv_start import START_BYTES
from mmoe.data.data_files import find_files
from mmoe.data.frames import table_of_frame
from mmoe.data.table_files import locate, read_batches, read_names, read_table
from mmoe.errors import RowError, UserError

PLAIN = CsvOptions()


@pytest.fixture(scope="session")
def tables_dir() -> Path:
    """Real tables, where the machine has them."""
    folder = os.environ.get("MMOE_TABLES_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MMOE_TABLES_DIR is not set: no real tables here")
    return Path(folder).resolve()


def write(name: str, text: str | bytes) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    return name


def read_text(text: str | bytes, name: str = "a.csv", **options: Any) -> pa.Table:
    write(name, text)
    return read_table([name], CsvOptions.parse(options))


def column(values: Sequence[str], **options: Any) -> tuple[pa.DataType, list[Any]]:
    """The type and the values of one column beside another."""
    found = read_text("x|y\n" + "".join(f"{value}|1\n" for value in values), delimiter="|", **options)["x"]
    return found.type, found.to_pylist()


# Finding files


def test_a_source_is_a_file_a_glob_a_folder_or_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = ["d/b.csv", "d/a.CSV", "d/deep/c.csv.gz", "d/_SUCCESS.csv", "d/.hidden.csv", "d/note.md"]
    for name in [*names, "d/_temporary/x.csv"]:
        write(name, "x\n1\n")
    assert find_files("d/b.csv") == ["d/b.csv"]
    assert find_files("d/*.csv") == ["d/b.csv"]
    assert find_files("d/*") == ["d/a.CSV", "d/b.csv", "d/deep/c.csv.gz"]
    assert find_files("d/**/*.csv*") == ["d/b.csv", "d/deep/c.csv.gz"]
    assert find_files("d") == ["d/a.CSV", "d/b.csv", "d/deep/c.csv.gz"]
    assert find_files(["d/b.csv", "d/*.CSV", "d/b.csv"]) == ["d/a.CSV", "d/b.csv"]
    assert find_files(tmp_path / "d" / "b.csv") == [str(tmp_path / "d" / "b.csv")]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(find_files("~/d")) == 3
    write("odd[1].csv", "x\n1\n")
    assert find_files("odd[1].csv") == ["odd[1].csv"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none.csv", "none.csv: no such file"),
        ("~nobody-here/x.csv", "^~nobody-here/x.csv: ~ must be followed by the name of an existing user"),
        ("d/*.tsv", "matches no file"),
        ("empty", "must hold data files"),
        ("d/note.md", r"must end with \.csv"),
        ("mixed", r"mixed/a.csv \(CSV\) and mixed/b.parquet \(Parquet\): files of one source must be"),
        ([], "at least one file"),
        ("nosuch://x/a.csv", "nosuch"),
    ],
)
def test_a_wrong_source_is_named(source: Any, message: str):
    write("d/note.md", "")
    write("d/a.csv", "")
    write("mixed/a.csv", "")
    write("mixed/b.parquet", "")
    Path("empty").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        find_files(source)
    assert "\n" not in str(caught.value)


def test_files_in_memory():
    system = fsspec.filesystem("memory")
    with system.open("/box/b.csv", "wb") as file:
        file.write(b"x,y\n3,c\n")
    with system.open("/box/deep/a.csv.gz", "wb") as file:
        file.write(gzip.compress(b"x,y\n1,a\n"))
    frame = pd.DataFrame({"x": [5], "y": ["e"]})
    with system.open("/box/t.parquet", "wb") as file:
        frame.to_parquet(file)
    try:
        assert find_files("memory://box/b.csv") == ["memory://box/b.csv"]
        assert find_files("memory://box/*.csv") == ["memory:///box/b.csv"]
        with pytest.raises(UserError, match="one kind"):
            find_files("memory://box")
        files = find_files(["memory://box/b.csv", "memory://box/deep"])
        assert sorted(read_table(files, PLAIN)["x"].to_pylist()) == [1, 3]
        assert read_table(find_files("memory://box/t.parquet"), PLAIN).to_pylist() == [{"x": 5, "y": "e"}]
        for source in ("memory://box/no.csv", "memory://nowhere", "memory://box/*.tsv"):
            with pytest.raises(UserError, match=r"no such file|must hold data files"):
                find_files(source)
    finally:
        system.rm("/box", recursive=True)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_files_by_http(server: str):
    write("served/a.csv", "x,y\n1,a\n")
    write("served/sub/b.csv.gz", gzip.compress(b"x,y\n2,b\n"))
    parquet.write_table(pa.table({"x": range(1000), "y": ["c"] * 1000}), "served/c.parquet")
    assert read_table(find_files(f"{server}/a.csv"), PLAIN).to_pylist() == [{"x": 1, "y": "a"}]
    assert read_table(find_files(f"{server}/sub/"), PLAIN).to_pylist() == [{"x": 2, "y": "b"}]
    assert read_table(find_files(f"{server}/a.csv?token=1"), PLAIN)["x"].to_pylist() == [1]
    assert sum(len(part) for part in read_batches([f"{server}/c.parquet"], PLAIN, ["x"], 300)) == 1000
    with pytest.raises(UserError, match="no such file"):
        find_files(f"{server}/none.csv")
    with pytest.raises(UserError):
        read_table(find_files("http://127.0.0.1:9/a.csv"), PLAIN)


# Types of CSV columns


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["1", "-2", "30"], pa.int64(), [1, -2, 30]),
        (["1", "?", ""], pa.int64(), [1, None, None]),
        (["1", "2.5", "1.0"], pa.float64(), [1, 2.5, 1]),
        (["16777217", "9007199254740993"], pa.int64(), [16777217, 9007199254740993]),
        (["1e3", "NaN"], pa.float64(), [1000, None]),
        (["007", "12"], pa.string(), ["007", "12"]),
        (["-07", "12"], pa.string(), ["-07", "12"]),
        (["007", "1.5"], pa.string(), ["007", "1.5"]),
        (["0", "0.5", "-0.5"], pa.float64(), [0, 0.5, -0.5]),
        (["0x1F", "1"], pa.string(), ["0x1F", "1"]),
        (["1", "1.0", "b"], pa.string(), ["1", "1.0", "b"]),
        (["18446744073709551617", "1"], pa.string(), ["18446744073709551617", "1"]),
        (["True", "False"], pa.string(), ["True", "False"]),
        (["2020-01-02", "NA"], pa.string(), ["2020-01-02", None]),
        (["", "?"], pa.null(), [None, None]),
        ([" 5", "6 "], pa.int64(), [5, 6]),
        ([" ?", " a "], pa.string(), [None, "a"]),
        (['"a ""b"", c"', '"two\nlines"'], pa.string(), ['a "b", c', "two\nlines"]),
    ],
)
def test_types_follow_from_the_values(values: list[str], kind: pa.DataType, expected: list[Any]):
    assert column(values) == (kind, expected)


def test_decimal_commas_thousands_and_other_spellings_of_missing():
    assert column(["1,5", "-2"], decimal=",") == (pa.float64(), [1.5, -2])
    assert column(["1.234,5", "7"], decimal=",", thousands=".") == (pa.float64(), [1234.5, 7])
    assert column(["1,234", "12,345,678"], thousands=",") == (pa.int64(), [1234, 12345678])
    assert column(["1,23", "5"], thousands=",") == (pa.string(), ["1,23", "5"])
    assert column(["1.5", "2"], decimal=",") == (pa.string(), ["1.5", "2"])
    assert column(["-1", "5"], missing=[-1]) == (pa.int64(), [None, 5])
    assert column(["?", "NA"], missing=[]) == (pa.string(), ["?", "NA"])


def test_a_type_is_decided_over_all_rows_and_files():
    count = 2 * BLOCK_BYTES // 6
    write("a.csv", "x,y\n" + "1,100\n" * count + "1,007\n")
    write("b.csv", "y,x\n5,2.5\n")  # in another order
    table = read_table(["a.csv", "b.csv"], PLAIN)
    assert table.schema.types == [pa.float64(), pa.string()]
    assert table["y"].slice(count - 1).to_pylist() == ["100", "007", "5"]
    assert table["x"].slice(count).to_pylist() == [1, 2.5]
    parts = list(read_batches(["a.csv", "b.csv"], PLAIN, None, 100_000))
    assert {kind for part in parts for kind in part.schema.types} == {pa.string()}
    assert max(map(len, parts)) == 100_000
    assert pa.concat_tables(parts)["y"].to_pylist() == table["y"].to_pylist()


def test_text_that_is_not_utf8_is_windows_1252():
    Path("a.csv").write_bytes("Umsatz €,x\n1,é\n".encode("cp1252"))
    assert read_table(["a.csv"], PLAIN).to_pydict() == {"Umsatz €": [1], "x": ["é"]}
    Path("a.csv").write_bytes(b"x,y\n1,\x81\n")  # a byte that Windows-1252 does not have
    assert read_table(["a.csv"], PLAIN).to_pydict() == {"x": [1], "y": ["\x81"]}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("header", ["öäü,x", "größe,x"])
def test_a_header_that_is_not_in_the_named_encoding_is_refused(encoding: str, header: str):
    Path("a.csv").write_bytes(f"{header}\n1,2\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"^a.csv, line 1: must be UTF-8 text; for another encoding"):
        read_table(["a.csv"], CsvOptions(encoding=encoding))


def test_a_file_of_another_delimiter_is_named():
    write("a.csv", "a,b\n1,2\n")
    with pytest.raises(
        UserError, match=r"it begins with \['a,b'\], with the delimiter ';' \(csv.delimiter\)$"
    ):
        read_table(["a.csv"], CsvOptions(delimiter=";"), ["a", "b"])


def test_columns_may_be_kept_as_text():
    write("a.csv", "x,y\n1, 2\n?,3\n")
    assert read_table(["a.csv"], PLAIN, ["y", "x"], text=["x"]).to_pydict() == {"y": [2, 3], "x": ["1", None]}
    (part,) = read_batches(["a.csv"], PLAIN, ["x", "y"])
    assert part.to_pydict() == {"x": ["1", None], "y": ["2", "3"]}


# Layouts of CSV


@pytest.mark.parametrize(
    "compress", [gzip.compress, bz2.compress, lambda b: pa.compress(b, "zstd", asbytes=True)]
)
def test_compressed_text(compress: Any):
    suffix = {gzip.compress: "gz", bz2.compress: "bz2"}.get(compress, "zst")
    if suffix == "zst":
        with pa.CompressedOutputStream("a.csv.zst", "zstd") as file:
            file.write(b"x,y\n1,a\n")
    else:
        write(f"a.csv.{suffix}", compress(b"x,y\n1,a\n"))
    assert read_table([f"a.csv.{suffix}"], PLAIN).to_pylist() == [{"x": 1, "y": "a"}]
    Path(f"a.csv.{suffix}").rename("b.csv")  # known by its first bytes
    assert read_table(["b.csv"], PLAIN).to_pylist() == [{"x": 1, "y": "a"}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-8"])
def test_byte_order_marks_line_ends_and_names(encoding: str):
    text = "\r\n Größe [m] ,y z\r\n1,ä\r\n\r\n2,b\r\n"
    table = read_text(text.encode(encoding))
    assert table.to_pydict() == {"Größe [m]": [1, 2], "y z": ["ä", "b"]}
    assert read_names(["a.csv"], PLAIN) == ["Größe [m]", "y z"]


def test_an_encoding_may_be_named_and_must_be_right():
    assert read_text("x,y\nä,1\n".encode("latin-1"), encoding="latin-1")["x"].to_pylist() == ["ä"]
    assert read_text("x,y\nä,1\n".encode("latin-1"))["x"].to_pylist() == ["ä"]
    late = b"x,y\n" + b"a,1\n" * START_BYTES + "\nä,1\n".encode("latin-1")
    with pytest.raises(UserError, match=rf"a\.csv, line {START_BYTES + 3}: must be UTF-8 text; for another"):
        read_text(late)
    with pytest.raises(UserError, match=r"a\.csv, line 2: must be UTF-8 text; for another"):
        read_text("x,y\nä,1\n".encode("latin-1"), encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.csv: must not have NUL bytes; a file in UTF-16 must begin"):
        read_text("x,y\n1,2\n".encode("utf-16-le"))
    assert read_text("x,y\n1,2\n".encode("utf-16-le"), encoding="utf-16-le").to_pydict() == {
        "x": [1],
        "y": [2],
    }


def test_long_text_in_another_encoding(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmoe.data.csv_start.MEMORY_BYTES", 10)
    text = "x,y\n" + "ä,1\n" * 600_000
    assert read_text(text.encode("utf-16")) == read_text(text)


def test_delimiters_headers_and_names():
    assert read_text("x\ty\n1\t2,5\n", "a.tsv")["y"].to_pylist() == ["2,5"]
    assert read_text("1;2\n3;4\n", delimiter=";", header=False).to_pydict() == {
        "column_1": [1, 3],
        "column_2": [2, 4],
    }
    assert read_text("1,2\n", header=False, names=["a", "b"]).to_pydict() == {"a": [1], "b": [2]}
    assert read_text(',x\n"r1",5\n').to_pydict() == {"Unnamed: 0": ["r1"], "x": [5]}
    assert read_text('"two\nlines",y\n1,2\n').to_pydict() == {"two\nlines": [1], "y": [2]}
    assert read_text('x,y\n1,"a\nb"\n').to_pydict() == {"x": [1], "y": ["a\nb"]}
    assert read_text('x,"a\n\nb\r\n"\n1,2\n').to_pydict() == {"x": [1], "a\n\nb": [2]}
    assert read_text("x\n1\n2").to_pydict() == {"x": [1, 2]}
    assert read_text("0\n1\n2", header=False, names=["x"]).to_pydict() == {"x": [0, 1, 2]}


@pytest.mark.parametrize(
    "text", ['x,y\n1,"a\nb"', 'x,y\n1,""""', 'x,y\n1,"\n"\n', 'x,y\n1,"a"\n\n', 'x,y\n1,5"\n']
)
def test_closed_quotes_at_the_end(text: str):
    assert read_text(text)["x"].to_pylist() == [1]


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_separators_are_found(separator: str):
    rows = [["x", "y, z", "tags"], ["1", "a; b", "p|q"], ["2,5", 'c "d"', "p"]]
    with Path("a.txt").open("w", newline="") as file:
        csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows(rows)
    assert read_table(["a.txt"], PLAIN).to_pydict() == {
        "x": ["1", "2,5"], "y, z": ["a; b", 'c "d"'], "tags": ["p|q", "p"],
    }  # fmt: skip
    assert read_text("tags\np|q\nr|s\n").to_pydict() == {"tags": ["p|q", "r|s"]}
    assert read_text("x,y\n1,2\n", "d.tsv/a.csv").to_pydict() == {"x": [1], "y": [2]}  # a folder's name
    assert read_text("x,y\tz\n1\t2\n", "A.TSV").to_pydict() == {"x,y": [1], "z": [2]}
    assert read_text("x\ty\r" + "1\t2\r" * START_BYTES).column_names == ["x", "y"]  # longer than a start


def test_blanks_before_quotes_and_row_numbers_without_a_name():
    table = read_text('x, "y, z"\n"1", "a, ""b"""\n "?", c\n')
    assert table.to_pydict() == {"x": [1, None], "y, z": ['a, "b"', "c"]}
    assert read_text("x,y\n1,5,a\n2,6,b\n")["x"].to_pylist() == [5, 6]
    with pytest.raises(UserError, match="line 2: must have 2 comma-separated fields, has 3"):
        read_text("x,y\n7,5,a\n")


def test_names_may_differ_in_case_and_blanks():
    for name in ("a.csv", "a.parquet"):
        frame = pd.DataFrame({" Amount": [1, 2], "city": ["x", "y"], "City": ["z", "w"]})
        frame.to_csv(name, index=False) if name == "a.csv" else frame.to_parquet(name)
        found = read_table([name], PLAIN, ["amount", "city"])
        assert found.to_pydict() == {"amount": [1, 2], "city": ["x", "y"]}
        with pytest.raises(UserError, match=f"{name}: must have one column 'CITY'; has 'city' and 'City'"):
            read_table([name], PLAIN, ["CITY"])
        with pytest.raises(UserError, match=f"{name}: must have the columns 'p', 'q', 'r'; "):
            read_table([name], PLAIN, ["p", "q", "r"])


def test_an_error_has_its_file_and_its_line():
    write("a.csv", "x,y\n1,2\n")
    write("b.csv", 'y,x\n"5\n",6\n\n7,8\n')
    files = ["a.csv", "b.csv"]
    assert str(locate(files, PLAIN, RowError("x", 0, "r"))) == "a.csv, line 2, column 1 (x): r"
    assert str(locate(files, PLAIN, RowError("x", 1, "r"))) == "b.csv, line 2, column 2 (x): r"
    assert str(locate(files, PLAIN, RowError("x", 2, "r"))) == "b.csv, line 5, column 2 (x): r"
    for name in ("a.parquet", "b.parquet"):
        pd.DataFrame({"x": [1, 2, 3]}).to_parquet(name)
    assert (
        str(locate(["a.parquet", "b.parquet"], PLAIN, RowError("x", 4, "r")))
        == "b.parquet, column x, row 2: r"
    )
    write("a.csv", "x;y\n1.5;a\n2,5;b\n")
    with pytest.raises(RowError, match=r"column x, row 0: must be a number with csv.decimal=',', is '1.5'"):
        read_table(["a.csv"], CsvOptions(decimal=","), ["x"], numbers=["x"])


def test_the_last_column_of_a_ragged_file_takes_the_rest_of_a_line():
    options = {"header": False, "names": ["id", "y", "rest"], "ragged": True}
    table = read_text('1,0,a:1,a:2,b:"3\r\n\n2,?,a:1\n3,1\n4,1,\n5,1,a:1,,\n', **options)
    assert table["rest"].to_pylist() == ['a:1,a:2,b:"3', "a:1", None, None, "a:1,,"]
    assert table["y"].to_pylist() == [0, None, 1, 1, 1]
    assert read_table(["a.csv"], CsvOptions.parse(options), ["y", "id"])["id"].to_pylist() == [1, 2, 3, 4, 5]
    assert read_text("x,y\n1,2,3\n", ragged=True).to_pydict() == {"x": [1], "y": ["2,3"]}
    write("a.csv", "x,y\n1,2,3\n")
    write("b.csv", "x,y\n4,5\n6,7,8\n")
    found = locate(["a.csv", "b.csv"], CsvOptions(ragged=True), RowError("y", 2, "is wrong"))
    assert str(found) == "b.csv, line 3, column 2 (y): is wrong"
    with pytest.raises(UserError, match=r"a.csv: a line must have at least 2 fields, is '5'"):
        read_text("1,0,a\n5\n", **options)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "a.csv: is empty"),
        ("\ufeff\n", {}, "is empty"),
        ("x,y\n", {}, "must have at least one row"),
        ("x,y, x\n1,2,3\n", {}, "two columns are named 'x'"),
        ("x,y\n1,2\n1,2,3\n", {}, r"a.csv, line 3: must have 2 comma-separated fields, has 3"),
        ('x,y\n"1\n",2\n1\n', {}, r"a.csv, line 4: must have 2 comma-separated fields, has 1"),
        ("1,2\n", {"header": False, "names": ["a", "b", "c"]}, "line 1: must have 3 comma-.* fields, has 2"),
        ('x,y\n1,"2\n3,4\n5,6\n', {}, "a.csv, line 2: a quote must be closed before the file ends"),
        ('x,y\n1,2\n1,"2', {}, "a.csv, line 3: a quote must be closed"),
        ('x,y\n1,2\n1,"', {}, "a.csv, line 3: a quote must be closed"),
        ('x,y\n1,2\n1,"?', {}, "a.csv, line 3: a quote must be closed"),
        ('x,y\n1,"2\n3""', {}, "a.csv, line 2: a quote must be closed"),
        ('x,y\r1,2\r1,"2\r', {}, "a.csv, line 3: a quote must be closed"),
        ('x\n1\n"', {}, "a.csv, line 3: a quote must be closed"),
        ('"x', {"header": False}, "a.csv, line 1: a quote must be closed"),
        ('x,y\n"1,2\n3,4\n', {}, "a.csv, line 2: a quote must be closed"),
        ('x,y,z\n1, "2\n3",4\n1, "5,4\n', {}, "a.csv, line 4: a quote must be closed"),
        ('x,y\n1,"2' + "\n3,4" * 2**16, {}, "a.csv, line 2: a quote must be closed"),
        ('x,y\n1,"2' + "\n3,4" * 2**21, {}, r"a.csv, line 2: must be a row .*, with all quotes closed"),
    ],
)
def test_a_damaged_layout_is_named(text: str, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        read_text(text, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimeter": ","}, "csv.delimeter: must be one of .*; did you mean delimiter?"),
        ({"delimiter": ",,"}, "csv.delimiter=',,': must be one ASCII character"),
        ({"header": "no"}, "csv.header='no': must be true or false"),
        ({"encoding": "utf-9"}, "csv.encoding='utf-9': must be an encoding"),
        ({"encoding": "hex"}, "csv.encoding='hex': must be an encoding"),
        ({"decimal": "x"}, "csv.decimal='x': must be a point or a comma"),
        ({"decimal": ",", "thousands": ","}, "csv.thousands=',': must be null or one of"),
        ({"missing": "NA"}, "csv.missing=NA: must be a list"),
        ({"names": ["a"]}, "csv.names=.*: must be null where csv.header is true"),
        ({"header": False, "names": ["a", "a"]}, "csv.names: two columns are named 'a'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        CsvOptions.parse(options)


def test_a_damaged_gzip_file_is_named():
    packed = gzip.compress(os.urandom(1000).hex().encode())
    write("a.csv.gz", packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"a.csv.gz: damaged or incomplete"):
        read_table(["a.csv.gz"], PLAIN)
    write("b.csv.gz", "x,y\n1,2\n")
    with pytest.raises(UserError, match=r"b.csv.gz: damaged or incomplete"):
        read_table(["b.csv.gz"], PLAIN)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_columns_are_chosen_by_name(suffix: str):
    frame = pd.DataFrame({"a.b": [1, 2], "a": [3, 4], "c": ["x", "y"]})
    frame.to_csv("t.csv", index=False)
    frame.to_parquet("t.parquet")
    frame.assign(more=1).to_csv("u.csv", index=False)
    frame.assign(more=1).to_parquet("u.parquet")
    t, u = f"t.{suffix}", f"u.{suffix}"
    assert read_table([t], PLAIN, ["c", "a"]).to_pydict() == {"c": ["x", "y"], "a": [3, 4]}
    assert read_table([t, u], PLAIN, ["a.b"]).to_pydict() == {"a.b": [1, 2, 1, 2]}
    with pytest.raises(UserError, match=rf"{t}: must have a column 'aa'; the nearest is 'a'"):
        read_table([t], PLAIN, ["aa"])
    with pytest.raises(UserError, match=rf"{u}: must have the columns of {t}; also has 'more'"):
        read_table([t, u], PLAIN)
    with pytest.raises(UserError, match=rf"{t}: must have a column 'more'"):
        read_table([u, t], PLAIN)


# Parquet and Arrow


ODD = pa.table(
    {
        "dictionary": pa.array(["a", None, "b"]).dictionary_encode(),
        "texts": pa.array([["x", "y"], [], None]),
        "numbers": pa.array([[1], [2, 3], None]),
        "decimal": pa.array([Decimal("1.50"), None, Decimal("2.25")]),
        "date": pa.array([datetime.date(2020, 1, 2), None, datetime.date(1950, 1, 1)]),
        "time": pa.array([datetime.datetime(2020, 1, 2, 3), None, None], pa.timestamp("us")),
        "flag": pa.array([True, None, False]),
        "large": pa.array([2**53 + 1, None, -1]),
        "nothing": pa.nulls(3),
    }
)


@pytest.mark.parametrize("name", ["t.parquet", "t.pq", "t.arrow", "t.feather", "stream.ipc"])
def test_types_of_parquet_and_arrow_come_through(name: str):
    if name == "stream.ipc":
        with ipc.new_stream(name, ODD.schema) as writer:
            writer.write_table(ODD)
    elif name == "t.feather":
        feather.write_feather(ODD, name, "zstd")
    elif name == "t.arrow":
        with ipc.new_file(name, ODD.schema) as writer:
            writer.write_table(ODD)
    else:
        parquet.write_table(ODD, name)
    table = read_table(find_files(name), PLAIN)
    assert table.to_pydict() == ODD.to_pydict()
    assert table.schema.types == ODD.schema.types
    parts = list(read_batches([name], PLAIN, ["flag", "texts"], 2))
    assert [len(part) for part in parts] == [2, 1]
    assert pa.concat_tables(parts).to_pydict() == ODD.select(["flag", "texts"]).to_pydict()


def test_types_of_several_files_are_united():
    def types(*arrays: pa.Array, keep_bytes: bool = False) -> tuple[pa.DataType, list[Any]]:
        for i, array in enumerate(arrays):
            parquet.write_table(pa.table({"x": array}), f"{i}.parquet")
        names = [f"{i}.parquet" for i in range(len(arrays))]
        table = read_table(names, PLAIN, keep_bytes=keep_bytes)
        parts = read_batches(names, PLAIN, keep_bytes=keep_bytes)
        assert pa.concat_tables(parts).to_pydict() == table.to_pydict()
        return table["x"].type, table["x"].to_pylist()

    assert types(pa.array([1]), pa.array([1.5])) == (pa.float64(), [1, 1.5])
    assert types(pa.array([1], pa.int8()), pa.array([2**40])) == (pa.int64(), [1, 2**40])
    dictionary = pa.dictionary(pa.int32(), pa.string())
    assert types(pa.nulls(1), pa.array(["a"])) == (dictionary, [None, "a"])
    assert types(pa.array([1]), pa.array(["a"])) == (pa.string(), ["1", "a"])
    assert types(pa.array(["a"], pa.large_string()), pa.array([b"b"])) == (pa.string(), ["a", "b"])
    assert types(pa.array(["a"]), pa.array([b"b"]), keep_bytes=True) == (pa.binary(), [b"a", b"b"])
    assert types(pa.array([1]), pa.array([b"b"]), keep_bytes=True) == (pa.string(), ["1", "b"])
    first, second = (pa.array(text).dictionary_encode() for text in (["a"], ["b", "a"]))
    assert types(first, second)[1] == ["a", "b", "a"]
    assert types(first, pa.array(["c"])) == (dictionary, ["a", "c"])
    with pytest.raises(UserError, match=r"1.parquet, column x: holds list<.*>, and int64 in 0.parquet"):
        types(pa.array([1]), pa.array([[1]]))
    message = r"2.parquet, column x: holds list<.*>, and double in 0.parquet and 1 more"
    with pytest.raises(UserError, match=message):
        types(pa.array([1]), pa.array([1.5]), pa.array([[1]]))
    with pytest.raises(UserError, match=r"0.parquet, column x: must hold values of double, the type for all"):
        types(pa.array([2**53 + 1]), pa.array([1.5]))


def test_damaged_parquet_files_are_named():
    parquet.write_table(ODD, "t.parquet")
    whole = Path("t.parquet").read_bytes()
    for content in (b"", whole[:-100], b"x,y\n1,2\n", whole[:20] + bytes(60) + whole[80:]):
        write("t.parquet", content)
        with pytest.raises(UserError, match=r"t.parquet: damaged or incomplete file"):
            read_table(["t.parquet"], PLAIN)
    write("t.arrow", b"ARROW1\0\0")
    with pytest.raises(UserError, match=r"t.arrow: damaged or incomplete file"):
        read_table(["t.arrow"], PLAIN)


def test_a_parquet_file_without_rows_or_with_a_duplicate_name_is_named():
    parquet.write_table(pa.table({"x": pa.array([], pa.int64())}), "t.parquet")
    with pytest.raises(UserError, match=r"t.parquet: must have at least one row"):
        read_table(["t.parquet"], PLAIN)
    assert sum(map(len, read_batches(["t.parquet"], PLAIN))) == 0
    parquet.write_table(pa.table([[1], [2]], names=["x", "x"]), "t.parquet")
    with pytest.raises(UserError, match=r"t.parquet: two columns are named 'x'"):
        read_table(["t.parquet"], PLAIN)
    parquet.write_table(pa.table({"x": [b"\xff"]}), "t.parquet")
    with pytest.raises(UserError, match=r"t.parquet, column x: must hold UTF-8 text"):
        read_table(["t.parquet"], PLAIN)


# DataFrames


def test_a_frame_becomes_a_table():
    frame = pd.DataFrame(
        {
            "mixed": pd.Series([1, "a", None], dtype=object),
            "large": pd.Series([2**64, 1, None], dtype=object),
            "text": ["x", None, "y"],
            "number": [1.5, np.nan, 2],
            "whole": pd.array([1, None, 3], dtype="Int64"),
            "flag": [True, False, True],
            "category": pd.Categorical(["b", None, "a"], categories=["b", "a", "c"]),
            "codes": pd.Categorical([3, 4, None]),
            "mixed_category": pd.Categorical([3, "z", None]),
            "day": pd.to_datetime(["2020-01-02", None, "2021-01-01"]),
            "period": pd.period_range("2020-01", periods=3, freq="M"),
            "list": [["a"], [], ["b", "c"]],
            7: [1, 2, 3],
        }
    ).set_axis([5, 6, 5])
    table = table_of_frame(frame)
    assert table.column_names == [str(name) for name in frame.columns]
    assert table["mixed"].to_pylist() == ["1", "a", None]
    assert table["large"].to_pylist() == [str(2**64), "1", None]
    assert (table["text"].type, table["text"].to_pylist()) == (pa.string(), ["x", None, "y"])
    assert table["number"].to_pylist() == [1.5, None, 2]
    assert (table["whole"].type, table["whole"].to_pylist()) == (pa.int64(), [1, None, 3])
    assert table["flag"].type == pa.bool_()
    assert (table["category"].to_pylist(), table["codes"].to_pylist()) == (["b", None, "a"], [3, 4, None])
    assert table["mixed_category"].to_pylist() == ["3", "z", None]
    assert pa.types.is_timestamp(table["day"].type)
    assert table["period"].to_pylist() == ["2020-01", "2020-02", "2020-03"]
    assert table["list"].to_pylist() == [["a"], [], ["b", "c"]]


def test_categories_of_any_type_can_be_read_back():
    """Parquet restores the categories of text alone."""
    frame = pd.DataFrame(
        {
            "measure": pd.Categorical([0.5, 1.5, None]),
            "code": pd.Categorical([3, 4, None]),
            "text": pd.Categorical(["a", "b", None]),
        }
    )
    parquet.write_table(table_of_frame(frame), "a.parquet")
    found = read_table(["a.parquet"], PLAIN).to_pydict()
    assert found == {"measure": [0.5, 1.5, None], "code": [3, 4, None], "text": ["a", "b", None]}


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame([[1, 2]], columns=["x", "x"]), "two columns are named 'x'"),
        (pd.DataFrame([[1, 2]], columns=["1", 1]), "two columns are named '1'"),
        (pd.DataFrame({"x": []}), "at least one row"),
        (pd.DataFrame({("a", "b"): [1]}), "column names must be text or integers"),
    ],
)
def test_a_wrong_frame_is_refused(frame: pd.DataFrame, message: str):
    with pytest.raises(UserError, match=message):
        table_of_frame(frame)


# Real tables


@pytest.mark.parametrize(
    ("name", "options", "shape", "types"),
    [
        ("hillstrom/hillstrom.csv.gz", {}, (64_000, 12), {"history": pa.float64(), "channel": pa.string()}),
        ("datacar/dataCar.csv.gz", {}, (67_856, 11), {"X_OBSTAT_": pa.string(), "exposure": pa.float64()}),
        (
            "movielens_small/ratings.csv.gz",
            {},
            (100_836, 4),
            {"rating": pa.float64(), "timestamp": pa.int64()},
        ),
        ("movielens_small/movies.csv.gz", {}, (9_742, 3), {"genres": pa.string()}),
        ("student/student_*_new.csv", {}, (1_044, 33), {"G1": pa.int64(), "class": pa.string()}),
        ("ai4i/ai4i2020.csv", {}, (10_000, 14), {"UDI": pa.int64(), "Torque [Nm]": pa.float64()}),
        (
            "recsys_samples/byterec_sample.txt",
            {"header": False, "delimiter": "\t", "missing": [-1]},
            None,
            {"column_1": pa.int64()},
        ),
        (
            "recsys_samples/escm2_small.txt",
            {"header": False, "names": ["id", "click", "conversion", "features"], "ragged": True},
            None,
            {"click": pa.int64(), "features": pa.string()},
        ),
        ("recsys_samples/ali_ccp_*_sample.csv", {}, None, {"click": pa.int64(), "D508": pa.float64()}),
        ("recsys_samples/aliexpress_*_sample.csv", {}, None, {"search_id": pa.int64()}),
        ("recsys_samples/*.parquet", {}, None, {"clk": pa.float64(), "userid": pa.int64()}),
        ("recsys_samples/mmoe_census_train_data.txt", {"header": False}, None, {"column_1": pa.int64()}),
    ],
)
def test_real_tables(
    tables_dir: Path, name: str, options: dict[str, Any], shape: tuple[int, int] | None, types: dict[str, Any]
):
    table = read_table(find_files(str(tables_dir / name)), CsvOptions.parse(options))
    assert shape in (None, table.shape)
    assert {name: table.schema.field(name).type for name in types} == types


def test_s3_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    def refuse(_: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(UserError, match=r"^s3://bucket/a.csv: needs pip install 'mmoe\[s3\]'$"):
        find_files("s3://bucket/a.csv")


def test_a_row_with_too_many_fields_names_the_option():
    Path("a.csv").write_text("1,2\n3,4,5\n")
    for header, hint in ((True, "takes"), (False, r"with csv.names=\[")):
        with pytest.raises(UserError, match=f"has 3; csv.ragged=true {hint}"):
            read_table(["a.csv"], CsvOptions(header=header))


def test_a_wrong_mark_between_digits():
    with pytest.raises(UserError, match=r"csv.thousands='\.': .*; '\.' needs \"csv.decimal=','\"$"):
        CsvOptions.parse({"thousands": "."})
    assert CsvOptions.parse({"thousands": ".", "decimal": ","}).thousands == "."
