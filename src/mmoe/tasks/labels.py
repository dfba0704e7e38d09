"""The levels of a label column.

N rows.
"""

import re
from decimal import Decimal
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd

from mmoe.raw.levels import levels_of


def level_text(value: Any) -> str:
    """The level that a value stands for, as text: 1, 1.0 and "1.0" are "1"; True and "True" are "true"."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, float | np.floating | Decimal):
        return str(int(value)) if value == value // 1 else str(value)
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    return text.partition(".")[0] if re.fullmatch(r"-?[0-9]+\.0+", text) else text


def sort_levels(levels: set[str]) -> tuple[str, ...]:
    """Levels in order: by value if all are integers, else as text."""
    are_integers = all(re.fullmatch("-?[0-9]{1,18}", level) for level in levels)
    return tuple(sorted(sorted(levels), key=int) if are_integers else sorted(levels))


def label_levels(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    """The codes [N] of a column (-1: missing or empty), and its distinct levels as `level_text` gives them.

    Raises:
        UserError: the column holds lists or the like.
    """
    codes, names, _ = levels_of(values)
    texts = [level_text(name) for name in names]
    number = {text: i for i, text in enumerate(dict.fromkeys(text for text in texts if text))}
    lookup = np.array([*(number.get(text, -1) for text in texts), -1])
    return lookup[codes], list(number)


def count_levels(values: pd.Series) -> dict[str, int]:
    """The number of rows by level, without missing ones."""
    codes, levels = label_levels(values)
    counts = np.bincount(codes[codes >= 0], minlength=len(levels)).tolist()
    return {level: count for level, count in zip(levels, counts, strict=True) if count}
