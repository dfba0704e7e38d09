"""The script that takes MMoE's training back to what the paper may have used."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Result
from omegaconf import OmegaConf


@pytest.mark.slow
def test_each_step_keeps_the_changes_before_it(script: Callable[..., Result]):
    small = ["runs=2", "folder=work", "out=out", "data.source=sample", "trainer.max_epochs=3"]
    done = script("ablate_census", *small, "+trainer.limit_train_batches=5")
    assert done.code == 0, done.err
    runs = pd.read_csv("out/runs.csv")
    steps = list(runs["step"].dropna().unique())
    configs = [OmegaConf.load(f"work/{number}/config.yaml") for number in range(15)]
    assert len(runs) == 2 * len(configs)
    assert runs["income_auroc"].notna().all()
    encoders = [config.inputs.numeric._target_.rpartition(".")[2] for config in configs]
    assert encoders[1:] == ["Standardize"] * 8 + ["MinMax"] * 3 + ["Unscaled"] * 3
    optimizers = [config.learner.optimizer._target_.rpartition(".")[2] for config in configs]
    assert optimizers[6:] == ["Adam", "Adagrad", "SGD"] * 3
    assert [config.learner.optimizer.lr for config in configs[5:]] == [1e-3, *[1e-3, 0.05, 0.05] * 3]
    assert {config.learner.scheduler for config in configs[5:]} == {None}
    assert set(runs.loc[runs["step"].isin(steps[6:]), "epoch"]) == {3}  # the last one
    text = Path("out/ablation.md").read_text()
    by_scaling = runs.groupby(["numbers", "optimizer"])["income_auroc"].mean()
    assert len(by_scaling) == 9
    for (numbers, optimizer), mean in by_scaling.items():
        assert f"| {numbers} | {optimizer} | {mean:.4f} ± " in text
    means = runs.groupby("step", sort=False)["income_auroc"].mean()
    lines = text.splitlines()
    for step, mean in means.items():
        (line,) = [line for line in lines if line.startswith(f"| {step} |")]
        assert line.split(" | ")[1] == f"{mean:.4f}"
    change = means.iloc[1] - means.iloc[0]
    assert f" | {change:+.4f} ± " in next(line for line in lines if line.startswith(f"| {steps[1]} |"))

    # Other settings need another folder.
    done = script("ablate_census", *small, "+trainer.limit_train_batches=5", "experiment=census_paper")
    assert done.code == 2
    assert done.err.startswith("error: work: holds results of other settings: experiment; ")
