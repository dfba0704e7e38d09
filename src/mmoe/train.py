"""Train a network and test its best checkpoint: `python -m mmoe.train experiment=census`."""

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mmoe import CONF_DIR
from mmoe.cli import one_line_errors, remove_if_empty
from mmoe.errors import USER, Stopped, UserError, exit_code
from mmoe.training.sweep_jobs import in_sweep, run_alone


def agreed(trainer: Any, folder: Path) -> Path:
    """The first process' run folder; where no name was given, others that were started alike made theirs."""
    first = Path(trainer.strategy.broadcast(str(folder)))
    if folder != first:
        remove_if_empty(folder)
    return first


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
@one_line_errors
def main(config: DictConfig) -> None:
    """Train, then write and print the metrics of the best checkpoint."""
    started = time.perf_counter()
    # Imported here, so that --help and --cfg do not wait for torch.
    from mmoe import runs
    from mmoe.arguments import check_integers, check_seeds
    from mmoe.atomic import remove_abandoned
    from mmoe.build import build, build_callbacks, build_learner, build_loggers
    from mmoe.training import report, resume
    from mmoe.training.checkpoint_callbacks import WholeFiles
    from mmoe.training.monitors import check_callbacks, check_monitor, validates_each_epoch
    from mmoe.training.tasks import validation_metrics
    from mmoe.training.throughput import Throughput

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # their tables
    folder = Path(HydraConfig.get().runtime.output_dir)
    resumed = config.get("resume") is not None
    if resumed:
        overrides = HydraConfig.get().overrides.task
        folder, config = resume.take_up(Path(str(config.resume)), folder, overrides, config)
    elif starts_again() and runs.is_run_of(folder, config):
        resumed = True
    if resumed and (folder / "metrics.json").exists() and not resume.has_other_length(folder, config):
        with runs.locked(folder):
            remove_abandoned(folder)
            if resume.lacks_figures(folder, config):
                draw(folder, config, [])
                print(f"run folder: {os.path.relpath(folder)}")
            else:
                print(f"{os.path.relpath(folder)}: has ended before")
        return
    check_seeds(seed=config.seed)
    check_integers(1, replicas=config.replicas)
    check_seeds(**{"seed + replicas - 1": config.seed + config.replicas - 1})
    throughput = Throughput()
    callbacks = build_callbacks(config)
    own = ("best", "early_stopping") if config.replicas > 1 else ()  # replicas keep and stop by themselves
    loggers = build_loggers(config)
    for key, least in {"max_epochs": -1, "max_steps": -1, "min_epochs": 0, "min_steps": 0}.items():
        if config.trainer.get(key) is not None:
            check_integers(least, **{f"trainer.{key}": config.trainer[key]})
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if config.trainer.get(key) is not None:
            check_integers(1, **{f"trainer.{key}": config.trainer[key]})
    for key in ("callbacks", "logger", "plugins", "default_root_dir"):
        if key in config.trainer:
            raise UserError(f"trainer.{key}: is set by mmoe; leave it out")
    trainer = build(
        config,
        "trainer",
        callbacks=[*(c for name, c in callbacks.items() if name not in own), throughput],
        logger=loggers or False,
        plugins=[WholeFiles()],
        default_root_dir=folder,
    )
    if in_sweep() and trainer.strategy.launcher and trainer.world_size > 1:
        return run_alone(resume.override("resume" if resumed else "hydra.run.dir", str(folder)), resumed)
    data = build(config, "data")
    check_data(data, config.data._target_, trainer)
    check_monitor(config.monitor, config.monitor_mode, validation_metrics(data.schema.tasks))
    learner = build_learner(config, data.schema)
    learner.check_optimizer()
    if learner.follows_validations and not validates_each_epoch(trainer):
        raise UserError("learner.scheduler: ReduceLROnPlateau needs a validation in every epoch")
    check_callbacks(callbacks, learner, data.schema, trainer)

    if resumed and data.schema != runs.read_schema(folder):
        raise UserError(f"resume={folder}: its rows are no longer those of its schema.json")
    first = trainer.is_global_zero
    if first and not resumed:
        runs.start(folder, config, data.schema)
    with runs.locked(folder) if first else nullcontext(), says_how_to_go_on(folder, first):
        if first and resumed:
            resume.lengthen(folder, config)
        fit(trainer, learner, data, folder, resumed)
        folder = agreed(trainer, folder)
        epoch, monitor = load_best(trainer, learner, callbacks, folder)
        test(trainer, learner, data)
        if not first:
            return
        metrics = {
            "rows": data.schema.rows,
            "num_rows": {split: count for split, count in learner.num_rows.items() if split != "train"},
            "seed": config.seed,
            "monitor": monitor,
            "epoch": min(epoch, trainer.current_epoch),
            "epochs": trainer.current_epoch,
            "parameters": sum(p.numel() for p in learner.objective.parameters()) // config.replicas,
            "steps": trainer.global_step,
            "processes": trainer.world_size,
            "global_batch": (getattr(data, "batch_size", None) or throughput.batch_rows)
            * trainer.world_size
            * trainer.accumulate_grad_batches,
            "learning_rate": trainer.optimizers[0].defaults.get("lr"),
            "samples_per_second": throughput.samples_per_second,
            "seconds": time.perf_counter() - started,
            **report.results(learner.values),
        }
        if config.replicas > 1:
            metrics |= report.of_replicas(learner.values, config.seed, learner.best_epochs)
        learner.to(trainer.strategy.root_device)
        frame = predictions(learner, data, learner.num_rows.get("test", 0))
        runs.finish(folder, metrics, frame, report.history(learner.history, config.seed))
        report.show(folder, metrics, data.schema)
        if config.get("figures"):
            draw(folder, config, loggers)


