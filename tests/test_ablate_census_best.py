"""The script that leaves out the parts of `census_best`, one at a time."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Result
from omegaconf import OmegaConf

from mmoe.intervals import half_interval


@pytest.mark.slow
def test_each_part_is_left_out_alone(script: Callable[..., Result]):
    small = ["splits=0,1", "seeds=3", "folder=work", "out=out", "data.source=sample", "trainer.max_epochs=2"]
    done = script("ablate_census_best", *small, "+trainer.limit_train_batches=3")
    assert done.code == 0, done.err
    runs = pd.read_csv("out/runs.csv")
    assert list(runs["split"].unique()) == [0, 1]
    assert set(runs["seed"]) == {3}
    assert len(runs) == 2 * 7

    # Each training differs from the whole one by its own part alone.
    whole = OmegaConf.load("work/split1-seed3/census_best/config.yaml")
    assert whole.data.split_seed == 1
    assert whole.seed == 3
    for folder in Path("work/split1-seed3").iterdir():
        config = OmegaConf.load(folder / "config.yaml")
        if folder.name != "census_best":
            assert OmegaConf.select(config, folder.name) != OmegaConf.select(whole, folder.name)
            OmegaConf.update(config, folder.name, OmegaConf.select(whole, folder.name))
        config.learner.scheduler.T_max = whole.learner.scheduler.T_max
        for key in ("data", "inputs", "model", "objective", "learner", "trainer", "seed"):
            assert config[key] == whole[key], key

    change = runs.pivot(index="split", columns="without", values="income_test_auroc")
    change = change["target statistics"] - change["census_best"]
    (line,) = [
        line for line in Path("out/ablation.md").read_text().splitlines() if "target statistics" in line
    ]
    assert f" | {change.mean():+.4f} ± {half_interval(change):.4f} | " in line


@pytest.mark.parametrize(
    ("seeds", "rule"),
    [("1,x", "integers of at least 0"), ("1,1", "different integers"), ("", "integers of at least 0")],
)
def test_seeds_must_be_different_integers(script: Callable[..., Result], seeds: str, rule: str):
    done = script("ablate_census_best", f"seeds={seeds}")
    assert done.code == 2
    assert done.err == f"error: seeds={seeds}: must be {rule}\n"
