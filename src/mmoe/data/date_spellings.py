"""Which texts and numbers of a column are dates."""

import re

import numpy as np
import pandas as pd

from mmoe.data.column_values import ColumnValues

# 2020-12-31, 31.12.2020 and 12/31/20, also with a time; 31-Dec-2020
DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}|\d{1,2}/\d{1,2}/\d{2})"
    r"([T ]\d{1,2}:\d{2}.*)?"
    r"|\d{1,2}[- ][A-Za-z]{3,9}[- ,]+\d{2,4}.*"
)
COMPACT_DATES = (19000101, 21001231)  # the first and the last day that counts
MAX_DATES = 200_000  # distinct dates that are parsed to make sure that they are dates


def are_dates(texts: list[str]) -> bool:
    """Whether all texts are dates that pandas can read."""
    if not all(DATE.fullmatch(text.strip()) for text in texts[:1000]):
        return False
    dates = pd.to_datetime(pd.Series(texts[:MAX_DATES]), format="mixed", errors="coerce", utc=True)
    return bool(dates.notna().all())


def odd_dates(values: ColumnValues) -> list[str]:
    """The texts that are not dates, if at most 3 are not, and 90 % of the known values are dates."""
    looks_right = np.array([DATE.fullmatch(text.strip()) is not None for text in values.texts])
    texts = np.array(values.texts, dtype=object)
    dates, others = list(texts[looks_right]), list(texts[~looks_right])
    are_most_dates = values.counts[looks_right].sum() >= 0.9 * values.num_known
    return others if 0 < len(others) <= 3 < len(dates) and are_most_dates and are_dates(dates) else []


def are_compact_dates(numbers: np.ndarray) -> bool:
    """Whether all numbers are dates written as YYYYMMDD."""
    first, last = COMPACT_DATES
    if numbers.min() < first or numbers.max() > last:
        return False
    texts = pd.Series(numbers[:1000]).astype("int64").astype(str)
    return bool(pd.to_datetime(texts, format="%Y%m%d", errors="coerce").notna().all())


def describe_dates(dates: np.ndarray) -> str:
    """The first and the last of these dates."""
    return f"{dates.min().astype('M8[D]')} to {dates.max().astype('M8[D]')}"
