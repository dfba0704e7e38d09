"""Train a network and test its best epoch: `python -m mmoe.train experiment=census`."""

import logging
import time

import hydra
from omegaconf import DictConfig

from mmoe import CONF_DIR
from mmoe.cli import one_line_errors
from mmoe.training.sweep_jobs import in_sweep, run_alone


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="train")
@one_line_errors
def main(config: DictConfig) -> None:
    """Train, test the best epoch and write the results to the run folder."""
    started = time.perf_counter()
    # Imported here so that --help does not wait for torch.
    from mmoe.analysis.figures import write_figures
    from mmoe.run import Run
    from mmoe.run_folder import finish
    from mmoe.training import fit, report, resume
    from mmoe.training.preparation import prepare
    from mmoe.trust import packages

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # for their tables
    folder, config, is_resumed = resume.run_to_train(config)
    if is_resumed and resume.has_ended(folder, config):
        return resume.complete(folder, config)

    training = prepare(config, folder)
    is_first, schema = training.trainer.is_global_zero, training.data.schema
    if in_sweep() and training.trainer.strategy.launcher and training.trainer.world_size > 1:
        folder_override = resume.override("resume" if is_resumed else "hydra.run.dir", str(folder))
        return run_alone(folder_override, is_resumed)

    with resume.working_in(folder, config, schema, is_resumed, is_first):
        folder = fit.fit(training, folder, is_resumed)
        epoch, monitor = fit.restore_best(training, folder)
        fit.test(training)
        if not is_first:
            return
        metrics = report.metrics(training, config, epoch, monitor, time.perf_counter() - started)
        predictions, test_output = fit.test_predictions(training)
        finish(folder, metrics, predictions, report.history(training.learner.history, config.seed))
        report.show(folder, metrics, schema)
        if config.get("figures"):
            run = Run(folder, packages(config))
            run.use(training.data, training.learner, test_output)
            report.log_figures(training.loggers, write_figures(run))


if __name__ == "__main__":
    main()
