"""The AUROC within groups of rows, as recommenders report it.

N rows.
"""

import numpy as np
import pandas as pd


def grouped_auroc(probability: np.ndarray, label: np.ndarray, group: pd.Series) -> float:
    """The mean AUROC of groups, weighted by their rows (Zhou et al., KDD 2018, section 5.3).

    Groups with labels of one class have no AUROC and do not count. Equal probabilities count one half.

    Args:
        probability: probabilities of a positive label [N].
        label: 0 or 1 [N].
        group: the group of each row [N], such as a user. Rows with a missing group do not count.

    Returns:
        The mean, or NaN if no group has labels of both classes.
    """
    frame = pd.DataFrame({"label": label.astype(np.float64), "probability": probability})
    by_group = frame.groupby(group.to_numpy(dtype=object))
    frame["positive_rank"] = by_group["probability"].rank() * frame["label"]
    found = frame.groupby(group.to_numpy(dtype=object)).agg(
        rows=("label", "size"), positives=("label", "sum"), ranks=("positive_rank", "sum")
    )
    found = found[(found["positives"] > 0) & (found["positives"] < found["rows"])]
    if found.empty:
        return float("nan")
    pairs = found["positives"] * (found["rows"] - found["positives"])
    auroc = (found["ranks"] - found["positives"] * (found["positives"] + 1) / 2) / pairs
    return float(np.average(auroc, weights=found["rows"]))
