"""The rows of a run, as they stand in their file, with what its network says of them.

N rows, T tasks, E experts.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import hydra
import pandas as pd
import torch
from torch import Tensor, nn

from mmoe import runs
from mmoe.data import cache, census
from mmoe.data.census_files import find_files
from mmoe.data.encode import Rows, decode
from mmoe.data.schema import Schema
from mmoe.errors import UserError
from mmoe.evaluation import keeps_rows, rows_for
from mmoe.training import report
from mmoe.training.tasks import predicted

BATCH = 8192


def scored(
    folder: Path | str,
    split: str = "test",
    checkpoint: str = "best",
    replica: int | None = None,
    trust: Sequence[str] = (),
) -> pd.DataFrame:
    """Rows of a run with predictions and gate weights, one line a row in the order of `split`.

    Columns: the inputs; `{task}_label`; `{task}_probability` (of a regression `{task}_prediction`); and
    `{task}_gate_{expert}` where the model has gates.

    Args:
        folder: the run folder.
        split: `train`, `val` or `test`.
        checkpoint: name of a file of checkpoints/.
        replica: which one, from 0, of a run with replicas.
        trust: packages of your own whose classes the run is built from.

    Raises:
        UserError: the folder holds no such run, or the rows it was made with are gone.
    """
    path = runs.checkpoints(Path(folder), checkpoint)[0].resolve()
    return _scored(path, path.stat().st_mtime_ns, split, replica, tuple(trust)).copy()


def network_and_rows(
    folder: Path | str, split: str, checkpoint: str, replica: int | None, trust: Sequence[str] = ()
) -> tuple[nn.Module, Rows, Schema]:
    """The trained network on the CPU, the rows of `split`, and their schema; errors as of `scored`."""
    config, schema = runs.read(Path(folder), ("inputs", "model", "data"), trust)
    if not keeps_rows(config):
        raise UserError(f"{folder}: its data module {config.data._target_} must be an mmoe.DataModule")
    dataset = rows_for(config, schema, None).dataset
    if split not in dataset.splits:
        raise UserError(f"split={split}: must be one of {', '.join(dataset.splits)}")
    rows = dataset.splits[split]
    if rows.labels.ndim == 3:  # replicas with rows of their own
        rows = Rows(*(tensor[replica or 0] for tensor in rows))
    return runs.load_network(folder, checkpoint, replica, trust), rows, schema


@torch.inference_mode()
def outputs(network: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
    """Logits [N, T] and gates [N, T, E] of all rows."""
    parts = [
        network(*batch)
        for batch in zip(torch.split(rows.codes, BATCH), torch.split(rows.numerics, BATCH), strict=True)
    ]
    logits, gates = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return logits, gates


@lru_cache(maxsize=4)  # every figure of a run asks for the same rows
def _scored(
    checkpoint: Path, _mtime: int, split: str, replica: int | None, trust: tuple[str, ...]
) -> pd.DataFrame:
    folder = checkpoint.parents[1]
    network, rows, schema = network_and_rows(folder, split, checkpoint.stem, replica, trust)
    logits, gates = outputs(network, rows)
    columns = {}
    for i, task in enumerate(schema.tasks):
        columns[report.column(task)] = predicted(logits[:, i], task).numpy()
        columns |= {report.gate_column(task, e): gates[:, i, e].numpy() for e in range(gates.shape[2])}
    return pd.concat([decode(rows, schema), pd.DataFrame(columns)], axis=1)


def raw_column(folder: Path | str, name: str, split: str, trust: Sequence[str] = ()) -> pd.Series:
    """A column of the census file that is no input of the run, for the rows of `split`.

    Args:
        folder: the run folder.
        name: of the column.
        split: `train`, `val` or `test`.
        trust: packages of your own whose classes the run is built from.

    Raises:
        UserError: the run's rows have no such column.
    """
    config, schema = runs.read(Path(folder), ("data",), trust)
    is_census = hydra.utils.get_object(config.data._target_) is census.datamodule
    if not is_census or name not in census.COLUMNS:
        known = [c.name for c in schema.categorical] + [n.name for n in schema.numeric]
        raise UserError(f"column={name}: must be a column of the run's rows, such as {', '.join(known)}")
    dataset = rows_for(config, schema, None).dataset
    data = config.data
    files = find_files(data.dir, data.source, data.url, cache.directory(data.cache_dir))
    frame = census.read(files.train if split == "train" else files.test)
    return frame[name].iloc[dataset.positions[split].numpy()].reset_index(drop=True)