def check_data(data: Any, target: str, trainer: Any) -> None:
    """Raise UserError unless a data module, maybe the user's own, has what is asked of it later."""
    import pytorch_lightning as pl

    from mmoe.data.schema import Schema

    if not isinstance(getattr(data, "schema", None), Schema):
        raise UserError(f"data._target_={target}: its data module must have a schema")
    for name, limit in (("val", trainer.limit_val_batches), ("test", trainer.limit_test_batches)):
        hook = f"{name}_dataloader"
        if limit and getattr(type(data), hook) is getattr(pl.LightningDataModule, hook):
            raise UserError(
                f"data._target_={target}: must have a {hook}, or give trainer.limit_{name}_batches=0"
            )


def starts_again() -> bool:
    """Whether the same command may find a run of its own: in a sweep, and when SLURM requeued the job."""
    return in_sweep() or int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def fit(trainer: Any, learner: Any, data: Any, folder: Path, resumed: bool) -> None:
    """Train, from the newest checkpoint of a run that is resumed.

    Raises:
        UserError: Lightning refuses the configuration, or training diverges. A run that did not begin leaves
            nothing.
    """
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    from mmoe import runs
    from mmoe.data.datamodule import DataModule
    from mmoe.training import resume
    from mmoe.training.divergence import Diverged, save
    from mmoe.training.lightning_speedups import flush_denormals

    first = trainer.is_global_zero
    try:
        last = resume.newest(folder, tidy=first) if resumed else None
        with flush_denormals():
            trainer.fit(learner, data, ckpt_path=last, weights_only=True)
        if first:
            resume.remove_requeued(folder)
        trainer.strategy.barrier()
    except Diverged as error:
        if not first:  # the first process says it
            raise SystemExit(USER) from None
        if not isinstance(data, DataModule):
            raise
        path = folder / "diverged.parquet"
        data.encode = None  # the rows of the file
        save(error, data.train_dataloader(), data.schema, path)
        raise UserError(f"{error}; the batch's rows are in {os.path.relpath(path)}") from None
    except (MisconfigurationException, UserError) as error:
        if not first:
            raise SystemExit(USER) from None
        if not resumed and trainer.global_step == 0:
            runs.forget(folder)
        if isinstance(error, UserError):
            raise
        raise UserError(f"trainer: {error}") from error


