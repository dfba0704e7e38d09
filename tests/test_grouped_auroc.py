"""AUROC within groups."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import Command
from sklearn.metrics import roc_auc_score

from mmoe.training.grouped_auroc import grouped_auroc


def test_it_is_the_mean_of_the_groups_weighted_by_rows():
    random = np.random.default_rng(0)
    group = pd.Series(random.integers(0, 30, 2000)).astype(str)
    label = random.integers(0, 2, 2000)
    probability = (label * 0.3 + random.random(2000)).round(1)  # with ties
    label[group == "7"] = 1  # one class: does not count
    values, weights = [], []
    for name in sorted(set(group) - {"7"}):
        rows = (group == name).to_numpy()
        values.append(roc_auc_score(label[rows], probability[rows]))
        weights.append(rows.sum())
    found = grouped_auroc(probability, label, group)
    assert found == pytest.approx(np.average(values, weights=weights))
    one = pd.Series(["a"] * 2000)
    assert grouped_auroc(probability, label, one) == pytest.approx(roc_auc_score(label, probability))
    missing = group.where(group != "3")
    kept = (group != "3").to_numpy()
    assert grouped_auroc(probability, label, missing) == grouped_auroc(
        probability[kept], label[kept], group[kept].reset_index(drop=True)
    )
    assert math.isnan(grouped_auroc(probability, np.ones(2000), group))


def test_evaluate_groups_by_a_column(command: Callable[[str], Command], smoke_run: Path):
    done = command("evaluate")(f"run={smoke_run}", "resamples=5", "group_by=education", "out=out.json")
    assert done.code == 0, done.err
    metrics = json.loads(Path("out.json").read_text())["checkpoints"][0]["metrics"]
    assert 0.5 < metrics["income"]["auroc_by_education"] < 1
    assert "education" in done.out
    wrong = command("evaluate")(f"run={smoke_run}", "group_by=none")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
