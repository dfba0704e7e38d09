"""Train a network and test its best epoch: `python -m mmoe.train experiment=census`."""

import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from mmoe.atomic import remove_abandoned
from mmoe.cli.command import command
from mmoe.cli.overrides import quote_override
from mmoe.cli.sweep_jobs import is_sweep_job, run_alone
from mmoe.errors import UserError

if TYPE_CHECKING:
    from mmoe.run import Run


@command("train")
def main(config: DictConfig) -> None:
    """Train, test the best epoch and write the results to the run folder."""
    started = time.perf_counter()
    from mmoe.training import resume  # imported here so that --help does not wait for torch

    if len(sys.argv) == 1:
        print("no arguments: experiment=census; --help lists the other experiments")
    named = config.get("resume")
    folder, config, is_resumed = resume.run_to_train(config)
    if not (is_resumed and resume.is_complete(folder, config)):
        train(config, folder, started, is_resumed, is_sweep_job())
    elif write_missing_reports(folder, config):
        print(f"run folder: {os.path.relpath(folder)}")
    elif named is None:  # a job of a sweep that is repeated
        print(f"{os.path.relpath(folder)}: has already ended")
    else:
        rule = "the run has already ended; a larger trainer.max_epochs=... trains it longer, if its schedule"
        rule += " does not end"
        raise UserError(f"resume={named}: {rule}")


def train(
    config: DictConfig, folder: Path, started: float, is_resumed: bool = False, in_sweep: bool = False
) -> "Run | None":
    """Train in a run folder; `started` is the time at which `main` began, by `time.perf_counter`.

    Returns:
        The run. It is None in all processes but the first, and if a separate command trained it.
    """
    from mmoe.run import Run
    from mmoe.training import report, resume, run_results, stages
    from mmoe.training.preparation import prepare
    from mmoe.training.run_folder import finish
    from mmoe.training.threads import use_threads
    from mmoe.training.trust import built_packages
    from mmoe.training.warm_start import take_weights

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # for their tables
    training = prepare(config, folder)
    config = training.config
    if config.get("init_from") and not is_resumed:
        take_weights(training.learner, str(config.init_from))
    is_rank_zero, schema = training.trainer.is_global_zero, training.data.schema
    # Lightning would start the other processes with the command line of the whole sweep.
    if in_sweep and training.trainer.strategy.launcher and training.trainer.world_size > 1:
        folder_override = quote_override("resume" if is_resumed else "hydra.run.dir", str(folder))
        run_alone(folder_override, is_resumed)
        return None

    with resume.in_run_folder(folder, config, schema, is_resumed, is_rank_zero):
        with use_threads(training.threads):
            folder = stages.fit(training, folder, is_resumed)
        epoch, monitor = stages.restore_best(training, folder)
        values = stages.test(training)
        if not is_rank_zero:
            return None
        metrics = run_results.metrics(training, values, epoch, monitor, time.perf_counter() - started)
        predictions, test_output = stages.test_predictions(training)
        finish(folder, metrics, predictions, run_results.history(training.learner.history, config.seed))
        report.show(folder, metrics, schema)
        run = Run(folder, built_packages(config))
        run.preload(training.data, training.learner, test_output)
        if config.get("figures"):
            from mmoe.analysis.figures import write_figures

            report.log_figures(training.loggers, write_figures(run))
        if config.get("card"):
            from mmoe.analysis.card import write_card

            write_card(run)
    return run


def write_missing_reports(folder: Path, config: DictConfig) -> bool:
    """Write the figures and the card that a killed run lacks. Return whether it lacked any."""
    from mmoe.analysis.card import write_card
    from mmoe.analysis.figures import has_all_figures, write_figures
    from mmoe.run import load
    from mmoe.training.run_folder import has_card, locked
    from mmoe.training.trust import built_packages

    with locked(folder):
        remove_abandoned(folder)  # scratch files of the killed process
        run = load(folder, built_packages(config))
        lacks_figures = config.get("figures") and not has_all_figures(run)
        lacks_card = config.get("card") and not has_card(folder)
        if lacks_figures:
            write_figures(run)
        if config.get("card") and (lacks_card or lacks_figures):  # the card shows the figures
            write_card(run)
    return bool(lacks_figures or lacks_card)


if __name__ == "__main__":
    main()
