"""Count ReLU units that are 0 for all rows."""

import math
from pathlib import Path

import pandas as pd
import torch

from mmoe.data import batch
from mmoe.errors import UserError
from mmoe.run import ROWS_PER_PASS, Run, load
from mmoe.training import validation_statistics


@torch.inference_mode()
def dead_units(
    run: Run | Path | str, split: str = "test", checkpoint: str = "best", replica: int | None = None
) -> pd.DataFrame:
    """Count the units of each ReLU that are 0 for all rows of a split.

    The table has a row for each ReLU, by the name of its module, and the columns `units` and `dead`.

    Raises:
        UserError: the run's network has no ReLU.
    """
    run = load(run)
    network, rows = run.network(checkpoint, replica), run.rows(split, replica)
    parts = batch.split(rows, ROWS_PER_PASS, math.ceil(len(rows.levels) / ROWS_PER_PASS), is_training=False)
    masks = [validation_statistics.dead_units(network, part) for part in parts]
    if not masks[0]:
        raise UserError(f"{run.folder}: its network must have ReLUs, such as with activation=relu")
    dead = {name: torch.stack([mask[name] for mask in masks]).all(0) for name in masks[0]}
    counts = {name: {"units": mask.numel(), "dead": int(mask.sum())} for name, mask in dead.items()}
    return pd.DataFrame.from_dict(counts, orient="index").rename_axis("layer")
