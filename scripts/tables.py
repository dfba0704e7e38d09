"""Markdown tables of the reproduction scripts."""

from collections.abc import Iterable

from mmoe import Schema


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a Markdown table."""
    header = list(header)
    return [_line(header), _line(["---"] * len(header)), *map(_line, rows)]


def describe_rows(schema: Schema) -> str:
    """Which rows the numbers are of, and how many, as a sentence."""
    kind = {
        "official": "The official rows",
        "sample": "THE BUNDLED SAMPLE, whose rows are synthetic, so that these numbers mean nothing",
        "custom": "Rows of other files than the official ones, so that published numbers do not compare",
    }[schema.rows]
    counts = ", ".join(f"{count:,} {split}" for split, count in schema.num_rows.items())
    return f"{kind}: {counts}."


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
