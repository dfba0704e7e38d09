"""Make the bundled sample: synthetic rows in the official format. No row equals a real row.

The columns are drawn one after the other. For each column, a decision tree is fitted to the official training
rows, given the columns before it. A new row takes the value of a random real row in its leaf (sequential
synthesis with CART; Reiter, Journal of Official Statistics, 2005).

usage: python scripts/make_sample.py data.dir=... [option=value]

    data.dir=...                 folder of the two official files
    out=src/mmoe/data/sample     folder for the sample; by default, its folder in the package
"""

import gzip
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from options import parse, stop
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from mmoe.data.census import read
from mmoe.data.census_files import COLUMNS, FILE_NAMES, NUMERIC, SAMPLE_DIR, find_census_files
from mmoe.errors import UserError

DEFAULTS = {"data.dir": None, "out": str(SAMPLE_DIR)}
SEED = 20181
WEIGHT = COLUMNS.index("instance_weight")
NUM_ROWS = {"train": 20_000, "test": 10_000}
MIN_LEAF_ROWS = 25  # real rows in each leaf of a tree
# Weights are changed, by at most this share, because a real weight with its decimals nearly identifies a row.
MAX_CHANGE = 0.05
# Columns that others depend on come first. The income comes early, so that many columns depend on it.
ORDER = (
    "age", "sex", "education", "marital_status", "income", "household_and_family", "household_summary",
    "family_under_18", "race", "hispanic_origin", "country_of_self", "country_of_mother",
    "country_of_father", "citizenship", "enrolled_last_week", "weeks_worked", "class_of_worker",
    "full_or_part_time", "number_worked_for", "major_occupation", "occupation_code", "major_industry",
    "industry_code", "tax_filer_status", "capital_gains", "capital_losses", "dividends", "wage_per_hour",
    "union_member", "unemployment_reason", "own_business", "veterans_benefits", "veterans_questionnaire",
    "year", "same_house", "migration_msa", "migration_region", "migration_within_region",
    "previous_sunbelt", "previous_region", "previous_state", "instance_weight",
)  # fmt: skip


def encode(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """The columns as numbers, and the levels of each categorical column, in the order of their numbers.

    Levels are numbered by their rate of high incomes, from the lowest.
    """
    is_rich = frame["income"].astype(str) == "50000+."
    encoded, levels = {}, {}
    for name in COLUMNS:
        if name in NUMERIC:
            encoded[name] = frame[name].to_numpy(np.float32)
        else:
            text = frame[name].astype(str)
            levels[name] = list(is_rich.groupby(text).mean().sort_values(kind="stable").index)
            encoded[name] = pd.Categorical(text, levels[name]).codes.astype(np.float32)
    return pd.DataFrame(encoded), levels


def synthesize(real: pd.DataFrame, count: int, random: np.random.Generator) -> pd.DataFrame:
    """Draw `count` rows of numbers, column by column in `ORDER`."""
    new = pd.DataFrame({ORDER[0]: random.choice(real[ORDER[0]], count)})
    for i, name in enumerate(ORDER[1:], 1):
        make = DecisionTreeRegressor if name in NUMERIC else DecisionTreeClassifier
        tree = make(min_samples_leaf=MIN_LEAF_ROWS, random_state=SEED)
        given = list(ORDER[:i])
        tree.fit(real[given], real[name])
        leaf_of_real, leaf_of_new = tree.apply(real[given]), tree.apply(new[given])
        by_leaf = np.argsort(leaf_of_real, kind="stable")
        ends = np.searchsorted(leaf_of_real[by_leaf], np.arange(tree.tree_.node_count + 1))
        first, end = ends[leaf_of_new], ends[leaf_of_new + 1]
        new[name] = real[name].to_numpy()[by_leaf[random.integers(first, end)]]
    return new


def to_lines(rows: pd.DataFrame, levels: dict[str, list[str]]) -> list[str]:
    """Format rows as in the official files."""
    fields = [
        [levels[name][int(code)] for code in rows[name]]
        if name in levels
        else [f"{value:.{2 if name == 'instance_weight' else 0}f}" for value in rows[name]]
        for name in COLUMNS
    ]
    return [", ".join(row) for row in zip(*fields, strict=True)]


def fields_of(line: str) -> tuple[str, ...]:
    """The fields of a line in one spelling; the official files write 10.00 as 10 and add some spaces."""
    fields = [field.strip() for field in line.split(",")]
    fields[WEIGHT] = f"{float(fields[WEIGHT]):.2f}"
    return tuple(fields)


def read_rows(path: Path) -> set[tuple[str, ...]]:
    """The rows of a file, which may be compressed, each as its fields."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("latin-1")
    return set(map(fields_of, text.splitlines()))


def main() -> None:
    """Fit the trees, draw the rows and write both files."""
    options, unknown = parse(sys.argv[1:], DEFAULTS, {}, {})
    if unknown:
        stop(f"{unknown[0]}: must be data.dir=... or out=...")
    if not options["data.dir"]:
        stop("data.dir: must be the folder of the official files")
    try:
        files = find_census_files(options["data.dir"], "official", "", Path())
    except UserError as error:
        stop(str(error))
    real, levels = encode(read(files.train))
    total = sum(NUM_ROWS.values())
    random = np.random.default_rng(SEED)
    drawn = synthesize(real, total, random)
    weights, is_real = drawn["instance_weight"].to_numpy(np.float64), np.ones(total, dtype=bool)
    real_rows = read_rows(files.train) | read_rows(files.test)
    while is_real.any():
        change = random.uniform(-MAX_CHANGE, MAX_CHANGE, total)
        drawn["instance_weight"] = np.where(is_real, weights * (1 + change), drawn["instance_weight"])
        lines = to_lines(drawn, levels)
        is_real = np.array([fields_of(line) in real_rows for line in lines])
        print(f"{is_real.sum():,} rows equal a real row and get another weight")
    start = 0
    for name, count in NUM_ROWS.items():
        text = "".join(f"{line}\n" for line in lines[start : start + count]).encode("latin-1")
        start += count
        path = Path(options["out"]) / f"{FILE_NAMES[name]}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text, 9, mtime=0))
        print(f"{path}: {count:,} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
