import errno
import functools
import gzip
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import config, sample_lines

from mmoe.build import build
from mmoe.data import census_archive, census_download
from mmoe.data.census_archive import DownloadError
from mmoe.data.census_download import fetch
from mmoe.data.census_files import FILE_NAMES, OFFICIAL_ROWS, find_census_files
from mmoe.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")
ROWS = {"census-income.data": 5, "census-income.test": 3}


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    """UCI's layout: a zip that holds census.tar.gz, which holds the files."""
    zipped(path, gzip.compress(tarred(list(files.items())), 1))


def tarred(files: Sequence[tuple[str | tarfile.TarInfo, bytes]]) -> bytes:
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return inner.getvalue()


def zipped(path: Path, inner: bytes, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as outer:
        outer.writestr("census.tar.gz", inner)
        outer.writestr("census-income.names", "| names")


def whole() -> list[tuple[str, bytes]]:
    return [(name, lines(rows, name)) for name, rows in ROWS.items()]


def lines(count: int, name: str = "census-income.data") -> bytes:
    rows = sample_lines(name)
    whole, rest = divmod(count, len(rows))
    return "".join(f"{row}\n" for row in rows * whole + rows[:rest]).encode("latin-1")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, the address that serves it, and the requested paths."""
    folder = tmp_path / "served"
    folder.mkdir()
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def test_the_official_archive_is_fetched_once_and_used(served: tuple[Path, str, list[str]]):
    folder, url, asked = served
    write_archive(
        folder / "census.zip",
        {FILE_NAMES[k]: lines(OFFICIAL_ROWS[k], FILE_NAMES[k]) for k in FILE_NAMES}
        | {"census-income.names": b"|"},
    )
    overrides = ["data.source=official", f"data.url={url}/census.zip"]
    dataset = build(config(*overrides), "data").dataset
    assert dataset.schema.row_origin == "official"
    assert dataset.schema.num_rows == {"train": 199_523, "val": 49_881, "test": 49_881}
    tensors = [tensor for rows in dataset.splits.values() for tensor in rows[:3]]
    assert sum(tensor.nbytes for tensor in tensors) <= 60_000_000
    assert build(config(*overrides), "data").schema == dataset.schema
    assert len(asked) == 1


def test_the_kept_files_equal_the_served_ones(served: tuple[Path, str, list[str]], tmp_path: Path):
    folder, url, _ = served
    content = {name: lines(rows, name) for name, rows in ROWS.items()}
    write_archive(folder / "census.zip", content)
    fetch(f"{url}/census.zip", tmp_path / "kept", ROWS, 42)
    assert {p.name: gzip.decompress(p.read_bytes()) for p in (tmp_path / "kept").iterdir()} == {
        f"{name}.gz": text for name, text in content.items()
    }


def _one_row_less(path: Path) -> None:
    write_archive(path, {name: lines(rows - 1, name) for name, rows in ROWS.items()})


def _one_field_more(path: Path) -> None:
    write_archive(path, {name: lines(rows, name)[:-1] + b", x\n" for name, rows in ROWS.items()})


def _one_file_less(path: Path) -> None:
    write_archive(path, {"census-income.data": lines(5)})


def _a_page(path: Path) -> None:
    path.write_text("<html>try again later</html>")


def _cut_off(path: Path) -> None:
    _one_row_less(path)
    path.write_bytes(path.read_bytes()[:-300])


def _another_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("adult.data", "39, State-gov")


def _encrypted(path: Path) -> None:
    write_archive(path, dict(whole()))
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the encryption flag of the first member, in its header and in the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def _bad_checksum(path: Path) -> None:
    write_archive(path, dict(whole()))
    content = bytearray(path.read_bytes())
    for place in (14, content.index(b"PK\x01\x02") + 16):
        content[place] ^= 1
    path.write_bytes(content)


def _bad_inner_checksum(path: Path) -> None:
    inner = bytearray(gzip.compress(tarred(whole())))
    inner[-8] ^= 1
    zipped(path, inner)


def _flipped_bit(path: Path) -> None:
    inner = bytearray(gzip.compress(tarred(whole())))
    inner[len(inner) // 2] ^= 4
    zipped(path, inner)


def _without(path: Path) -> None:
    """No file: the server answers 404."""


def _unknown_method(path: Path) -> None:
    write_archive(path, dict(whole()))
    content = bytearray(path.read_bytes())
    for place in (8, content.index(b"PK\x01\x02") + 10):
        content[place] = 77
    path.write_bytes(content)


def _with_member(kind: bytes, **changes: object) -> Callable[[Path], None]:
    """An archive where the first file is a member of another type."""

    def make(path: Path) -> None:
        member = tarfile.TarInfo("census-income.data")
        member.type = kind
        for name, value in changes.items():
            setattr(member, name, value)
        zipped(path, gzip.compress(tarred([(member, b""), *whole()[1:]])))

    return make


def _sparse(path: Path) -> None:
    """A sparse file of 1 GB of zeros that takes no space."""
    member = tarfile.TarInfo("census-income.data")
    member.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(2**30),
        "GNU.sparse.map": "0,0", "GNU.sparse.numblocks": "1",
    }  # fmt: skip
    zipped(path, gzip.compress(tarred([(member, b""), *whole()[1:]])))


def _twice(path: Path) -> None:
    zipped(path, gzip.compress(tarred([*whole(), whole()[0]])))


def _two_archives(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as outer, warnings.catch_warnings(action="ignore"):
        for _ in range(2):
            outer.writestr("census.tar.gz", gzip.compress(tarred(whole())))


def _many_files(path: Path) -> None:
    zipped(path, gzip.compress(tarred([(f"file{i}", b"") for i in range(200)] + whole())))


def _without_end(byte: bytes, before: bytes = b"") -> Callable[[Path], None]:
    """A file of 300 MB in one line, or in blank lines."""

    def make(path: Path) -> None:
        content = io.BytesIO()
        member = tarfile.TarInfo("census-income.data")
        member.size = 300_000_000
        with gzip.GzipFile(fileobj=content, mode="wb", compresslevel=1) as file:
            file.write(member.tobuf())
            file.write(before)
            for _ in range(300):
                file.write(byte * 1_000_000)
        zipped(path, content.getvalue())

    return make


def _large_beside(path: Path) -> None:
    """300 MB in a file that is not needed."""
    content = io.BytesIO()
    member = tarfile.TarInfo("other")
    member.size = 300_000_000
    with gzip.GzipFile(fileobj=content, mode="wb", compresslevel=1) as file:
        file.write(member.tobuf())
        for _ in range(300):
            file.write(b"x" * 1_000_000)
        file.write(tarred(whole()))
    zipped(path, content.getvalue())


def _large_name(path: Path) -> None:
    """A gzip header with a name of 100 MB, deflated to 100 kB."""
    zipped(path, b"\x1f\x8b\x08\x08" + b"\0" * 6 + b"n" * 100_000_000, zipfile.ZIP_DEFLATED)


def _negative_size(path: Path) -> None:
    member = tarfile.TarInfo("other")
    member.size = -512
    zipped(path, gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + tarred(whole())))


def _long_header(path: Path) -> None:
    """A tar archive whose extended header claims 3 GB."""
    member = tarfile.TarInfo("header")
    member.type, member.size = tarfile.XHDTYPE, 3 * 2**30
    zipped(path, gzip.compress(member.tobuf() + b"1" * 1_000_000))


BROKEN = {
    "one row less": (_one_row_less, r"census-income\.data: must have 5 rows, has 4"),
    "one field more": (_one_field_more, r"census-income\.data, line 5: must have 42 fields, has 43"),
    "one file less": (_one_file_less, r"census-income\.test: not in the archive"),
    "a page": (_a_page, "not the expected archive"),
    "an empty file": (Path.touch, "not the expected archive"),
    "cut off": (_cut_off, "not the expected archive"),
    "another archive": (_another_archive, "not the expected archive"),
    "nothing": (_without, "cannot be downloaded"),
    "encrypted": (_encrypted, "not the expected archive .*encrypted"),
    "bad checksum": (_bad_checksum, "not the expected archive"),
    "bad inner checksum": (_bad_inner_checksum, "not the expected archive"),
    "flipped bit": (_flipped_bit, "census|not the expected archive"),
    "unknown method": (_unknown_method, "not the expected archive"),
    "bzip2": (
        lambda path: zipped(path, gzip.compress(tarred(whole())), zipfile.ZIP_BZIP2),
        "must be stored or deflated",
    ),
    "xz": (
        lambda path: zipped(path, gzip.compress(tarred(whole())), zipfile.ZIP_LZMA),
        "must be stored or deflated",
    ),
    "no gzip": (lambda path: zipped(path, tarred(whole())), "not the expected archive"),
    "no tar": (lambda path: zipped(path, gzip.compress(b"text" * 999)), "not the expected archive"),
    "empty tar": (lambda path: zipped(path, gzip.compress(b"")), "not in the archive"),
    "cut gzip": (lambda path: zipped(path, gzip.compress(tarred(whole()))[:-20]), "not the expected archive"),
    "cut tar": (lambda path: zipped(path, gzip.compress(tarred(whole())[:1500])), "not the expected archive"),
    "a directory": (_with_member(tarfile.DIRTYPE), "must be a regular file"),
    "a symbolic link": (_with_member(tarfile.SYMTYPE, linkname="/etc/passwd"), "must be a regular file"),
    "a hard link": (_with_member(tarfile.LNKTYPE, linkname="census-income.test"), "must be a regular file"),
    "a device": (_with_member(tarfile.CHRTYPE), "must be a regular file"),
    "a pipe": (_with_member(tarfile.FIFOTYPE), "must be a regular file"),
    "a sparse file": (_sparse, "must have 5 rows, has 0"),
    "a file twice": (_twice, r"census-income\.data must occur only once"),
    "two archives": (_two_archives, r"must hold one census\.tar\.gz, holds 2"),
    "many files": (_many_files, "must have fewer than 100 files"),
    "a negative size": (_negative_size, "must not be negative"),
    "a sparse file of the old kind": (_with_member(tarfile.GNUTYPE_SPARSE), "must be a regular file"),
    "a long line": (_without_end(b"x"), r"census-income\.data, line 1: must have at most 10,000 bytes"),
    "a long line of commas": (_without_end(b","), "line 1: must have at most 10,000 bytes"),
    "a long second line": (_without_end(b" ", b"\n"), "line 2: must have at most 10,000 bytes"),
    "blank lines": (_without_end(b"\n"), "line 1001: must have at most 1,000 blank lines"),
    "much beside": (_large_beside, "must have at most 268,435,456 bytes"),
    "a long header": (_long_header, "not the expected archive"),
}


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN)
def test_an_invalid_archive_is_not_kept(
    served: tuple[Path, str, list[str]], tmp_path: Path, make: Callable[[Path], None], message: str
):
    folder, url, _ = served
    make(folder / "census.zip")
    tracemalloc.start()
    try:
        with pytest.raises(DownloadError, match=message) as caught:
            fetch(f"{url}/census.zip", tmp_path / "kept" / "census", ROWS, 42)
        assert "\n" not in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["census.lock"]


def test_a_long_gzip_header_of_the_inner_archive(
    served: tuple[Path, str, list[str]], monkeypatch: pytest.MonkeyPatch
):
    folder, url, _ = served
    _large_name(folder / "census.zip")
    monkeypatch.setattr(census_archive, "MAX_ARCHIVE_BYTES", 2**18)
    with pytest.raises(DownloadError, match=r"census\.tar\.gz must have at most 262,144 bytes"):
        fetch(f"{url}/census.zip", Path("kept"), ROWS, 42)


@pytest.mark.parametrize("name", ["encrypted", "a symbolic link", "blank lines"])
def test_a_broken_archive_falls_back_to_the_sample(
    served: tuple[Path, str, list[str]], caplog: pytest.LogCaptureFixture, name: str
):
    folder, url, _ = served
    BROKEN[name][0](folder / "census.zip")
    files = find_census_files(None, "auto", f"{url}/census.zip", Path("cache"))
    assert files.is_sample
    assert "FALLING BACK TO THE BUNDLED SAMPLE" in caplog.text
    with pytest.raises(UserError, match=r"^data\.source=official: .*; give data\.dir"):
        find_census_files(None, "official", f"{url}/census.zip", Path("cache"))


Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def answering() -> Iterator[Callable[[Answer], str]]:
    """Start a server that answers with a function; returns its address."""
    servers = []

    def serve(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.close_connection = True
                with suppress(OSError):  # the client hangs up
                    answer(self)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/census.zip"

    yield serve
    for server in servers:
        server.shutdown()


def _head(handler: BaseHTTPRequestHandler, *headers: tuple[str, str], code: int = 200) -> None:
    handler.send_response(code)
    for name, value in headers:
        handler.send_header(name, value)
    handler.end_headers()


def _endless(handler: BaseHTTPRequestHandler) -> None:
    _head(handler)
    while True:
        handler.wfile.write(b"x" * 2**16)


def _endless_in_chunks(handler: BaseHTTPRequestHandler) -> None:
    _head(handler, ("Transfer-Encoding", "chunked"))
    while True:
        handler.wfile.write(b"10000\r\n" + b"x" * 2**16 + b"\r\n")


def _endless_gzip(handler: BaseHTTPRequestHandler) -> None:
    _head(handler, ("Content-Encoding", "gzip"))
    bomb = gzip.compress(b"\0" * 10_000_000)
    while True:
        handler.wfile.write(bomb)


def _claims(length: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        _head(handler, ("Content-Length", length))
        handler.wfile.write(b"x" * 1000)

    return answer


def _slow(*headers: tuple[str, str]) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        _head(handler, *headers)
        while True:
            handler.wfile.write(b"1\r\nx\r\n" if headers else b"x")
            time.sleep(0.05)

    return answer


def _silent(handler: BaseHTTPRequestHandler) -> None:
    _head(handler)
    handler.wfile.write(b"x")
    time.sleep(2)


def _redirect(handler: BaseHTTPRequestHandler) -> None:
    _head(handler, ("Location", handler.path), ("Content-Length", "0"), ("Connection", "close"), code=302)


def _no_http(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\0\xff" * 100)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_endless, "must have at most 33,554,432 bytes"),
        (_endless_in_chunks, "must have at most 33,554,432 bytes"),
        (_endless_gzip, "must have at most 33,554,432 bytes"),
        (_claims("99999999999"), "must have at most 33,554,432 bytes, has 99,999,999,999"),
        (_claims("1001"), "cannot be downloaded|not the expected archive"),
        (_claims("10"), "not the expected archive"),
        (_claims("many"), "not the expected archive"),
        (_claims("-5"), "not the expected archive"),
        (_slow(), "must arrive at 10,000 bytes per second"),
        (_slow(("Transfer-Encoding", "chunked")), "must arrive at 10,000 bytes per second"),
        (_silent, "cannot be downloaded"),
        (_redirect, r"cannot be downloaded \(TooManyRedirects\)"),
        (_no_http, "cannot be downloaded"),
        (lambda handler: _head(handler, code=500), r"cannot be downloaded \(HTTPError\)"),
        (lambda handler: None, "cannot be downloaded"),
    ],
)
def test_a_server_that_cannot_be_trusted(
    answering: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch, answer: Answer, message: str
):
    monkeypatch.setattr(census_download, "READ_TIMEOUT_S", 0.5)
    url = answering(answer)
    started = time.monotonic()
    with pytest.raises(DownloadError, match=message):
        fetch(url, Path("kept/census"), ROWS, 42)
    assert time.monotonic() - started < 10
    assert [p.name for p in Path("kept").iterdir()] == ["census.lock"]


@pytest.mark.parametrize(
    "url", ["", "census.zip", "ftp://127.0.0.1/a.zip", "file:///etc/passwd", "http://", "http://127.0.0.1:1/a.zip",
            f"http://{'a' * 70}.invalid/", "http://[::1/a.zip", "http://127.0.0.1:99999/a.zip"],
)  # fmt: skip
def test_an_address_that_gives_nothing(url: str):
    with pytest.raises(DownloadError, match="cannot be downloaded"):
        fetch(url, Path("kept/census"), ROWS, 42)


def test_a_chunked_response_is_read(answering: Callable[[Answer], str], tmp_path: Path):
    write_archive(tmp_path / "census.zip", dict(whole()))
    content = (tmp_path / "census.zip").read_bytes()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        _head(handler, ("Transfer-Encoding", "chunked"))
        for start in range(0, len(content), 100):
            part = content[start : start + 100]
            handler.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    fetch(answering(answer), Path("kept"), ROWS, 42)
    assert sorted(p.name for p in Path("kept").iterdir()) == [f"{name}.gz" for name in ROWS]


def test_a_progress_bar_is_drawn(served: tuple[Path, str, list[str]], capsys: pytest.CaptureFixture[str]):
    folder, url, _ = served
    write_archive(folder / "census.zip", dict(whole()))
    fetch(f"{url}/census.zip", Path("kept"), ROWS, 42)
    assert "100%" in capsys.readouterr().err


def test_the_next_download_removes_the_files_of_a_killed_one(
    served: tuple[Path, str, list[str]], answering: Callable[[Answer], str]
):
    folder, url, _ = served
    hung = answering(lambda handler: _head(handler) or time.sleep(60))
    script = (
        "from pathlib import Path; from mmoe.data.census_download import fetch\n"
        f"fetch({hung!r}, Path('c/kept'), {ROWS}, 42)"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    while not Path("c/.kept.scratch/archive.zip").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert sorted(p.name for p in Path("c").iterdir()) == [".kept.scratch", "kept.lock"]
    write_archive(folder / "census.zip", dict(whole()))
    fetch(f"{url}/census.zip", Path("c/kept"), ROWS, 42)
    assert sorted(p.name for p in Path("c").iterdir()) == ["kept", "kept.lock"]


def test_a_download_with_a_missing_file_is_repeated(served: tuple[Path, str, list[str]]):
    folder, url, asked = served
    write_archive(folder / "census.zip", dict(whole()))
    for _ in range(2):
        fetch(f"{url}/census.zip", Path("kept"), ROWS, 42)
    assert len(asked) == 1
    Path("kept/census-income.test.gz").unlink()
    fetch(f"{url}/census.zip", Path("kept"), ROWS, 42)
    assert len(list(Path("kept").iterdir())) == 2
    assert len(asked) == 2


@pytest.mark.parametrize("size", [0, 1000])
def test_a_full_disk_is_not_a_broken_archive(served: tuple[Path, str, list[str]], size: int):
    folder, url, _ = served
    write_archive(folder / "census.zip", dict(whole()))
    script = (
        "import resource; from pathlib import Path\n"
        "from mmoe.data import census_files; from mmoe.cli.exits import errors_on_one_line\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
        f"with errors_on_one_line(): census_files.find_census_files(None, 'auto', '{url}/census.zip', "
        "Path('cache'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "error: cache/census-income: File too large; files written earlier are complete\n" in done.stderr
    assert "SAMPLE" not in done.stderr
    assert [p.name for p in Path("cache").iterdir()] == ["census-income.lock"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("where", ["gzip.open", "zipfile.ZipFile"])
def test_a_disk_error_is_not_a_broken_archive(
    served: tuple[Path, str, list[str]], monkeypatch: pytest.MonkeyPatch, number: int, where: str
):
    folder, url, _ = served
    write_archive(folder / "census.zip", dict(whole()))

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(f"mmoe.data.census_archive.{where}", fail)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        fetch(f"{url}/census.zip", Path("kept/census"), ROWS, 42)
    assert (caught.value.errno, caught.value.filename) == (number, "kept/census")
    assert [p.name for p in Path("kept").iterdir()] == ["census.lock"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o755), (0o077, 0o700)])
def test_downloads_follow_the_umask(served: tuple[Path, str, list[str]], mask: int, mode: int):
    folder, url, _ = served
    write_archive(folder / "census.zip", dict(whole()))
    before = os.umask(mask)
    try:
        fetch(f"{url}/census.zip", Path("c/kept"), ROWS, 42)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (Path("c"), Path("c/kept"))} == {mode}
    assert {p.stat().st_mode & 0o777 for p in Path("c/kept").iterdir()} == {mode & 0o666}