def load_best(
    trainer: Any, learner: Any, callbacks: Mapping[str, Any], folder: Path
) -> tuple[int, str | None]:
    """Give the learner the weights of the best epoch, which are kept as best.ckpt.

    Where no validation chose one, as with limit_val_batches=0, those are the last weights.

    Returns:
        The epoch, from 1, and the metric that chose it; None where none did.
    """
    from mmoe import runs
    from mmoe.atomic import write

    best = folder / "checkpoints/best.ckpt"
    chosen = getattr(callbacks["best"], "best_model_path", "")
    if learner.stacked_dims:
        learner.take_the_best()
    if learner.stacked_dims or not chosen:
        trainer.save_checkpoint(best)
    elif trainer.is_global_zero and Path(chosen) != best:
        write(best, lambda scratch: shutil.copyfile(chosen, scratch))
    trainer.strategy.barrier()
    stored = runs.load_checkpoint(best)
    runs.load_state(learner, stored["state_dict"], best)
    was_chosen = bool(learner.best_epoch.any() if learner.stacked_dims else chosen)
    return int(stored["epoch"]) + 1, getattr(callbacks["best"], "monitor", None) if was_chosen else None


def test(trainer: Any, learner: Any, data: Any) -> None:
    """Compute the metrics of the validation and the test rows, unless the user limits them to none."""
    learner.values.clear()
    loggers, trainer.loggers = trainer.loggers, []  # the epoch's validation was logged before
    if trainer.limit_val_batches:
        trainer.validate(learner, data, verbose=False)
    trainer.loggers = loggers
    if trainer.limit_test_batches:
        trainer.test(learner, data, verbose=False)


def predictions(learner: Any, data: Any, num_rows: int) -> Any:
    """The frame of predictions.parquet: the first `num_rows` test rows, those that were tested."""
    import torch

    from mmoe.data.datamodule import DataModule, RowLoader
    from mmoe.data.encode import Rows
    from mmoe.training import report

    if not num_rows:
        return None
    is_ours = isinstance(data, DataModule)
    if is_ours:  # all rows, not the share of a process
        loader: Any = RowLoader(data.dataset.splits["test"], data.eval_batch_size)
    else:
        loader = data.test_dataloader()
    batches, count = [], 0
    for batch in loader:
        batches.append(Rows(*(tensor[..., : num_rows - count, :] for tensor in batch)))
        count += batches[-1].labels.shape[-2]
        if count == num_rows:
            break
    labels = torch.cat([batch.labels for batch in batches], dim=-2).cpu()
    positions = data.dataset.positions["test"][:count] if is_ours else torch.arange(count)
    return report.predictions(data.schema.tasks, positions, labels, learner.predict(batches))


def draw(folder: Path, config: DictConfig, loggers: Sequence[Any]) -> None:
    """Draw the figures of a run that has ended, for its folder and for loggers that show them."""
    from mmoe.analysis.figures import write_all
    from mmoe.build import packages
    from mmoe.training import report

    report.log_figures(loggers, write_all(folder, trust=packages(config)))


@contextmanager
def says_how_to_go_on(folder: Path, says: bool) -> Iterator[None]:
    """After a signal, say how to go on with the run in a folder, and exit with the signal's code."""
    from mmoe.training import resume

    try:
        yield
    except (KeyboardInterrupt, Stopped) as stop:
        if says and (folder / "config.yaml").exists():
            print(f"stopped; go on with: {resume.command(folder)}", flush=True)
        raise SystemExit(exit_code(stop)) from None


if __name__ == "__main__":
    main()
