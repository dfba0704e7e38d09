import logging
from pathlib import Path

import pytest
import torch
from conftest import config

from mmoe.build import build
from mmoe.data import cache, census
from mmoe.data.encode import Dataset


def load(*overrides: str) -> Dataset:
    return build(config(*overrides), "data").dataset


def entries() -> list[Path]:
    return sorted(Path("cache").glob("*.npz"))


def equal(a: Dataset, b: Dataset) -> bool:
    tensors = [(a.splits[s], b.splits[s]) for s in a.splits]
    return a.schema == b.schema and all(
        x.dtype == y.dtype and torch.equal(x, y) for p, q in tensors for x, y in zip(p, q, strict=True)
    )


def test_a_second_time_nothing_is_read(census_dir: Path, monkeypatch: pytest.MonkeyPatch):
    first = load(f"data.dir={census_dir}")
    monkeypatch.setattr(census, "read", None)
    assert equal(first, load(f"data.dir={census_dir}", "data.batch_size=7", "seed=3"))
    assert len(entries()) == 1


def test_other_options_or_files_are_another_entry(census_dir: Path):
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
def test_any_byte_of_the_zip_headers_may_change(census_dir: Path, offset: int):
    first = load(f"data.dir={census_dir}")
    (path,) = entries()
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)
    assert equal(first, load(f"data.dir={census_dir}"))


def test_entries_can_be_shared_between_users(census_dir: Path):
    load(f"data.dir={census_dir}")
    assert entries()[0].stat().st_mode & 0o777 == 0o644


def test_a_cache_that_cannot_be_written(census_dir: Path):
    Path("file").write_text("")
    with pytest.raises(
        ValueError, match=r"^data\.cache_dir=file/sub: must be a directory that can be written"
    ):
        load(f"data.dir={census_dir}", "data.cache_dir=file/sub")


def test_a_truncated_or_empty_entry_is_rebuilt(census_dir: Path, caplog: pytest.LogCaptureFixture):
    first = load(f"data.dir={census_dir}")
    (path,) = entries()
    for content in (path.read_bytes()[:5000], b""):
        path.write_bytes(content)
        caplog.clear()
        assert equal(first, load(f"data.dir={census_dir}"))
        assert f"{path.name}: the cached rows are corrupt" in caplog.text


def test_what_fails_to_build_leaves_nothing(tmp_path: Path):
    def fail() -> Dataset:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.cached(tmp_path / "c", "x", {}, fail)
    assert [p.suffix for p in (tmp_path / "c").iterdir()] == [".lock"]
