"""How far the mean of a few runs may be from that of many."""

import numpy as np
import pandas as pd
from scipy.special import stdtrit


def half_interval(values: pd.Series) -> float:
    """Half the 95 % confidence interval of the mean (Student's t); nan for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(stdtrit(len(values) - 1, 0.975) * values.std() / np.sqrt(len(values)))
