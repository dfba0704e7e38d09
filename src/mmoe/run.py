"""Open a run folder, and predict and evaluate with it.

N rows, T tasks, E experts.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from mmoe import run_folder
from mmoe.arguments import check_integers, check_seeds
from mmoe.build import build, build_learner, build_network
from mmoe.data.batch import Batch
from mmoe.data.datamodule import DataModule, labels_of
from mmoe.data.encode import decode, encode
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.intervals import bootstrap_intervals
from mmoe.models.network import Output
from mmoe.training import checkpoints, report
from mmoe.training.gate_statistics import blank_rows
from mmoe.training.tasks import gate_column, predicted, prediction_column
from mmoe.trust import check_targets

# Every forward pass has this many rows, padded if needed, so that other rows do not change a row's score.
BLOCK = 8192
TRAINER_METHODS = {"val": "validate", "test": "test"}  # by split
TRAINER_LIMITS = ("limit_val_batches", "limit_test_batches", "overfit_batches", "fast_dev_run")


def load(folder: "Run | Path | str", trust: Sequence[str] = ()) -> "Run":
    """Open a run folder. A `Run` is returned unchanged.

    Args:
        folder: a run folder or a `Run`.
        trust: your own packages from which the run may build classes.

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
        self.folder, self.trust = folder, tuple(trust)
        self.config: DictConfig = run_folder.read_config(folder)
        self.schema = run_folder.read_schema(folder)
        self._networks: dict[tuple[str, int | None], nn.Module] = {}
        self._outputs: dict[tuple[str, str, int | None], Output] = {}

    def use(self, data: Any, learner: Any, test: Output | None) -> None:
        """Keep what a training has in memory, so that it is not read or computed again.

        Args:
            data: the data module.
            learner: a learner with the weights of the best epoch.
            test: logits and gates of the test rows, or None. It is ignored if it lacks some of the rows.
        """
        self.__dict__["data"] = data
        network = getattr(learner.objective, "network", None)  # replicas have none
        if network is not None and all(p.dtype == torch.float32 for p in network.parameters()):
            self._networks["best", None] = network.cpu().eval()
        if test is not None and len(test.logits) == self.schema.num_rows.get("test"):
            self._outputs["test", "best", None] = test

    @property
    def has_ended(self) -> bool:
        """Whether the run has trained to its end."""
        return run_folder.has_ended(self.folder)

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
        return self._data_module(None)

    @property
    def keeps_rows(self) -> bool:
        """Whether the data module is an `mmoe.DataModule`, which keeps its encoded rows."""
        self._check("data")
        target = hydra.utils.get_object(self.config.data._target_)
        return isinstance(target, type) and issubclass(target, DataModule)

    def rows(self, split: str = "test", replica: int | None = None) -> Batch:
        """The encoded rows of `train`, `val` or `test`, in the order of their file."""
        if not self.keeps_rows:
            target = self.config.data._target_
            raise UserError(f"{self.folder}: its data module {target} must be an mmoe.DataModule")
        splits = self.data.dataset.splits
        if split not in splits:
            raise UserError(f"split={split}: must be one of {', '.join(splits)}")
        rows: Batch = splits[split]
        if rows.labels.ndim == 3:  # each replica has different rows
            checkpoints.check_replica(self.config.replicas, replica)
            rows = Batch(*(tensor[replica] for tensor in rows[:3]))
        return rows

    def network(self, checkpoint: str = "best", replica: int | None = None) -> nn.Module:
        """The trained network in evaluation mode. It maps levels and numbers to logits and gates.

        Raises:
            UserError: the checkpoint is missing or damaged, or a class of the network is not trusted.
        """
        key = (checkpoint, replica)
        if key not in self._networks:
            if checkpoint == "all":
                raise UserError("checkpoint=all: must name one")
            self._check("inputs", "model")
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
        rows = blank_rows(self.schema)
        count: int = self.network(replica=replica)(rows.levels, rows.numbers).gates.shape[-1]
        return count

    def outputs(self, split: str = "test", checkpoint: str = "best", replica: int | None = None) -> Output:
        """Logits [N, T] and gate weights [N, T, E] of the rows of a split."""
        key = (split, checkpoint, replica)
        if key not in self._outputs:
            rows = self.rows(split, replica)
            self._outputs[key] = outputs(self.network(checkpoint, replica), rows)
        return self._outputs[key]

    def scored(
        self, split: str = "test", checkpoint: str = "best", replica: int | None = None
    ) -> pd.DataFrame:
        """The raw rows of a split with labels, predictions and gate weights, in the order of `rows`.

        The columns are the inputs, `{task}_label`, `{task}_probability` (or `{task}_prediction` for a
        regression), and `{task}_gate_{expert}` if the model has gates.
        """
        rows = self.rows(split, replica)
        answers = self._table(self.outputs(split, checkpoint, replica), gates=True)
        return pd.concat([decode(rows, self.schema), answers], axis=1)

    def gate_weights(
        self, split: str = "test", checkpoint: str = "best", replica: int | None = None
    ) -> dict[str, pd.DataFrame]:
        """The gate weights [N, E] of every task. Raises UserError if the model has no gates."""
        gates = self.outputs(split, checkpoint, replica).gates
        if not gates.shape[-1]:
            name = self.config.model._target_.split(".")[-1]
            raise UserError(f"{self.folder}: its model ({name}) has no gates")
        columns = pd.RangeIndex(gates.shape[-1], name="expert")
        return {
            task.name: pd.DataFrame(gates[:, i].numpy(), columns=columns)
            for i, task in enumerate(self.schema.tasks)
        }

    def column(self, name: str, split: str = "test", replica: int | None = None) -> pd.Series:
        """A column of a split's raw rows. For census data, it may be a column that is not an input."""
        inputs = [c.name for c in self.schema.categorical] + [n.name for n in self.schema.numeric]
        if name in inputs:
            return decode(self.rows(split, replica), self.schema)[name]
        raw = getattr(self.data, "raw_column", None)
        values: pd.Series | None = raw(name, split) if raw else None
        if values is None:
            raise UserError(f"column={name}: must be a column of the run's rows, such as {', '.join(inputs)}")
        return values

    def predict(
        self, frame: pd.DataFrame, checkpoint: str = "best", replica: int | None = None, gates: bool = False
    ) -> pd.DataFrame:
        """Predict raw rows. The result has the index of `frame` and the prediction columns of `scored`.

        `frame` needs the run's input columns and may hold levels that training did not see. `gates` adds the
        gate weights.

        Raises:
            UserError: a column is missing or has the wrong type, or a number is missing.
        """
        rows = encode(frame, self.input_schema)
        answers = self._table(outputs(self.network(checkpoint, replica), rows), gates)
        return answers.set_index(frame.index)

    @cached_property
    def input_schema(self) -> Schema:
        """The schema without tasks, for rows without labels."""
        return replace(self.schema, tasks=())

    def _table(self, output: Output, gates: bool) -> pd.DataFrame:
        columns = answer_columns(self.schema, output, gates)
        return pd.DataFrame({name: values.numpy() for name, values in columns.items()})

    def evaluate(
        self,
        split: str = "test",
        checkpoint: str = "best",
        data_dir: str | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Compute the metrics of checkpoints as in training, with bootstrap intervals.

        Args:
            split: `val` or `test`.
            checkpoint: `best`, `last`, another name in checkpoints/, or `all`.
            data_dir: a directory with other census files, which are encoded with the run's schema.
            resamples: number of bootstrap resamples; 0 for no intervals.
            seed: the seed of the resamples.

        Raises:
            UserError: an argument is outside its range, a file is missing, or the rows have changed.
        """
        if split not in TRAINER_METHODS:
            raise UserError(f"split={split}: must be {' or '.join(TRAINER_METHODS)}")
        check_integers(0, resamples=resamples)
        check_seeds(seed=seed)
        self._check(*run_folder.BUILT)
        paths = checkpoints.find(self.folder, checkpoint)
        data = self.data if data_dir is None else self._data_module(data_dir)
        learner = build_learner(self.config, self.schema)
        trainer = self._trainer()
        found = []
        for path in paths:
            stored = checkpoints.load(path)
            checkpoints.load_weights(learner, stored["state_dict"], path)
            getattr(trainer, TRAINER_METHODS[split])(learner, data, verbose=False)
            # best.ckpt may hold a different epoch for each replica. A checkpoint that was saved after the
            # last epoch stores an epoch number that is one too high.
            has_one_epoch = self.config.replicas == 1 or path.stem != "best"
            last = self.metrics["epochs"] if self.has_ended else math.inf
            line: dict[str, Any] = {
                "checkpoint": path.stem,
                "epoch": min(stored["epoch"] + 1, last) if has_one_epoch else None,
                "metrics": report.results(learner.values)[split],
            }
            if resamples:
                answers = learner.predictions_of(learner.evaluated[split]).numpy()
                labels = labels_of(data, split, answers.shape[-2]).numpy()
                line["intervals"] = bootstrap_intervals(self.schema.tasks, answers, labels, resamples, seed)
            found.append(line)
        return {
            "run": str(self.folder),
            "rows": data.schema.rows,
            "files": dict(data.schema.files),
            "split": split,
            "num_rows": learner.num_rows[split],
            "resamples": resamples,
            "checkpoints": found,
        }

    def _check(self, *keys: str) -> None:
        """Raise UserError if a class in these parts of the configuration is neither allowed nor trusted."""
        plain = run_folder.stored_config(self.folder)
        for key in keys:
            check_targets(plain[key], self.trust, key)

    def _data_module(self, directory: str | None) -> Any:
        """Build the data module with the run's rows, or with the census files in a directory."""
        self._check("data")
        config = self.config.copy()
        target = hydra.utils.get_object(config.data._target_)
        takes_schema = getattr(target, "takes_schema", False)
        if directory is not None:
            if not takes_schema:
                raise UserError(
                    f"data.dir={directory}: only runs on the census files can be scored on others"
                )
            config.data.dir, config.data.source = directory, "official"
        data = build(config, "data", **({"schema": self.schema} if takes_schema else {}))
        if not takes_schema and data.schema != self.schema:
            raise UserError(f"data._target_={config.data._target_}: its schema is not that of schema.json")
        run_rows = (self.schema.files, self.schema.num_rows)
        if directory is None and (data.schema.files, data.schema.num_rows) != run_rows:
            raise UserError(
                f"data.dir={config.data.get('dir')}: must hold the files that the run was made with, by their"
                " SHA-256 in its schema.json; name a directory with other files as data.dir"
            )
        return data

    def _trainer(self) -> pl.Trainer:
        """Build a trainer with the run's precision that uses one device and writes no files."""
        config = self.config.copy()
        for key in ("strategy", "num_nodes", "max_steps", *TRAINER_LIMITS):
            config.trainer.pop(key, None)
        config.trainer.accelerator, config.trainer.devices, config.trainer.max_epochs = "auto", 1, 1
        silent = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        trainer: pl.Trainer = build(config, "trainer", **silent)
        return trainer


def blocks(rows: Batch) -> Iterator[tuple[Batch, int]]:
    """Split rows into blocks of `BLOCK` and pad the last one. Yield each with its number of real rows."""
    for start in range(0, len(rows.levels), BLOCK):
        part = Batch(*(tensor[start : start + BLOCK] for tensor in rows[:3]))
        missing = BLOCK - len(part.levels)
        if missing:
            part = Batch(*(torch.cat([tensor, tensor[:1].expand(missing, -1)]) for tensor in part[:3]))
        yield part, BLOCK - missing


@torch.inference_mode()
def outputs(network: nn.Module, rows: Batch) -> Output:
    """Compute logits [N, T] and gate weights [N, T, E]. The result is on the CPU."""
    device = next(network.parameters()).device
    parts = []
    for block, count in blocks(rows):
        output = network(block.levels.to(device), block.numbers.to(device))
        parts.append([tensor[:count].cpu() for tensor in output])
    if not parts:
        raise UserError("there are no rows to score")
    return Output(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def answer_columns(schema: Schema, output: Output, gates: bool) -> dict[str, Tensor]:
    """Map column names to the predictions of each task and, with `gates`, to the gate weights."""
    tasks = schema.tasks
    columns = {prediction_column(task): predicted(output.logits[:, i], task) for i, task in enumerate(tasks)}
    if gates:
        for i, task in enumerate(tasks):
            for expert in range(output.gates.shape[-1]):
                columns[gate_column(task, expert)] = output.gates[:, i, expert]
    return columns
