"""Encode a table in memory."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from mmoe.data.batch import Batch, take
from mmoe.data.encode import encode
from mmoe.data.encode_labels import encode_groups
from mmoe.data.fit_schema import fit_schema
from mmoe.data.splits import SPLITS, Dataset, with_modes
from mmoe.data.table_request import Request
from mmoe.data.table_source import Source, errors_of
from mmoe.data.target_statistics import needs_statistics, with_target_statistics


def encode_table(sources: Mapping[str, Source], request: Request) -> Dataset:
    """The encoded rows of a table. Their schema is that of the request, or fits the training rows.

    Raises:
        UserError: a file or a value breaks a rule, or a split has no rows.
    """
    frames: dict[str, pd.DataFrame] = {}
    chosen: dict[str, np.ndarray] = {}
    for name, source in sources.items():
        with errors_of(source):
            frames[name] = source.read(request.all_columns(name))
            chosen |= request.positions(name, frames[name])
    positions = {split: chosen[split] for split in SPLITS}
    with errors_of(sources["train"]):
        schema = request.schema or fit_schema(
            frames["train"], request.columns, request.tasks, request.num_bins, positions["train"]
        )
    encoded: dict[str, Batch] = {}
    for name, frame in frames.items():
        with errors_of(sources[name]):
            encoded[name] = encode(frame, schema)
    splits = {}
    for split, where in positions.items():
        name = request.source_of(split)
        rows = encoded[name]
        splits[split] = rows if len(where) == len(rows.labels) else take(rows, torch.from_numpy(where))
        if split != "train":
            with errors_of(sources[name]):
                groups = encode_groups(frames[name], schema.tasks, where)
            splits[split] = splits[split]._replace(groups=groups)
    if needs_statistics(schema):
        schema = with_target_statistics(schema, [splits["train"]])
    if not request.schema:
        schema = with_modes(schema, splits["train"].levels)
    num_rows = {split: len(where) for split, where in positions.items()}
    index = {split: torch.from_numpy(where) for split, where in positions.items()}
    return Dataset(replace(schema, num_rows=num_rows), splits, index)
