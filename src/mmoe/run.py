"""Open a run folder, and predict and evaluate with it.

N rows, T tasks, L logits of all tasks, E experts.
"""

import inspect
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mmoe.build import build
from mmoe.checks.arguments import check_integers, check_seeds
from mmoe.cli.hidden_warnings import useless_warnings_hidden
from mmoe.data.batch import Batch
from mmoe.data.datamodule import DataModule, labels_of, load_rows
from mmoe.data.encode import count_unseen, decode, encode
from mmoe.data.schema import Schema
from mmoe.data.split_rules import SplitRule
from mmoe.data.splits import CONFIG_KEYS
from mmoe.errors import UserError, did_you_mean, unknown_key
from mmoe.intervals import bootstrap_intervals, sampled_intervals
from mmoe.models.network import Output, run_blank_rows
from mmoe.tasks import gate_column, logit_columns, predictions_of, with_groups
from mmoe.training import checkpoints, run_folder, run_results, stored_config
from mmoe.training.precision import precision_arguments
from mmoe.training.preparation import build_learner, build_network, encode_before_steps
from mmoe.training.trust import check_folder

log = logging.getLogger(__name__)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide Lightning's advice on devices, and warnings of libraries that no user can act on."""
    lightning = logging.getLogger("pytorch_lightning")
    level = lightning.level
    lightning.setLevel(logging.WARNING)
    try:
        with useless_warnings_hidden():
            yield
    finally:
        lightning.setLevel(level)


# Predictions are computed for this many rows at a time, padded if needed, so that a row's score does not
# depend on the other rows.
ROWS_PER_PASS = 8192
MAX_ANALYSED_ROWS = 2**20  # `Run.rows` reads at most this many rows of shards into memory
TRAINER_METHODS = {"val": "validate", "test": "test"}  # by split
TRAINER_LIMITS = ("limit_val_batches", "limit_test_batches", "overfit_batches", "fast_dev_run")


def load(folder: "Run | Path | str", trust: Sequence[str] = ()) -> "Run":
    """Open a run folder. A `Run` is returned unchanged. `trust` names packages whose classes it may build.

    Raises:
        UserError: config.yaml or schema.json is missing or damaged.
    """
    return folder if isinstance(folder, Run) else Run(Path(folder), trust)


