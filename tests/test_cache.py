import errno
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import config

from mmoe.build import build
from mmoe.data import cache, census
from mmoe.data.splits import Dataset
from mmoe.data.table_data import TableData
from mmoe.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")
Change = Callable[[dict[str, np.ndarray]], object]


def load(*overrides: str) -> Dataset:
    return build(config(*overrides), "data").dataset


def entries() -> list[Path]:
    return sorted(Path("cache").glob("*.npz"))


def equal(a: Dataset, b: Dataset) -> bool:
    tensors = [(a.splits[s][:3], b.splits[s][:3]) for s in a.splits]
    return a.schema == b.schema and all(
        x.dtype == y.dtype and torch.equal(x, y) for p, q in tensors for x, y in zip(p, q, strict=True)
    )


def test_the_files_are_read_only_once(census_dir: Path, monkeypatch: pytest.MonkeyPatch):
    first = load(f"data.dir={census_dir}")
    monkeypatch.setattr(census, "read", None)
    assert equal(first, load(f"data.dir={census_dir}", "data.batch_size=7", "seed=3"))
    assert len(entries()) == 1


def test_the_order_of_columns_is_kept(tmp_path: Path):
    """Other columns in the cache would be those of another network."""
    rows = pd.DataFrame({"a": [1.0, 2.0] * 50, "b": [5.0, 6.0] * 50, "y": [0, 1] * 50})
    rows.to_csv("rows.csv", index=False)
    given = {"train": "rows.csv", "test": {"fraction": 0.2}, "validation": {"fraction": 0.2}}
    given |= {"tasks": {"y": {"column": "y"}}, "cache_dir": str(tmp_path)}
    for names in (["a", "b"], ["b", "a"], ["a", "b"]):
        columns = dict.fromkeys(names, "numeric")
        data = TableData(**given, columns=columns)
        assert [column.name for column in data.dataset.schema.numeric] == names


def test_unknown_labels_and_weights_are_stored(census_dir: Path, monkeypatch: pytest.MonkeyPatch):
    masks = ["+data.tasks.marital.where={sex: [Female]}", "+data.tasks.income.weight=instance_weight"]
    first = load(f"data.dir={census_dir}", *masks)
    monkeypatch.setattr(census, "read", None)
    again = load(f"data.dir={census_dir}", *masks)
    for split, rows in first.splits.items():
        assert not rows.known[:, 1].all()
        assert torch.equal(rows.known, again.splits[split].known)
        assert torch.equal(rows.weights, again.splits[split].weights)
    assert len(entries()) == 1


def test_other_options_and_other_files_get_their_own_entry(census_dir: Path):
    load(f"data.dir={census_dir}")
    load(f"data.dir={census_dir}", "data.num_bins=4")
    load(f"data.dir={census_dir}", "data.features=[age]")
    load(f"data.dir={census_dir}", "data.split_seed=1")
    path = census_dir / "census-income.test"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    load(f"data.dir={census_dir}")
    assert len(entries()) == 5


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
def test_a_corrupt_entry_is_rebuilt_with_a_warning(
    census_dir: Path, caplog: pytest.LogCaptureFixture, where: float
):
    first = load(f"data.dir={census_dir}")
    (path,) = entries()
    content = bytearray(path.read_bytes())
    content[int(len(content) * where)] ^= 0xFF
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = load(f"data.dir={census_dir}")
    assert equal(first, again)
    assert "the cached rows are corrupt" in caplog.text
    caplog.clear()
    assert equal(first, load(f"data.dir={census_dir}"))
    assert not caplog.records


@pytest.mark.parametrize("offset", [*range(0, 60, 7), *range(-60, 0, 7)])
def test_an_entry_with_a_corrupt_zip_header_is_rebuilt(census_dir: Path, offset: int):
    first = load(f"data.dir={census_dir}")
    (path,) = entries()
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)
    assert equal(first, load(f"data.dir={census_dir}"))


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_entries_follow_the_umask(census_dir: Path, mask: int, mode: int):
    before = os.umask(mask)
    try:
        load(f"data.dir={census_dir}")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in Path("cache").iterdir()} == {mode}


@pytest.mark.parametrize("where", ["file", "file/sub", "loop", "loop/sub", "dangling", "n" * 300])
@pytest.mark.parametrize("source", ["", "data.source=auto"])
def test_a_cache_directory_that_is_not_a_directory(census_dir: Path, where: str, source: str):
    Path("file").touch()
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("nowhere")
    with pytest.raises(UserError, match=rf"^data\.cache_dir={where}: must be a writable directory \("):
        load(source or f"data.dir={census_dir}", f"data.cache_dir={where}")


@pytest.mark.parametrize("option", ["data.cache_dir", "data.dir"])
def test_the_home_directory_of_an_unknown_user(option: str):
    with pytest.raises(UserError, match=rf"^{option}=~nobody-here/x: ~ must be followed by the name"):
        load(f"{option}='~nobody-here/x'")


def test_an_error_of_the_build_is_not_blamed_on_the_cache(tmp_path: Path):
    def fail() -> Dataset:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "rows.csv")

    with pytest.raises(FileNotFoundError, match=r"rows\.csv"):
        cache.load_or_build(tmp_path / "c", "x", {}, fail)


