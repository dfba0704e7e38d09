"""Peak memory and seconds of encoding and training, by number of rows."""

from pathlib import Path
from typing import Any

from options import stop

from benchmarks.measurement import Bench, read_bytes
from mmoe.data.census_files import FILE_NAMES


def measure(bench: Bench, folder: Path) -> dict[str, Any]:
    """Peak memory and seconds of a training epoch: first with raw files to encode, then with cached rows."""
    given = bench.data_dir
    files = {
        name: next(Path(given).glob(f"{name}*"), None) if given else None for name in FILE_NAMES.values()
    }
    if None in files.values():
        stop(f"data.dir={given}: must hold {' and '.join(files)}")
    found = []
    for repeats in bench.integers("repeats"):
        rows = folder / f"rows{repeats}"
        rows.mkdir()
        for name, file in files.items():
            write_copies(file, rows / name, repeats)
        options = [f"data.dir={rows}", f"data.cache_dir={rows}", "trainer.max_epochs=1"]
        line: dict[str, float] = {"repeats": repeats}
        line["rows"] = sum(path.read_bytes().count(b"\n") for path in rows.iterdir())
        for name in ("raw files", "encoded rows"):
            _, seconds, memory = bench.train(folder, *options, "data.batch_size=8192")
            line |= {f"{name}: MB": memory, f"{name}: seconds": seconds}
        line["encoded rows on disk: MB"] = sum(path.stat().st_size for path in rows.glob("*.npz")) / 2**20
        found.append(line)
    return {"lines": found}


def write_copies(source: Path, target: Path, count: int) -> None:
    """Write the content of a plain or gzipped file `count` times."""
    content = read_bytes(source)
    with target.open("wb") as out:
        for _ in range(count):
            out.write(content)
