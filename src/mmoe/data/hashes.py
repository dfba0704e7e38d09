"""Hashes of rows and of levels, as numbers from 0 to 1. They decide which rows a sample or a split gets.

N rows.
"""

import numpy as np
import pandas as pd


def row_hashes(first_row: int, num_rows: int, salt: str) -> np.ndarray:
    """For each row [N] a hash of the row's number in the files and the salt, as a number from 0 to 1."""
    numbers = np.arange(first_row, first_row + num_rows, dtype=np.uint64)
    (offset,) = pd.util.hash_array(np.array([salt], dtype=object))
    return _scaled(pd.util.hash_array(numbers ^ offset))


def level_hashes(levels: list[str], salt: str) -> np.ndarray:
    """For each level a hash of the level's name and the salt, as a number from 0 to 1."""
    return _scaled(pd.util.hash_array(np.array([f"{salt} {level}" for level in levels], dtype=object)))


def _scaled(hashes: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = hashes / 2.0**64
    return scaled