def test_a_valid_entry_is_read_without_the_lock(census_dir: Path, monkeypatch: pytest.MonkeyPatch):
    first = load(f"data.dir={census_dir}")
    before = {path: path.stat().st_mtime_ns for path in Path("cache").rglob("*")}

    def fail(*_: object) -> None:
        raise AssertionError("locked or written")

    monkeypatch.setattr(cache, "FileLock", fail)
    monkeypatch.setattr(cache, "write", fail)
    assert equal(first, load(f"data.dir={census_dir}"))
    assert {path: path.stat().st_mtime_ns for path in Path("cache").rglob("*")} == before


def set_value(name: str, where: tuple[int, ...], value: float) -> Change:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name][where] = value

    return change


def replace(name: str, to: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = to(arrays[name])

    return change


def in_schema(old: str, new: str) -> Change:
    def change(arrays: dict[str, np.ndarray]) -> None:
        text = str(arrays["schema"])
        assert old in text
        arrays["schema"] = np.array(text.replace(old, new, 1))

    return change


def swap_levels(arrays: dict[str, np.ndarray]) -> None:
    schema = json.loads(str(arrays["schema"]))
    schema["categorical"][0]["levels"].reverse()
    arrays["schema"] = np.array(json.dumps(schema))


def without(name: str) -> Change:
    return lambda arrays: arrays.pop(name)


def without_a_split(arrays: dict[str, np.ndarray]) -> None:
    for name in [name for name in arrays if name.startswith("test.")]:
        del arrays[name]


@pytest.mark.parametrize(
    "change",
    [
        set_value("train.levels", (3, 0), 30_000),
        set_value("train.levels", (3, 0), -1),
        set_value("val.levels", (3, 1), 0),  # a level of the first column
        set_value("test.numbers", (3, 0), np.nan),
        set_value("train.numbers", (3, 0), -np.inf),
        set_value("train.labels", (3, 1), 2),
        set_value("val.labels", (3, 0), np.nan),
        set_value("train.positions", (0,), -1),
        set_value("train.positions", (0,), 1200),
        set_value("val.positions", (0,), 600),
        replace("train.levels", lambda x: x[:-1]),
        replace("train.levels", lambda x: x[:, :-1]),
        replace("train.levels", lambda x: x.astype(np.float32)),
        replace("train.levels", lambda x: x.astype(object)),
        replace("train.levels", lambda x: x.astype(">i2")),
        replace("train.levels", lambda x: x.astype("U9")),
        replace("train.numbers", lambda x: x.astype(np.float64)),
        replace("train.labels", lambda x: x.T),
        replace("train.positions", lambda x: x[:-1]),
        replace("train.positions", lambda x: x.astype(np.float32)),
        replace("schema", lambda x: np.array("{}")),
        replace("schema", lambda x: np.array(1)),
        replace("schema", lambda x: np.array([x, x])),
        replace("schema", lambda x: np.array(str(x)[:-9])),
        in_schema('"std": ', '"std": 1'),
        in_schema('"income"', '"outcome"'),
        swap_levels,
        without_a_split,
        *map(without, ("schema", "digest", "train.levels", "val.labels", "test.positions")),
        dict.clear,
    ],
)
def test_an_entry_with_invalid_content_is_rebuilt_with_a_warning(
    census_dir: Path, caplog: pytest.LogCaptureFixture, change: Change
):
    first = load(f"data.dir={census_dir}")
    (path,) = entries()
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)
    assert equal(first, load(f"data.dir={census_dir}"))
    assert caplog.text.count(f"{path.name}: the cached rows are corrupt (") == 1
    caplog.clear()
    assert equal(first, load(f"data.dir={census_dir}"))
    assert not caplog.records


def test_an_entry_of_other_options_under_the_same_name_is_rebuilt(
    census_dir: Path, caplog: pytest.LogCaptureFixture
):
    first = load(f"data.dir={census_dir}")
    (path,) = entries()
    load(f"data.dir={census_dir}", "data.split_seed=1")
    (other,) = set(entries()) - {path}
    other.replace(path)
    assert equal(first, load(f"data.dir={census_dir}"))
    assert "the cached rows are corrupt" in caplog.text


def test_a_file_of_another_kind_is_rebuilt(census_dir: Path, caplog: pytest.LogCaptureFixture):
    first = load(f"data.dir={census_dir}")
    (path,) = entries()
    huge = np.lib.format.header_data_from_array_1_0(np.zeros(3)) | {"shape": (10**17,)}
    with zipfile.ZipFile("huge.npz", "w") as file, file.open("train.levels.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, huge)
    np.save("array.npy", np.zeros(3))
    for source in ("huge.npz", "array.npy"):
        path.write_bytes(Path(source).read_bytes())
        caplog.clear()
        assert equal(first, load(f"data.dir={census_dir}"))
        assert "the cached rows are corrupt" in caplog.text


def test_a_truncated_or_empty_entry_is_rebuilt(census_dir: Path, caplog: pytest.LogCaptureFixture):
    first = load(f"data.dir={census_dir}")
    (path,) = entries()
    for content in (path.read_bytes()[:5000], b""):
        path.write_bytes(content)
        caplog.clear()
        assert equal(first, load(f"data.dir={census_dir}"))
        assert f"{path.name}: the cached rows are corrupt" in caplog.text


def test_a_failed_build_leaves_no_entry(tmp_path: Path):
    def fail() -> Dataset:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.load_or_build(tmp_path / "c", "x", {}, fail)
    assert [p.suffix for p in (tmp_path / "c").iterdir()] == [".lock"]
