"""Text of the reports: Markdown tables, and a sentence about the rows."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from mmoe import Schema
from mmoe.intervals import half_interval


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    header = list(header)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def mean_text(values: pd.Series, form: str = ".4f") -> str:
    """The mean, written with `form`, and half its 95 % interval with the same decimals."""
    return f"{values.mean():{form}} ± {half_interval(values):{form.removeprefix('+')}}"


def describe_rows(schema: Schema) -> str:
    """A sentence with the origin of the rows and their number in each split."""
    origin = {
        "official": "The rows are from the official files",
        "sample": "The rows are THE BUNDLED SAMPLE, which is synthetic: these numbers are a first look",
        "custom": "The rows are from other files than the official ones, so the results cannot be compared"
        " with published numbers",
    }[schema.row_origin]
    counts = ", ".join(f"{count:,} {split}" for split, count in schema.num_rows.items())
    return f"{origin}: {counts}."


def write_report(out: Path, name: str, paragraphs: Sequence[str], runs: pd.DataFrame) -> None:
    """Write a report as NAME.md and all its runs as runs.csv, and print the report."""
    text = "\n\n".join(paragraphs)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text + "\n")
    runs.to_csv(out / "runs.csv", index=False, float_format="%.6f")
    print(text)
