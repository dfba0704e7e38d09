"""Search a method's hyper-parameters: `python -m mmoe.tune model=ple data=census`."""

import logging
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mmoe import CONF_DIR
from mmoe.cli import one_line_errors


@hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name="tune")
@one_line_errors
def main(config: DictConfig) -> None:
    """Run the trials that are left, then write the best as an experiment."""
    import pytorch_lightning as pl

    from mmoe import search
    from mmoe.arguments import check_integers, check_seeds
    from mmoe.build import build, build_learner
    from mmoe.errors import UserError
    from mmoe.training.divergence import Diverged
    from mmoe.training.lightning_speedups import flush_denormals
    from mmoe.training.monitors import check_monitor
    from mmoe.training.tasks import validation_metrics

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    check_integers(1, trials=config.trials)
    check_integers(1, replicas=config.replicas)
    check_seeds(seed=config.seed, **{"seed + replicas - 1": config.seed + config.replicas - 1})
    if config.monitor_mode not in ("max", "min"):
        raise UserError(f"monitor_mode={config.monitor_mode}: must be max or min")
    if (limit := config.trainer.get("limit_val_batches")) == 0:
        raise UserError(f"trainer.limit_val_batches={limit}: must be above 0, for validations compare trials")
    choices = HydraConfig.get().runtime.choices
    space = search.space_of(config.space, choices["model"])
    data = build(config, "data")
    check_monitor(config.monitor, config.monitor_mode, validation_metrics(data.schema.tasks))
    build_learner(config, data.schema).check_optimizer()

    def objective(trial: Any) -> float:
        """The best validation value of the monitored metric over the epochs of one training.

        A trial that diverges is pruned: it counts as tried.
        """
        tried = search.apply(config, search.suggest(trial, space))
        learner = build_learner(tried, data.schema)
        values: list[float] = []

        class Watch(pl.Callback):
            def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
                values.append(trainer.callback_metrics[config.monitor].item())

        silent = {"enable_progress_bar": False, "enable_checkpointing": False, "logger": False}
        trainer = build(tried, "trainer", callbacks=[Watch()], **silent)
        try:
            with flush_denormals():  # as trainings do
                trainer.fit(learner, data)
        except Diverged as error:
            raise search.TrialPruned(str(error)) from None
        if not values:
            raise UserError("trainer: must validate at least once, for validations compare trials")
        return max(values) if config.monitor_mode == "max" else min(values)

    described = {"space": space, "rows": dict(data.schema.files), "choices": search.choices_of(choices)}
    directed = {"max": "maximize", "min": "minimize"}[config.monitor_mode]
    study = search.open_study(Path(config.folder), config.sampler, config.seed, directed, described)
    search.run(study, objective, config.trials)
    path = search.write_experiment(Path(config.folder), study, space, search.choices_of(choices))
    print(f"best {config.monitor}: {study.best_value:.4f} of {search.tried(study)} trials")
    print(f"train it: python -m mmoe.train --config-dir {path.parents[1]} experiment={path.stem}")


if __name__ == "__main__":
    main()
