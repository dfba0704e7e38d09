"""Join MovieLens's ratings with its films, and write them as one Parquet file.

usage: python scripts/join_movielens.py FOLDER FILE

FOLDER holds ratings.csv and movies.csv of ml-latest-small, plain or as .gz. Each row of FILE is a rating with
the film's genres and year, and `liked`, which is 1 for ratings of at least 4.
"""

import sys
from pathlib import Path

import pandas as pd
from options import stop

from mmoe.atomic import write


def main() -> None:
    """Join the two files."""
    if len(sys.argv) != 3:
        stop("usage: python scripts/join_movielens.py FOLDER FILE")
    join(Path(sys.argv[1]), Path(sys.argv[2]))


def join(folder: Path, target: Path) -> None:
    """Write the joined rows, in the order of the ratings."""
    tables = {}
    for name in ("ratings", "movies"):
        found = sorted(folder.glob(f"{name}.csv*"))
        if not found:
            stop(f"{folder}: must hold {name}.csv")
        tables[name] = pd.read_csv(found[0])
    movies = tables["movies"]
    movies["year"] = pd.to_numeric(movies["title"].str.extract(r"\((\d{4})\)\s*$")[0])
    joined = tables["ratings"].merge(movies.drop(columns="title"), on="movieId", how="left")
    joined["liked"] = (joined["rating"] >= 4).astype(int)
    write(target, lambda scratch: joined.to_parquet(scratch, index=False))


if __name__ == "__main__":
    main()