class Run:
    """An open run folder. Files are read and objects are built on first use, and then kept.

    In all methods, `checkpoint` is the name of a file in checkpoints/, without its suffix, and `replica` is
    the number of a replica, from 0, or None for a run without replicas.
    """

    def __init__(self, folder: Path, trust: Sequence[str] = ()) -> None:
        self.folder, self.trust = folder, trust
        self.config: DictConfig = stored_config.read_config(folder)
        self.schema = run_folder.read_schema(folder)
        self._networks: dict[tuple[str, int | None], nn.Module] = {}
        self._outputs: dict[tuple[str, str, int | None], Output] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def preload(self, data: Any, learner: Any, test: Output | None) -> None:
        """Keep what a training has in memory, so that it is not read or computed again.

        `learner` has the weights of the best epoch. `test`, the output for the test rows, is ignored if it
        lacks some of them.
        """
        self.data = data
        network = getattr(learner.objective, "network", None)  # replicas have none
        if network is not None and all(p.dtype == torch.float32 for p in network.parameters()):
            self._networks["best", None] = network.cpu().eval()
        if test is not None and len(test.logits) == self.schema.num_rows.get("test"):
            self._outputs["test", "best", None] = test

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json."""
        return run_folder.read_metrics(self.folder)

    @cached_property
    def history(self) -> pd.DataFrame:
        """The content of history.csv: one line per validation and replica."""
        return run_folder.read_table(self.folder, "history.csv")

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """The content of predictions.parquet: labels and predictions of the test rows."""
        return run_folder.read_table(self.folder, "predictions.parquet")

    @cached_property
    def data(self) -> Any:
        """The data module. Raises UserError if its rows have changed or its class is not trusted."""
        return self._data_module({}, self.schema)

    @property
    def has_dataset(self) -> bool:
        """Whether the data module is an `mmoe.DataModule`, which has a dataset of encoded rows."""
        self.check_trust("data")
        target = hydra.utils.get_object(self.config.data._target_)
        return isinstance(target, type) and issubclass(target, DataModule)

    def rows(self, split: str = "test", replica: int | None = None) -> Batch:
        """The encoded rows of `train`, `val` or `test`, in the order of their file.

        If the rows are in shards, only the first `MAX_ANALYSED_ROWS` are returned.
        """
        if not self.has_dataset:
            target = self.config.data._target_
            raise UserError(f"{self.folder}: its data module {target} must be an mmoe.DataModule")
        splits = self.data.dataset.splits
        if split not in splits:
            raise UserError(f"split={split}: must be one of {', '.join(splits)}")
        rows = load_rows(splits[split], MAX_ANALYSED_ROWS)
        if rows.labels.ndim == 3:  # each replica has different rows
            checkpoints.check_replica(self.config.replicas, replica)
            rows = rows.map(lambda tensor: tensor[replica])
        return rows

    def network(self, checkpoint: str = "best", replica: int | None = None) -> nn.Module:
        """The trained network in evaluation mode. It maps levels and numbers to logits and gates.

        Raises:
            UserError: the checkpoint is missing or damaged, or a class of the network is not trusted.
        """
        key = (checkpoint, replica)
        if key not in self._networks:
            if checkpoint == "all":
                raise UserError("checkpoint=all: must name one checkpoint")
            self.check_trust("inputs", "model")
            (path,) = checkpoints.find(self.folder, checkpoint)
            network = build_network(self.config, self.schema)
            stored = checkpoints.load(path)
            weights = checkpoints.network_weights(stored, network, self.config.replicas, replica)
            checkpoints.load_weights(network, weights, path)
            self._networks[key] = network.eval()
        return self._networks[key]

    @cached_property
    def num_experts(self) -> int:
        """The number of experts E, or 0 if the model has no gates."""
        replica = 0 if self.config.replicas > 1 else None
        return int(run_blank_rows(self.network(replica=replica), self.schema).gates.shape[-1])

    def outputs(self, split: str = "test", checkpoint: str = "best", replica: int | None = None) -> Output:
        """Logits [N, L] and gate weights [N, T, E] of the rows of a split."""
        key = (split, checkpoint, replica)
        if key not in self._outputs:
            rows = self.rows(split, replica)
            self._outputs[key] = compute_outputs(self.network(checkpoint, replica), rows)
        return self._outputs[key]

    def scored(
        self, split: str = "test", checkpoint: str = "best", replica: int | None = None
    ) -> pd.DataFrame:
        """The raw rows of a split with labels, predictions and gate weights, in the order of `rows`.

        The columns are the inputs, `{task}_label` (missing where it is unknown), `{task}_probability` (or
        `{task}_prediction` for a number, or `{task}_class` and `{task}_probability_{class}` for several
        classes), and `{task}_gate_{expert}` if the model has gates.
        """
        rows = self.rows(split, replica)
        predictions = self._table(self.outputs(split, checkpoint, replica), gates=True)
        return pd.concat([decode(rows, self.schema), predictions], axis=1)

    def gates(
        self, split: str = "test", checkpoint: str = "best", replica: int | None = None
    ) -> dict[str, pd.DataFrame]:
        """The gate weights [N, E] of every task. Raises UserError if the model has no gates."""
        gates = self.outputs(split, checkpoint, replica).gates
        if not gates.shape[-1]:
            name = self.config.model._target_.split(".")[-1]
            raise UserError(f"{self.folder}: its model ({name}) has no gates")
        columns = pd.RangeIndex(gates.shape[-1], name="expert")
        tasks = enumerate(self.schema.tasks)
        return {task.name: pd.DataFrame(gates[:, i].numpy(), columns=columns) for i, task in tasks}

    def column(self, name: str, split: str = "test", replica: int | None = None) -> pd.Series:
        """A column of a split's raw rows: an input, or any column of the files if rows are in memory."""
        inputs = [c.name for c in self.schema.categorical] + [n.name for n in self.schema.numeric]
        if name in inputs:
            return decode(self.rows(split, replica), self.schema)[name]
        values: pd.Series | None = self.data.raw_column(name, split) if self.has_dataset else None
        if values is None:
            rule = f"must be a column of the run's rows, such as {', '.join(inputs)}"
            raise UserError(f"column={name}: {rule}{did_you_mean(name, inputs)}")
        return values

    def predict(
        self, frame: pd.DataFrame, checkpoint: str = "best", replica: int | None = None, gates: bool = False
    ) -> pd.DataFrame:
        """Predict raw rows. The result has the index of `frame` and the prediction columns of `scored`.

        `frame` needs the run's input columns. A warning names the columns with levels that training did not
        see. `gates` adds the gate weights.

        Raises:
            UserError: `frame` is no DataFrame, or a column is missing or has the wrong type.
        """
        if not isinstance(frame, pd.DataFrame):
            kind = type(frame).__name__
            raise UserError(f"frame: must be a DataFrame, is {kind}; python -m mmoe.predict reads files")
        rows = encode(frame, self.input_schema)
        warn_of_unseen(count_unseen(rows, self.schema), len(frame))
        predictions = self._table(compute_outputs(self.network(checkpoint, replica), rows), gates)
        return predictions.set_index(frame.index)

    @cached_property
    def input_schema(self) -> Schema:
        """The schema without tasks, for rows without labels."""
        return replace(self.schema, tasks=())

    def _table(self, output: Output, gates: bool) -> pd.DataFrame:
        return pd.DataFrame(prediction_columns(self.schema, output, gates))

    @quiet_libraries()
    def evaluate(
        self,
        split: str = "test",
        checkpoint: str = "best",
        data: Mapping[str, Any] | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Compute the metrics of checkpoints as in training, with bootstrap intervals.

        `split` is `val` or `test`, and `checkpoint` may also be `all`. To evaluate on other rows, `data`
        changes options of the data module, such as `{"test": "new.csv"}`, or `{"dir": ...}` for census files.
        These rows are encoded with the run's schema. `{"group_by": "user_id"}` chooses the groups of
        `grouped_auroc`. `resamples=0` gives no intervals, and `grouped_auroc` never has one.

        Raises:
            UserError: an argument is outside its range, a file is missing, or the rows have changed.
        """
        if split not in TRAINER_METHODS:
            raise UserError(f"split={split}: must be {' or '.join(TRAINER_METHODS)}")
        check_integers(0, resamples=resamples)
        check_seeds(seed=seed)
        self.check_trust(*stored_config.REQUIRED_PARTS)
        paths = checkpoints.find(self.folder, checkpoint)
        schema = self.schema
        if group_by := (data or {}).get("group_by"):
            schema = replace(schema, tasks=tuple(with_groups(schema.tasks, group_by)))
        module = self._data_module(data, schema) if data else self.data
        if data:
            self._warn_of_training_rows(module, split, data)
        learner = build_learner(OmegaConf.merge(self.config, {"balance": None}), schema)
        trainer = self._trainer()
        encode_before_steps(module, learner.network, trainer)
        found = []
        for path in paths:
            stored = checkpoints.load(path)
            checkpoints.load_weights(learner, stored["state_dict"], path)
            getattr(trainer, TRAINER_METHODS[split])(learner, module, verbose=False)
            # best.ckpt may hold a different epoch for each replica. A checkpoint that was saved after the
            # last epoch stores an epoch number that is one too high.
            has_one_epoch = self.config.replicas == 1 or path.stem != "best"
            last = self.metrics["epochs"] if run_folder.has_ended(self.folder) else math.inf
            line: dict[str, Any] = {
                "checkpoint": path.stem,
                "epoch": min(stored["epoch"] + 1, last) if has_one_epoch else None,
                "metrics": run_results.nest_metrics(learner.results.values)[split],
            }
            if resamples:
                line["intervals"] = self._intervals(learner, module, split, resamples, seed)
            found.append(line)
        return {
            "run": str(self.folder),
            "row_origin": module.schema.row_origin,
            "files": dict(module.schema.files),
            "split": split,
            "num_rows": learner.results.num_rows[split],
            "resamples": resamples,
            "checkpoints": found,
        }

    def _warn_of_training_rows(self, module: Any, split: str, changes: Mapping[str, Any]) -> None:
        """Warn if, with these changes of the data, the split has rows that the run was trained on."""
        trained = {digest for name, digest in self.schema.files.items() if name.startswith("train/")}
        found = {name for name, digest in module.schema.files.items() if digest in trained}
        source = CONFIG_KEYS[split]
        rule = getattr(module, source, None)
        if isinstance(rule, SplitRule):
            is_drawn_again = not changes.keys().isdisjoint(("split_seed", "test", "validation"))
            if rule.of == "train" and is_drawn_again and any(name.startswith("train/") for name in found):
                log.warning("the %s rows are drawn again, so the run was trained on some of them", source)
            return
        for name in sorted(found):
            if name.startswith(f"{source}/"):
                log.warning("%s: has the rows that the run was trained on", name.removeprefix(f"{source}/"))

    def _intervals(
        self, learner: Any, data: Any, split: str, resamples: int, seed: int
    ) -> dict[str, dict[str, tuple[float, float]]]:
        """The bootstrap intervals of the last evaluation, from a sample of the rows if there are many."""
        if split not in learner.results.running:
            predictions = predictions_of(self.schema.tasks, learner.results.logits[split]).numpy()
            labels, known = labels_of(data, split, predictions.shape[-2])
            masks = None if known is None else known.numpy()
            return bootstrap_intervals(self.schema.tasks, predictions, labels.numpy(), resamples, seed, masks)
        rows = learner.results.running[split].sample
        return sampled_intervals(
            self.schema.tasks,
            predictions_of(self.schema.tasks, rows.logits).numpy(),
            rows.labels.numpy(),
            resamples,
            seed,
            None if rows.known is None else rows.known.numpy(),
            learner.results.num_rows[split],
            run_results.nest_metrics(learner.results.values)[split],
        )

    def check_trust(self, *parts: str) -> None:
        """Raise UserError if a class in these parts of the configuration is neither allowed nor trusted."""
        check_folder(self.folder, parts, self.trust)

    def _data_module(self, changes: Mapping[str, Any], schema: Schema) -> Any:
        """Build the data module with the run's rows, or with other rows if options of `data` change.

        `schema` is the run's schema, but its tasks may have other groups.
        """
        self.check_trust("data")
        config = self.config.copy()
        target = hydra.utils.get_object(config.data._target_)
        takes_schema = inspect.isclass(target) and issubclass(target, DataModule) and target.takes_schema
        for key, value in changes.items():
            if not takes_schema:
                rule = f"{config.data._target_} cannot encode other rows with the run's schema"
                raise UserError(f"data.{key}={value}: {rule}")
            known = [name for name in inspect.signature(target).parameters if name != "schema"]
            if key not in known:
                raise UserError(f"data.{key}: {unknown_key(key, known)}")
            OmegaConf.update(config.data, key, value, merge=False, force_add=True)
        if changes:
            schema = schema.for_other_rows()
            config.data.update(target.implied_changes(changes))
        data = build(config, "data", **({"schema": schema} if takes_schema else {}))
        if not takes_schema and data.schema != self.schema:
            name = config.data._target_
            raise UserError(f"data._target_={name}: its schema differs from the run's schema.json")
        run_rows = (self.schema.files, self.schema.num_rows)
        if not changes and (data.schema.files, data.schema.num_rows) != run_rows:
            key = "dir" if "dir" in config.data else "test"
            where = f"data.dir={config.data.dir}" if key == "dir" else "data"
            raise UserError(
                f"{where}: the files have changed since the run (schema.json has another SHA-256 or number of"
                f" rows); to evaluate on other files, give data.{key}"
            )
        return data

    def _trainer(self) -> pl.Trainer:
        """Build a trainer with the run's precision that uses one device and writes no files."""
        config = self.config.copy()
        for key in ("strategy", "num_nodes", "max_steps", *TRAINER_LIMITS):
            config.trainer.pop(key, None)
        config.trainer.accelerator, config.trainer.devices, config.trainer.max_epochs = "auto", 1, 1
        silent = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        trainer: pl.Trainer = build(config, "trainer", **silent, **precision_arguments(config, []))
        return trainer


def warn_of_unseen(counts: Mapping[str, int], num_rows: int) -> None:
    """Log a warning for each column with rows that `count_unseen` has counted."""
    for name, count in counts.items():
        if count:
            rule = "have no value, or one that training did not see"
            log.warning("%s: %d of %d rows %s", name, count, num_rows, rule)


@torch.inference_mode()
def compute_outputs(network: nn.Module, rows: Batch) -> Output:
    """Compute logits [N, L] and gate weights [N, T, E]. The result is on the CPU."""
    if not len(rows.levels):
        raise UserError("there are no rows to score")
    device = next(network.parameters()).device
    parts = []
    for block in zip(*(torch.split(x, ROWS_PER_PASS) for x in (rows.levels, rows.numbers)), strict=True):
        count = len(block[0])
        padded = [torch.cat([x, x[:1].expand(ROWS_PER_PASS - count, -1)]) for x in block]
        output = network(*(x.to(device) for x in padded))
        parts.append([tensor[:count].cpu() for tensor in output])
    return Output(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def prediction_columns(schema: Schema, output: Output, gates: bool) -> dict[str, np.ndarray]:
    """Map column names to the predictions of each task and, with `gates`, to the gate weights."""
    columns: dict[str, np.ndarray] = {}
    for task, own in zip(schema.tasks, logit_columns(schema.tasks), strict=True):
        columns |= task.table(task.predict(output.logits[:, own]).numpy())
    if gates:
        for i, task in enumerate(schema.tasks):
            for expert in range(output.gates.shape[-1]):
                columns[gate_column(task, expert)] = output.gates[:, i, expert].numpy()
    return columns
