"""Markdown tables and intervals of the reproduction scripts."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.special import stdtrit


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a Markdown table."""
    header = list(header)
    return [_line(header), _line(["---"] * len(header)), *map(_line, rows)]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def half_interval(values: pd.Series) -> float:
    """Half the 95 % confidence interval of the mean (Student's t)."""
    return float(stdtrit(len(values) - 1, 0.975) * values.std() / np.sqrt(len(values)))
