"""Estimate whether the rows of files fit into memory."""

import os
from collections.abc import Sequence
from pathlib import Path

from mmoe.data.columnar_files import ColumnarFile
from mmoe.data.data_files import COMPRESSIONS, CSV, file_kind, file_size

# Bytes of memory for a value at the peak of reading, encoding and training, with a margin: a census row of 40
# columns takes about 457 bytes, 11 for each value.
BYTES_PER_VALUE = 16
CSV_FACTOR = 3  # bytes of memory for a byte of text
COMPRESSION = 5  # bytes of text in a byte of a compressed file
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_to_encode(files: Sequence[str], num_columns: int) -> float:
    """About how many bytes of memory it takes to encode and train on the rows of these files."""
    total = 0.0
    for file in files:
        if file_kind(file) == CSV:
            is_compressed = file.lower().endswith(tuple(COMPRESSIONS))
            total += file_size(file) * CSV_FACTOR * (COMPRESSION if is_compressed else 1)
        else:
            total += sum(ColumnarFile(file).rows_per_group()) * num_columns * BYTES_PER_VALUE
    return total


def memory_size() -> float:
    """The bytes of memory that this process may use: those of the machine, or of its container."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else []
    for path in map(Path, CGROUP_LIMITS):
        text = path.read_text().strip() if path.exists() else ""
        sizes += [int(text)] if text.isdigit() else []
    return float(min(sizes, default=float("inf")))
