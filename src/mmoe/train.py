"""Train a network and test its best checkpoint: `python -m mmoe.train experiment=census`."""

import logging
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mmoe import CONF_DIR
from mmoe.cli import one_line_errors, remove_if_empty
from mmoe.sweeping import INTERRUPTED, in_sweep, run_alone


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
    from mmoe import report, runs
    from mmoe.build import build, build_callbacks, build_learner
    from mmoe.checkpointing import Interrupted, WholeFiles
    from mmoe.checks import check_integers
    from mmoe.data.datamodule import RowLoader
    from mmoe.divergence import Diverged, save
    from mmoe.overhead import flush_denormals
    from mmoe.resuming import newest, take_up
    from mmoe.throughput import Throughput

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # their tables
    folder = Path(HydraConfig.get().runtime.output_dir)
    resumed = bool(config.get("resume"))
    if resumed:
        folder, config = take_up(
            Path(config.resume), folder, HydraConfig.get().overrides.task, config.trainer
        )
    elif in_sweep() and runs.is_run_of(folder, config):  # the sweep is run again
        if (folder / "metrics.json").exists():
            print(f"{os.path.relpath(folder)}: has ended before")
            return
        folder, config = take_up(folder, folder, (), config.trainer)
        resumed = True
    check_integers(0, seed=config.seed)
    check_integers(1, replicas=config.replicas)
    throughput = Throughput()
    callbacks = build_callbacks(config)
    logger = build(config, "logger") if config.get("logger") else False
    trainer = build(
        config, "trainer", callbacks=[*callbacks.values(), throughput], logger=logger, plugins=[WholeFiles()]
    )
    check_integers(-1, **{"trainer.max_epochs": trainer.max_epochs})
    if in_sweep() and trainer.strategy.launcher and trainer.world_size > 1:
        return run_alone(folder, resumed)
    data = build(config, "data")
    report.check_monitor(config.monitor, config.monitor_mode, data.schema)
    learner = build_learner(config, data.schema)

    if resumed and data.schema != runs.read(folder)[1]:
        raise ValueError(f"resume={folder}: its rows are no longer those of its schema.json")
    if trainer.is_global_zero and not resumed:
        runs.start(folder, config, data.schema)
    with runs.locked(folder) if trainer.is_global_zero else nullcontext():
        try:
            last = newest(folder) if resumed else None
            with flush_denormals():
                trainer.fit(learner, data, ckpt_path=last, weights_only=True)
        except Interrupted:
            if trainer.is_global_zero:
                print(f"stopped; go on with: python -m mmoe.train resume={os.path.relpath(folder)}")
            raise SystemExit(INTERRUPTED) from None
        except Diverged as error:
            if not trainer.is_global_zero:
                raise SystemExit(2) from None
            path = folder / "diverged.parquet"
            data.encode = None  # the rows of the file
            save(error, data.train_dataloader(), data.schema, path)
            raise ValueError(f"{error}; the batch's rows are in {os.path.relpath(path)}") from None
        folder = agreed(trainer, folder)
        best = folder / "checkpoints/best.ckpt"
        if config.replicas > 1:
            learner.take_the_best()
        if config.replicas > 1 or not callbacks["best"].best_model_path:  # max_steps before a validation
            trainer.save_checkpoint(best)
        stored = runs.load_checkpoint(best)
        learner.load_state_dict(stored["state_dict"])
        loggers, trainer.loggers = trainer.loggers, []  # the epoch's validation was logged before
        trainer.validate(learner, data, verbose=False)
        trainer.loggers = loggers
        trainer.test(learner, data, verbose=False)
        if not trainer.is_global_zero:
            return
        metrics = {
            "rows": data.schema.rows,
            "seed": config.seed,
            "monitor": config.monitor,
            "epoch": min(stored["epoch"] + 1, trainer.current_epoch),
            "epochs": trainer.current_epoch,
            "parameters": sum(p.numel() for p in learner.objective.parameters()) // config.replicas,
            "steps": trainer.global_step,
            "processes": trainer.world_size,
            "global_batch": data.batch_size * trainer.world_size * trainer.accumulate_grad_batches,
            "learning_rate": trainer.optimizers[0].defaults["lr"],
            "samples_per_second": throughput.samples_per_second,
            "seconds": time.perf_counter() - started,
            **report.results(learner.values),
        }
        if config.replicas > 1:
            metrics |= report.of_replicas(learner.values, config.seed, learner.best_epoch)
        learner.to(trainer.strategy.root_device)
        rows = RowLoader(data.dataset.splits["test"], config.data.eval_batch_size)
        predictions = report.predictions(data.dataset, "test", learner.predict(rows))
        runs.finish(folder, metrics, predictions, report.history(learner.history, config.seed))
    report.show(folder, metrics, data.schema)
    if config.get("figures"):
        from mmoe.analysis.figures import write_all

        report.log_figures(loggers, write_all(folder))


if __name__ == "__main__":
    main()
