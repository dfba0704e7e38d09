"""Search a method's hyper-parameters: `python -m mmoe.tune model=ple data=census`."""

import logging
import shlex
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mmoe import CONF_DIR
from mmoe.atomic import write_text
from mmoe.checks.arguments import check_integers, check_probabilities, check_replicas, is_number
from mmoe.cli.command import command
from mmoe.cli.overrides import quote_override, searchpath_override
from mmoe.errors import UserError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

# Config groups that identify a study.
GROUPS = ("data", "features", "inputs", "model", "balance", "learner", "experiment")
# Settings of a training. Those that the command line gives are not searched.
SETTINGS = (
    "data", "features", "inputs", "model", "objective", "learner", "trainer", "balance", "activation",
    "gate_temperature", "monitor", "monitor_mode", "threads",
)  # fmt: skip
# The command line may replace the rule of a split. The written experiment then sets every key of the rule,
# because Hydra would keep keys of the old rule from the data's own file. `NO_RULE` has each key's default.
SPLIT_RULES = ("data.test", "data.validation")
NO_RULE = {**dict.fromkeys(("fraction", "last", "by", "column", "value")), "of": "train"}
# Settings of a machine. Processes of a study may differ in them, and the written experiment lacks them.
OF_THIS_MACHINE = ("data.dir", "data.cache_dir", "threads")
DIRECTIONS = {"max": "maximize", "min": "minimize"}
SILENT = {"enable_progress_bar": False, "enable_checkpointing": False, "logger": False}  # trainer options
Space = Mapping[str, Mapping[str, Any]]


@command("tune")
def main(config: DictConfig) -> None:
    """Run the remaining trials, then write the best one as an experiment."""
    try:
        from optuna.exceptions import TrialPruned
    except ModuleNotFoundError as error:
        raise UserError(f"mmoe.tune: needs {error.name}: pip install 'mmoe[tune]'") from None

    from mmoe.build import build
    from mmoe.data.datamodule import DataModule
    from mmoe.tasks import validation_metrics
    from mmoe.training.divergence import Diverged
    from mmoe.training.known_labels import check_known_labels
    from mmoe.training.monitors import check_monitor, with_monitor
    from mmoe.training.optuna_study import count_ended, open_study, run_trials
    from mmoe.training.preparation import build_learner, check_learner

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    check_options(config)
    chosen = HydraConfig.get().runtime.choices
    choices = {group: chosen[group] for group in GROUPS if group in chosen}
    given = given_settings(config)
    ranges = space_of(config.space, choices["model"])
    space = {key: value_range for key, value_range in ranges.items() if key not in given}
    data = build(config, "data")
    # A mistake that these checks find would make every trial fail.
    config = with_monitor(config, data.schema)
    check_monitor(config.monitor, config.monitor_mode, validation_metrics(data.schema.tasks))
    if isinstance(data, DataModule):
        check_known_labels(data.dataset, (config.monitor,))
    check_learner(config, build_learner(config, data.schema), data.schema, build(config, "trainer", **SILENT))

    best = max if config.monitor_mode == "max" else min
    rebuilds_data = any(key.startswith("data.") for key in space)

    def objective(trial: "Trial") -> float:
        trial_config = with_values(config, suggest(trial, space))
        trial_data = build(trial_config, "data") if rebuilds_data else data

        def check(values: list[float], thirds: int) -> None:
            trial.report(best(values), thirds)
            if trial.should_prune():
                raise TrialPruned

        try:
            learner = build_learner(trial_config, trial_data.schema)
            return best(train_trial(trial_config, learner, trial_data, check))
        except Diverged as error:  # a pruned trial counts as one of config.trials
            raise TrialPruned(str(error)) from None

    settings = {key: value for key, value in given.items() if key not in OF_THIS_MACHINE}
    identity = {"space": space, "rows": dict(data.schema.files), "choices": choices, "settings": settings}
    direction = DIRECTIONS[config.monitor_mode]
    study = open_study(Path(config.folder), config.sampler, config.prune, config.seed, direction, identity)
    run_trials(study, objective, config.trials)
    path = write_experiment(Path(config.folder), study, space, choices, settings)
    print(f"best {config.monitor} of {count_ended(study)} trials: {study.best_value:.4f}; written: {path}")
    machine = {key: given[key] for key in OF_THIS_MACHINE if given.get(key) is not None}
    command = ["python", "-m", "mmoe.train", "--config-dir", str(path.parents[1]), *searchpath_override()]
    command += [f"experiment={path.stem}"]
    command += [quote_override(k, v) if isinstance(v, str) else f"{k}={v}" for k, v in machine.items()]
    print(f"train it: {shlex.join(command)}")


def given_settings(config: DictConfig) -> dict[str, Any]:
    """The settings of a training that the command line gives, by config key.

    The choice of a config group, such as `model=ple`, is not a setting.

    Raises:
        UserError: a setting is deleted. Only the rule of a split may be deleted and given anew.
    """
    overrides = HydraConfig.get().overrides.task
    keys = (override.lstrip("+~").partition("=")[0] for override in overrides)
    given = [key for key in keys if key.split(".")[0] in SETTINGS and not (CONF_DIR / key).is_dir()]
    values = {key: OmegaConf.select(config, key) for key in given}
    values = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in values.items()}
    for override in overrides:
        key = override.removeprefix("~").partition("=")[0]
        if override.startswith("~") and key in values:
            if key not in SPLIT_RULES or not isinstance(values[key], dict):
                rule = (
                    "a search cannot delete a setting; write an experiment without it, and search with that"
                )
                raise UserError(f"{override}: {rule}")
            values[key] = {**NO_RULE, **values[key]}
    return values


