"""Build the parts of a training, and check them before the first step."""

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from mmoe.balancing.compatibility import check_balance
from mmoe.balancing.strategies import Strategy
from mmoe.build import build, locate
from mmoe.checks.arguments import check_integers, check_replicas
from mmoe.data.datamodule import DataModule
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.models.inputs import Inputs
from mmoe.models.network import Network, run_blank_rows
from mmoe.tasks import validation_metrics
from mmoe.training.checkpoint_callbacks import AtomicCheckpointIO
from mmoe.training.known_labels import check_known_labels
from mmoe.training.learner import Learner
from mmoe.training.monitors import check_callbacks, check_monitor, validates_each_epoch, with_monitor
from mmoe.training.precision import precision_arguments
from mmoe.training.replica_learner import replica_callback_arguments
from mmoe.training.threads import num_threads

log = logging.getLogger(__name__)

TRAINER_MINIMUMS = {  # the least value of each integer option
    "max_epochs": -1, "max_steps": -1, "min_epochs": 0, "min_steps": 0, "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
}  # fmt: skip
RESERVED_TRAINER_KEYS = ("callbacks", "logger", "plugins", "default_root_dir")  # mmoe sets these
REPLACED_BY_REPLICAS = ("best", "early_stopping")  # callbacks whose work `ReplicaLearner` does itself


class Training(NamedTuple):
    """The parts of a training. `callbacks` also holds those that `ReplicaLearner` replaces.

    `config` is the configuration with the monitor that follows from the tasks. `threads` is the number of
    torch's intra-op threads for the training.
    """

    config: DictConfig
    trainer: pl.Trainer
    data: Any
    learner: Any
    callbacks: dict[str, Any]
    loggers: list[Any]
    threads: int


def build_network(config: DictConfig, schema: Schema) -> Network:
    """Build a network from `config.inputs` and `config.model`."""
    inputs = build(config, "inputs", schema=schema)
    options = _derived_arguments(config, "model", schema, inputs)
    outputs = [task.num_outputs for task in schema.tasks]
    if max(outputs) > 1:
        options["task_outputs"] = outputs
    if member := _derived_arguments(config, "model.member", schema, inputs):
        options["member_arguments"] = member
    sizes = {"num_inputs": inputs.num_outputs, "num_tasks": len(schema.tasks)}
    model = build(config, "model", **sizes, **options)
    return Network(inputs, model, allow_sparse=not config.get("compile"))


def _derived_arguments(config: DictConfig, key: str, schema: Schema, inputs: Any) -> dict[str, Any]:
    """The arguments of a model that follow from the tasks, by `task_arguments`, and from the inputs."""
    target = OmegaConf.select(config, f"{key}._target_")
    model = locate(target, key) if target else None
    if not (inspect.isclass(model) and issubclass(model, nn.Module)):
        return {}
    task_arguments = getattr(model, "task_arguments", None)
    arguments = dict(task_arguments(schema.tasks)) if task_arguments else {}
    if isinstance(inputs, Inputs):
        arguments["input_groups"] = inputs.input_groups
    known = constructor_arguments(model)
    return {name: value for name, value in arguments.items() if name in known}


def constructor_arguments(model: type) -> set[str]:
    """The arguments that a class's constructor takes, by itself or by passing `**options` to its base class.

    The constructor of a user's subclass may lack arguments of its base class.
    """
    names: set[str] = set()
    for base in model.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
            names |= set(parameters)
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
    return names


def build_learner(config: Any, schema: Schema) -> Any:
    """Build the learner for one network, or for `config.replicas` networks with consecutive seeds."""
    objectives = []
    balance = build_balance(config, len(schema.tasks))
    by_task = {"by_task": True} if balance else {}  # an objective of the user's may not have it
    for number in range(config.replicas):
        pl.seed_everything(config.seed + number, verbose=False)
        network = build_network(config, schema)
        objectives.append(build(config, "objective", network=network, tasks=schema.tasks, **by_task))
    if config.replicas == 1:
        options = {"balance": balance} if balance else {}  # a learner of the user's may not have it
        learner = build(config, "learner", objective=objectives[0], **options)
    else:
        if locate(config.learner._target_, "learner") is not Learner:
            rule = "must be mmoe.training.learner.Learner for replicas"
            raise UserError(f"learner._target_={config.learner._target_}: {rule}")
        target = {"learner": {"_target_": "mmoe.training.replica_learner.ReplicaLearner"}}
        config = OmegaConf.merge(config, target)
        arguments = replica_callback_arguments(config)
        learner = build(config, "learner", objectives=objectives, balance=balance, **arguments)
    if config.get("compile"):
        learner.objective.compile()  # in place, so that parameters keep their names
    return learner


def build_balance(config: Any, num_tasks: int) -> list[Strategy]:
    """Build each network's balancing strategy: an empty list for one task, or if the strategy is idle."""
    if not config.get("balance"):  # a run of an earlier version, or an evaluation
        return []
    seeds = range(config.seed, config.seed + config.replicas)
    strategies = [build(config, "balance", num_tasks=num_tasks, seed=seed) for seed in seeds]
    if num_tasks == 1 and strategies[0].acts:
        log.warning("balance: %s has no effect, because there is one task", strategies[0].name)
    return strategies if strategies[0].acts and num_tasks > 1 else []


def build_callbacks(config: DictConfig) -> dict[str, Any]:
    """Build the callbacks by name. `last` comes last, because it may end the training."""
    names = [name for name, callback in (config.callbacks or {}).items() if callback]
    if "best" not in names:
        raise UserError("callbacks.best: is missing, but its checkpoint is tested")
    names.sort(key=lambda name: name == "last")
    return {str(name): build(config, f"callbacks.{name}") for name in names}


