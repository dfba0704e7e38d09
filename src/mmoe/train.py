"""Train a network and test its best epoch: `python -m mmoe.train experiment=census`."""

import logging
import time

import hydra
from omegaconf import DictConfig

from mmoe import CONF_DIR
from mmoe.cli import command
from mmoe.training.sweep_jobs import in_sweep, run_alone


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
@command
def main(config: DictConfig) -> None:
    """Train, test the best epoch and write the results to the run folder."""
    started = time.perf_counter()
    # Imported here so that --help does not wait for torch.
    from mmoe.analysis.figures import write_figures
    from mmoe.build import built_packages
    from mmoe.run import Run
    from mmoe.run_folder import finish
    from mmoe.training import report, resume, stages
    from mmoe.training.preparation import prepare

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # for their tables
    folder, config, is_resumed = resume.run_to_train(config)
    if is_resumed and resume.is_complete(folder, config):
        return resume.draw_missing_figures(folder, config)

    training = prepare(config, folder)
    is_rank_zero, schema = training.trainer.is_global_zero, training.data.schema
    # Lightning would start the other processes with the command line of the whole sweep.
    if in_sweep() and training.trainer.strategy.launcher and training.trainer.world_size > 1:
        folder_override = resume.quote_override("resume" if is_resumed else "hydra.run.dir", str(folder))
        return run_alone(folder_override, is_resumed)

    with resume.in_run_folder(folder, config, schema, is_resumed, is_rank_zero):
        folder = stages.fit(training, folder, is_resumed)
        epoch, monitor = stages.restore_best(training, folder)
        stages.test(training)
        if not is_rank_zero:
            return
        metrics = report.metrics(training, config, epoch, monitor, time.perf_counter() - started)
        predictions, test_output = stages.test_predictions(training)
        finish(folder, metrics, predictions, report.history(training.learner.history, config.seed))
        report.show(folder, metrics, schema)
        if config.get("figures"):
            run = Run(folder, built_packages(config))
            run.preload(training.data, training.learner, test_output)
            report.log_figures(training.loggers, write_figures(run))


if __name__ == "__main__":
    main()