def check_options(config: DictConfig) -> None:
    """Raise UserError if an option is outside its range."""
    check_integers(1, trials=config.trials)
    check_probabilities(prune=config.prune)
    check_replicas(config.replicas, config.seed)
    if config.monitor_mode not in (None, *DIRECTIONS):
        raise UserError(f"monitor_mode={config.monitor_mode}: must be max, min or null")
    if config.trainer.get("limit_val_batches") == 0:
        raise UserError("trainer.limit_val_batches=0: must be above 0, because validations compare trials")


def train_trial(
    config: DictConfig, learner: Any, data: Any, check: Callable[[list[float], int], None] | None = None
) -> list[float]:
    """Train, and return the monitored metric at each validation.

    `check` is called with the metrics so far and the number of thirds of the steps that are done: 1 or 2.
    """
    import pytorch_lightning as pl

    from mmoe.build import build
    from mmoe.training.lightning_speedups import flush_denormals
    from mmoe.training.preparation import encode_before_steps
    from mmoe.training.threads import num_threads, use_threads

    values: list[float] = []

    class RecordMonitor(pl.Callback):
        thirds = 0

        def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.sanity_checking:
                return
            values.append(trainer.callback_metrics[config.monitor].item())
            before = self.thirds
            self.thirds = int(3 * trainer.global_step / trainer.estimated_stepping_batches)
            if check and before < self.thirds < 3:
                check(values, self.thirds)

    trainer = build(config, "trainer", callbacks=[RecordMonitor()], **SILENT)
    encode_before_steps(data, learner.network, trainer)
    threads = num_threads(config.threads, data.batch_size, learner.objective)
    with flush_denormals(), use_threads(threads):
        trainer.fit(learner, data)
    if not values:
        raise UserError("trainer: must validate at least once, because validations compare trials")
    return values


def space_of(spaces: DictConfig, model: str) -> dict[str, dict[str, Any]]:
    """Merge the ranges for all methods with the ranges for `model`, by config key; null removes a range.

    Raises:
        UserError: `model` has no ranges, or a range is invalid.
    """
    methods = [str(name) for name in spaces if name != "all"]
    if model not in methods:
        raise UserError(f"space.{model}: is missing; the methods with ranges are {', '.join(methods)}")
    space: dict[str, dict[str, Any]] = {}
    for part in ("all", model):
        ranges: dict[str, Any] = OmegaConf.to_container(spaces[part])  # type: ignore[assignment]
        for key, value_range in ranges.items():
            if value_range is not None:
                check_range(f"space.{part}.{key}", value_range)
        space |= ranges
    return {key: value_range for key, value_range in space.items() if value_range is not None}


def check_range(where: str, value_range: Any) -> None:
    """Raise UserError unless a range has numbers `low` and `high`, and at most the keys `log` and `width`."""
    keys = value_range.keys() if isinstance(value_range, dict) else set()
    is_valid = {"low", "high"} <= keys <= {"low", "high", "log", "width"}
    is_valid = is_valid and all(is_number(value_range[end], Real) for end in ("low", "high"))
    if not is_valid or value_range["low"] > value_range["high"]:
        rule = "must have low and high, numbers with low at most high, and may have log or width"
        raise UserError(f"{where}={value_range}: {rule}")
    if value_range.get("log") and value_range["low"] <= 0:
        raise UserError(f"{where}={value_range}: low must be above 0 for log")


def suggest(trial: "Trial", space: Space) -> dict[str, Any]:
    """Draw the values of a trial, by config key."""
    values: dict[str, Any] = {}
    for key, value_range in space.items():
        low, high, log = value_range["low"], value_range["high"], value_range.get("log", False)
        are_integers = isinstance(low, int) and isinstance(high, int)
        draw: Any = trial.suggest_int if are_integers else trial.suggest_float
        values[key] = draw(key, low, high, log=log)
    return widths_as_lists(values, space)


def widths_as_lists(values: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Replace each width of a layer by a list with that one layer."""
    return {key: [value] if space[key].get("width") else value for key, value in values.items()}


def with_values(config: DictConfig, values: Mapping[str, Any]) -> DictConfig:
    """Copy the configuration and set these values, by config key."""
    changed = config.copy()
    for key, value in values.items():
        OmegaConf.update(changed, key, value)
    return changed


def write_experiment(
    folder: Path, study: "Study", space: Space, choices: Mapping[str, str], settings: Mapping[str, Any]
) -> Path:
    """Write the best trial as `folder`/experiment/NAME.yaml, for `--config-dir` and `experiment=`.

    It has the given `settings` as well.
    """
    from mmoe.training.optuna_study import count_ended

    overrides = with_values(OmegaConf.create({}), {**settings, **widths_as_lists(study.best_params, space)})
    groups = [{f"override /{group}": choices[group]} for group in choices if group != "experiment"]
    head = OmegaConf.to_yaml(OmegaConf.create({"defaults": [choices["experiment"], *groups, "_self_"]}))
    path = folder / "experiment" / f"tuned_{choices['data']}_{choices['model']}.yaml"
    text = (
        f"# @package _global_\n# Best of {count_ended(study)} trials: {study.best_value:.4f}.\n"
        f"{head}\n{OmegaConf.to_yaml(overrides)}"
    )
    write_text(path, text)
    return path


if __name__ == "__main__":
    main()