def build_loggers(config: DictConfig) -> list[Any]:
    """Build the loggers. `config.logger` is one logger, or a mapping from names to loggers."""
    node = config.get("logger") or {}
    keys = ["logger"] if "_target_" in node else [f"logger.{name}" for name in node if node[name]]
    return [build(config, key) for key in keys]


def build_trainer(
    config: DictConfig, folder: Path, callbacks: Sequence[Any] = (), loggers: Sequence[Any] = ()
) -> pl.Trainer:
    """Build the trainer of a run folder."""
    options: dict[str, Any] = {"callbacks": list(callbacks), "logger": list(loggers) or False}
    options |= precision_arguments(config, [AtomicCheckpointIO()]) | {"default_root_dir": folder}
    trainer: pl.Trainer = build(config, "trainer", **options)
    return trainer


def prepare(config: DictConfig, folder: Path) -> Training:
    """Build everything for a training in a run folder, and check that the parts fit together.

    Raises:
        UserError: an option is outside its range, or would make the training fail later.
    """
    check_replicas(config.replicas, config.seed)
    for key, least in TRAINER_MINIMUMS.items():
        if config.trainer.get(key) is not None:
            check_integers(least, **{f"trainer.{key}": config.trainer[key]})
    for key in RESERVED_TRAINER_KEYS:
        if key in config.trainer:
            raise UserError(f"trainer.{key}: is set by mmoe; leave it out")
    if config.trainer.get("limit_train_batches") == 0:
        raise UserError("trainer.limit_train_batches=0: must be above 0, because nothing would be trained")
    build_trainer(config, folder)  # an option that Lightning refuses is found before the rows are loaded
    data = build(config, "data")
    schema = load_schema(data, config.data._target_)
    config = with_monitor(config, schema)
    callbacks, loggers = build_callbacks(config), build_loggers(config)
    replaced = REPLACED_BY_REPLICAS if config.replicas > 1 else ()
    kept = [callback for name, callback in callbacks.items() if name not in replaced]
    trainer = build_trainer(config, folder, kept, loggers)
    check_data_module(data, config.data._target_, trainer)
    check_monitor(config.monitor, config.monitor_mode, validation_metrics(schema.tasks))
    if isinstance(data, DataModule):
        watched = {config.monitor, *(getattr(callback, "monitor", None) for callback in callbacks.values())}
        watched = watched if trainer.limit_val_batches else set()
        check_known_labels(data.dataset, watched, data.validation_fraction)
    learner = build_learner(config, schema)
    encode_before_steps(data, learner.network, trainer)
    check_learner(config, learner, schema, trainer)
    check_callbacks(callbacks, learner, schema, trainer)
    threads = num_threads(config.threads, getattr(data, "batch_size", 1), learner.objective)
    return Training(config, trainer, data, learner, callbacks, loggers, threads)


def encode_before_steps(data: Any, network: nn.Module, trainer: pl.Trainer) -> None:
    """Let a data module encode rows for a network on a CPU, which is faster than in each step."""
    if isinstance(data, DataModule):
        on_cpu = trainer.strategy.root_device.type == "cpu"
        data.encode_inputs_with(network.encode_rows if on_cpu and isinstance(network, Network) else None)


def check_learner(config: DictConfig, learner: Any, schema: Schema, trainer: pl.Trainer) -> None:
    """Raise UserError if the optimizer, schedule, balancing or model cannot work in a training."""
    learner.check_optimizer(trainer)
    if learner.schedule.follows_validations and not validates_each_epoch(trainer):
        raise UserError("learner.scheduler: ReduceLROnPlateau needs a validation in every epoch")
    check_balance(config, learner, schema.tasks, trainer)
    check_model_output(learner, schema)


def load_schema(data: Any, target: str) -> Schema:
    """Read and encode the rows of a data module, and return their schema.

    Raises:
        UserError: a data module of the user's own lacks a schema.
    """
    # getattr would hide an AttributeError of a DataModule while it reads the rows.
    schema = data.schema if isinstance(data, DataModule) else getattr(data, "schema", None)
    if not isinstance(schema, Schema):
        raise UserError(f"data._target_={target}: its data module must have a schema")
    return schema


def check_data_module(data: Any, target: str, trainer: pl.Trainer) -> None:
    """Raise UserError if a data module, perhaps the user's own, lacks a dataloader."""
    for name, limit in (("val", trainer.limit_val_batches), ("test", trainer.limit_test_batches)):
        hook = f"{name}_dataloader"
        if limit and getattr(type(data), hook) is getattr(pl.LightningDataModule, hook):
            rule = f"must have a {hook}, or give trainer.limit_{name}_batches=0"
            raise UserError(f"data._target_={target}: {rule}")


def check_model_output(learner: Any, schema: Schema) -> None:
    """Raise UserError unless a model, perhaps the user's own, returns logits and gates."""
    if learner.has_replicas:
        return
    network, num_tasks = learner.objective.network, len(schema.tasks)
    num_logits = sum(task.num_outputs for task in schema.tasks)
    output = run_blank_rows(network, schema)
    parts = output if isinstance(output, tuple) else (output,)
    shapes = [list(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
    good = len(shapes) == 2 and shapes[0] == [2, num_logits] and shapes[1][:-1] == [2, num_tasks]
    if not isinstance(output, tuple) or not good:
        name = type(network.model).__name__
        raise UserError(
            f"model={name}: must return logits [B, {num_logits}] and gates [B, {num_tasks}, E], as"
            f" mmoe.Output; for 2 rows it returns {shapes}"
        )
