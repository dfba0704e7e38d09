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
    tensors = [(a.rows[s], b.rows[s]) for s in a.rows]
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


@pytest.mark.parametrize("where", [0.001, 0.3, 0.6, 0.999])
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
    if caplog.records:  # a byte between two arrays may mean nothing
        assert "corrupt" in caplog.text
    caplog.clear()
    assert equal(first, load(f"data.dir={census_dir}"))
    assert not caplog.records


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
