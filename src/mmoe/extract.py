"""Turn one replica of a run into an ordinary run folder: `python -m mmoe.extract run=runs/... replica=3`."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from mmoe.checks.arguments import check_integers
from mmoe.cli.command import command
from mmoe.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from mmoe.run import Run


@command("extract")
def main(config: DictConfig) -> None:
    """Write the new run folder and print its path."""
    from mmoe.run import load

    check_integers(0, replica=config.replica)
    extract(load(str(config.run), config.trust), config.replica, Path(str(config.out)))
    print(f"run folder: {config.out}")


def extract(run: "Run", replica: int, out: Path) -> None:
    """Write a replica to the run folder `out`, as if it had been trained alone.

    `out` becomes a run folder only when it is complete.

    Raises:
        UserError: the run has no such replica, or `out` holds a run already.
    """
    from mmoe.training import checkpoints, run_folder, stored_config

    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: must be a folder")
    run_folder.check_holds_no_run(out)
    network = run.network("best", replica)
    stored = checkpoints.load(run.folder / checkpoints.BEST)
    metrics = {k: v for k, v in run.metrics.items() if k not in ("runs", "replicas", "std", "half_interval")}
    replica_metrics = run.metrics["runs"][replica]
    history = run.history
    if len(history):
        history = history[history["seed"] == replica_metrics["seed"]]
    config = OmegaConf.create(stored_config.read_plain_config(run.folder))
    config.replicas, config.seed = 1, replica_metrics["seed"]
    if "replicas" in config.data:  # each replica has different rows
        config.data.replicas, config.data.seed = 1, config.data.seed + replica
    text = stored_config.to_yaml(config)
    checkpoint = {key: stored[key] for key in ("pytorch-lightning_version", "global_step")}
    checkpoint |= {
        "epoch": replica_metrics["epoch"] - 1,
        "state_dict": {f"objective.network.{k}": v for k, v in network.state_dict().items()},
    }
    scratch = out.resolve().with_name(f".{out.resolve().name}.part")  # out may be `.`
    shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
    try:
        run_folder.start(scratch, text, run.schema)
        checkpoints.save(scratch / checkpoints.BEST, checkpoint)
        predictions = replica_predictions(run, replica) if "test" in replica_metrics else None
        run_folder.finish(
            scratch, metrics | replica_metrics, [] if predictions is None else [predictions], history
        )
        if out.is_dir():  # a rename cannot replace the working directory, or a folder that holds files
            shutil.copytree(scratch, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("config.yaml"))
            stored_config.write_config(out, text)  # last, because it makes the folder a run folder
        else:
            scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def replica_predictions(run: "Run", replica: int) -> "pd.DataFrame":
    """Select a replica's predictions and name the columns as in a run without replicas."""
    frame = run.predictions.rename(columns=lambda name: name.removesuffix(f"_{replica}"))
    columns = ["row"]
    for task in run.schema.tasks:
        columns += [f"{task.name}_label", *task.prediction_columns]
    return frame[columns]


if __name__ == "__main__":
    main()
