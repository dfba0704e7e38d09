import functools
import gzip
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import config, sample_lines

from mmoe.build import build
from mmoe.data.census_files import NAMES, OFFICIAL_ROWS
from mmoe.data.download import DownloadError, fetch

ROWS = {"census-income.data": 5, "census-income.test": 3}


def archive(path: Path, files: dict[str, bytes]) -> None:
    """UCI's layout: a zip that holds census.tar.gz, which holds the files."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("census.tar.gz", inner.getvalue())
        outer.writestr("census-income.names", "| names")


def lines(count: int, name: str = "census-income.data") -> bytes:
    rows = sample_lines(name)
    whole, rest = divmod(count, len(rows))
    return "".join(f"{row}\n" for row in rows * whole + rows[:rest]).encode("latin-1")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """A folder, the address it is served at, and the paths that were asked for."""
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
    archive(
        folder / "census.zip",
        {NAMES[k]: lines(OFFICIAL_ROWS[k], NAMES[k]) for k in NAMES} | {"census-income.names": b"|"},
    )
    overrides = ["data.source=official", f"data.url={url}/census.zip"]
    dataset = build(config(*overrides), "data").dataset
    assert dataset.schema.rows == "official"
    assert dataset.schema.num_rows == {"train": 199_523, "val": 49_881, "test": 49_881}
    tensors = [tensor for rows in dataset.splits.values() for tensor in rows]
    assert sum(tensor.nbytes for tensor in tensors) <= 60_000_000
    assert build(config(*overrides), "data").schema == dataset.schema
    assert len(asked) == 1


def test_what_was_fetched_is_what_was_served(served: tuple[Path, str, list[str]], tmp_path: Path):
    folder, url, _ = served
    content = {name: lines(rows, name) for name, rows in ROWS.items()}
    archive(folder / "census.zip", content)
    fetch(f"{url}/census.zip", tmp_path / "kept", ROWS, 42)
    assert {p.name: gzip.decompress(p.read_bytes()) for p in (tmp_path / "kept").iterdir()} == {
        f"{name}.gz": text for name, text in content.items()
    }


def _one_row_less(path: Path) -> None:
    archive(path, {name: lines(rows - 1, name) for name, rows in ROWS.items()})


def _one_field_more(path: Path) -> None:
    archive(path, {name: lines(rows, name)[:-1] + b", x\n" for name, rows in ROWS.items()})


def _one_file_less(path: Path) -> None:
    archive(path, {"census-income.data": lines(5)})


def _a_page(path: Path) -> None:
    path.write_text("<html>try again later</html>")


def _cut_off(path: Path) -> None:
    _one_row_less(path)
    path.write_bytes(path.read_bytes()[:-300])


def _another_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as outer:
        outer.writestr("adult.data", "39, State-gov")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_one_row_less, r"census-income\.data: must have 5 rows, has 4"),
        (_one_field_more, r"census-income\.data, line 5: must have 42 fields, has 43"),
        (_one_file_less, r"census-income\.test: not in the archive"),
        (_a_page, "not the archive"),
        (_cut_off, "not the archive"),
        (_another_archive, "not the archive"),
        (lambda path: None, r"cannot be downloaded"),
    ],
)
def test_nothing_else_is_kept(
    served: tuple[Path, str, list[str]], tmp_path: Path, make: Callable[[Path], None], message: str
):
    folder, url, _ = served
    make(folder / "census.zip")
    with pytest.raises(DownloadError, match=message):
        fetch(f"{url}/census.zip", tmp_path / "kept" / "census", ROWS, 42)
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["census.lock"]
