"""Starting from the weights of another run."""

from pathlib import Path

import pytest
import torch
from conftest import Command

import mmoe
from mmoe.training import checkpoints

QUICK = ["experiment=smoke", "logger=none", "trainer.max_epochs=1", "learner.optimizer.lr=0.0"]


def weights(folder: Path | str) -> dict[str, torch.Tensor]:
    return checkpoints.load(Path(folder) / "checkpoints/best.ckpt")["state_dict"]


def test_all_weights_of_the_same_network_are_taken(train: Command, smoke_run: Path):
    done = train(*QUICK, f"init_from={smoke_run}", "seed=7", "hydra.run.dir=run")
    assert done.code == 0, done.err
    theirs, ours = weights(smoke_run), weights("run")
    assert f"took {len(ours)} of {len(ours)} tensors" in done.out
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert mmoe.load("run").config.init_from == str(smoke_run)


def test_other_shapes_start_at_random(train: Command, smoke_run: Path):
    done = train(*QUICK, f"init_from={smoke_run}", "features=all", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert "not taken: model.weight" in done.out
    theirs, ours = weights(smoke_run), weights("run")
    name = "objective.network.model.towers.0.weight"
    assert torch.equal(ours[name], theirs[name])
    assert train("resume=run", "trainer.max_epochs=2").code == 0  # takes nothing again


def test_statistics_of_other_rows_are_not_taken(train: Command, smoke_run: Path):
    """A checkpoint holds only what was learned. Bins and means are those of a run's own schema."""
    assert set(weights(smoke_run)) == {
        f"objective.network.{name}" for name, _ in mmoe.load(smoke_run).network().named_parameters()
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["init_from=none"], "error: init_from=none: "),
        (["init_from=RUN", "replicas=2"], "needs replicas=1 in both runs"),
    ],
)
def test_runs_that_cannot_be_used(train: Command, smoke_run: Path, overrides: list[str], message: str):
    given = [text.replace("RUN", str(smoke_run)) for text in overrides]
    done = train(*QUICK, *given, "hydra.run.dir=run")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert not Path("run").exists()
