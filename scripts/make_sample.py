"""Make the bundled sample: synthetic rows in the official format, none of them real.

A Chow-Liu tree (Chow and Liu, 1968: the spanning tree of largest mutual information between columns) is
fitted to the real rows, and rows are drawn from it, each column given its parent. A numeric value that few
real rows share is first replaced by its interval, and drawn evenly from it.

usage: python scripts/make_sample.py DATA_DIR
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
COMMON = 200  # rows: a numeric value that so many share is drawn as it is
INTERVALS = 100  # quantile intervals of the other values of a column


class Discrete:
    """A column as symbols 0..size-1, and back."""

    def __init__(self, name: str, values: pd.Series) -> None:
        self.is_weight = name == "instance_weight"
        if name not in NUMERIC:
            self.levels, self.symbols = list(values.cat.categories), values.cat.codes.to_numpy()
            self.size = len(self.levels)
            return
        numbers = values.to_numpy()
        counts = values.value_counts()
        self.levels = sorted(counts.index[(counts >= COMMON) & (not self.is_weight)])
        rest = numbers[~np.isin(numbers, self.levels)]
        self.edges = np.unique(np.quantile(rest, np.linspace(0, 1, INTERVALS + 1))) if len(rest) else [0, 1]
        self.size = len(self.levels) + len(self.edges) - 1
        interval = np.clip(np.searchsorted(self.edges, numbers, "right") - 1, 0, len(self.edges) - 2)
        self.symbols = np.where(
            np.isin(numbers, self.levels),
            np.searchsorted(self.levels, numbers) if self.levels else 0,
            len(self.levels) + interval,
        )

    def text(self, symbol: int, random: np.random.Generator) -> str:
        """The field of a symbol; a number is drawn where the symbol is an interval."""
        if symbol < len(self.levels):
            level = self.levels[symbol]
            return level if isinstance(level, str) else f"{level:.0f}"
        low, high = self.edges[symbol - len(self.levels) :][:2]
        return f"{random.uniform(low, high):.{2 if self.is_weight else 0}f}"


def mutual_information(a: Discrete, b: Discrete) -> float:
    """In nats."""
    joint = joint_counts(a, b) / len(a.symbols)
    outer = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / outer[seen])).sum())


def joint_counts(a: Discrete, b: Discrete) -> np.ndarray:
    """Rows by the symbols of both columns."""
    index = a.symbols.astype(np.int64) * b.size + b.symbols
    return np.bincount(index, minlength=a.size * b.size).reshape(a.size, b.size)


def draw(columns: list[Discrete], edges: list[tuple[int, int]], random: np.random.Generator) -> list[str]:
    """One row: the root from its distribution, every other column given its parent."""
    symbols = {0: int(random.choice(columns[0].symbols))}
    for parent, child in edges:
        # The child of a random real row with the parent's symbol follows their conditional distribution.
        rows = columns[parent].rows_of[symbols[parent]]
        symbols[child] = int(columns[child].symbols[random.choice(rows)])
    return [column.text(symbols[i], random) for i, column in enumerate(columns)]


def main() -> None:
    """Fit, draw and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data_dir", help="directory of the two real files")
    parser.add_argument("--out", type=Path, default=SAMPLE_DIR, help="where the sample goes")
    arguments = parser.parse_args()
    files = find_files(arguments.data_dir, "official", "", Path())
    frame = pd.concat([read(files.train), read(files.test)], ignore_index=True)
    columns = []
    for name in COLUMNS:
        values = frame[name] if name in NUMERIC else frame[name].astype("category")
        columns.append(Discrete(name, values))
    for column in columns:
        column.rows_of = [np.flatnonzero(column.symbols == s) for s in range(column.size)]

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
