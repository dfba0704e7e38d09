"""Make the bundled sample: synthetic rows in the official format. No row equals a real row.

A Chow-Liu tree (Chow and Liu, 1968) is the spanning tree of the columns with the largest mutual information.
It is fitted to the real rows. Then each column of a new row is drawn given its parent in the tree. A number
that few real rows have is replaced by an interval, and a new number is drawn uniformly from the interval.

usage: python scripts/make_sample.py DATA_DIR [--out FOLDER]
"""

import argparse
import gzip
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd

from mmoe.data.census import COLUMNS, NUMERIC, read
from mmoe.data.census_files import NAMES, SAMPLE_DIR, find_files

SEED = 20181
NUM_ROWS = {"train": 6000, "test": 3000}
MIN_ROWS = 200  # a number that so many real rows have is drawn as it is
NUM_INTERVALS = 100  # quantile intervals of a column for all other numbers


class Discretized:
    """A column of the real rows as integer codes, each of which stands for a level or an interval."""

    def __init__(self, name: str, values: pd.Series) -> None:
        self.is_weight = name == "instance_weight"
        if name in NUMERIC:
            self._encode_numbers(values)
        else:
            categories = values.astype("category").cat
            self.levels, self.codes = list(categories.categories), categories.codes.to_numpy()
            self.size = len(self.levels)
        self.rows_of_code = [np.flatnonzero(self.codes == code) for code in range(self.size)]

    def _encode_numbers(self, values: pd.Series) -> None:
        numbers, counts = values.to_numpy(), values.value_counts()
        self.levels = sorted(counts.index[(counts >= MIN_ROWS) & (not self.is_weight)])
        is_level = np.isin(numbers, self.levels)
        rest = numbers[~is_level]
        quantiles = np.linspace(0, 1, NUM_INTERVALS + 1)
        self.edges = np.unique(np.quantile(rest, quantiles)) if len(rest) else [0, 1]
        self.size = len(self.levels) + len(self.edges) - 1
        interval = np.clip(np.searchsorted(self.edges, numbers, "right") - 1, 0, len(self.edges) - 2)
        level = np.searchsorted(self.levels, numbers) if self.levels else 0
        self.codes = np.where(is_level, level, len(self.levels) + interval)

    def text(self, code: int, random: np.random.Generator) -> str:
        """The field that a code stands for. For an interval, draw a number from it."""
        if code < len(self.levels):
            level = self.levels[code]
            return level if isinstance(level, str) else f"{level:.0f}"
        low, high = self.edges[code - len(self.levels) :][:2]
        return f"{random.uniform(low, high):.{2 if self.is_weight else 0}f}"


def mutual_information(a: Discretized, b: Discretized) -> float:
    """Mutual information of two columns, in nats."""
    index = a.codes.astype(np.int64) * b.size + b.codes
    counts = np.bincount(index, minlength=a.size * b.size).reshape(a.size, b.size)
    joint = counts / len(a.codes)
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / outer[seen])).sum())


def draw(columns: list[Discretized], edges: list[tuple[int, int]], random: np.random.Generator) -> list[str]:
    """Draw one row: the root from its distribution, every other column given its parent."""
    codes = {0: int(random.choice(columns[0].codes))}
    for parent, child in edges:
        # Take the child of a random real row that has the parent's code.
        rows = columns[parent].rows_of_code[codes[parent]]
        codes[child] = int(columns[child].codes[random.choice(rows)])
    return [column.text(codes[i], random) for i, column in enumerate(columns)]


def main() -> None:
    """Fit the tree, draw the rows and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", help="directory of the two real files")
    parser.add_argument("--out", type=Path, default=SAMPLE_DIR, help="folder for the sample")
    arguments = parser.parse_args()
    files = find_files(arguments.data_dir, "official", "", Path())
    frame = pd.concat([read(files.train), read(files.test)], ignore_index=True)
    columns = [Discretized(name, frame[name]) for name in COLUMNS]

    graph = nx.Graph()
    for i, a in enumerate(columns):
        for j in range(i):
            graph.add_edge(i, j, weight=mutual_information(a, columns[j]))
    tree = nx.maximum_spanning_tree(graph)
    edges = list(nx.bfs_edges(tree, 0))
    for parent, child in edges:
        print(f"{COLUMNS[parent]} -> {COLUMNS[child]}: {tree[parent][child]['weight']:.3f} nats")

    real = set(frame.astype(str).agg(",".join, axis=1))
    random = np.random.default_rng(SEED)
    for name, count in NUM_ROWS.items():
        rows: list[str] = []
        while len(rows) < count:
            fields = draw(columns, edges, random)
            as_read = [str(float(f)) if c in NUMERIC else f for c, f in zip(COLUMNS, fields, strict=True)]
            if ",".join(as_read) not in real:
                rows.append(", ".join(fields))
        text = "".join(f"{row}\n" for row in rows).encode("latin-1")
        path = arguments.out / f"{NAMES[name]}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text, 9, mtime=0))
        print(f"{path}: {count} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
