"""What a model card says about the data of a run."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from mmoe.analysis.page import code, number_of, table
from mmoe.data.columns import Categorical, Numeric
from mmoe.run import Run

MAX_COLUMNS, MAX_FILES = 50, 20  # that the card lists
HELD_OUT_NAMES = {"test": "test", "val": "validation"}


def data_section(run: Run) -> Iterator[str]:
    """The rows of each split, the files, and the columns."""
    schema, data = run.schema, run.config.data
    counts = ", ".join(f"{n:,} {HELD_OUT_NAMES.get(split, split)}" for split, n in schema.num_rows.items())
    yield f"Rows: {counts or 'not counted'}.\n\n"
    for key in ("validation", "test"):
        if data.get(key) is not None:
            is_after_test = key == "validation" and OmegaConf.is_dict(data.get("test"))
            yield f"{key.capitalize()} rows: {_rule(data[key], is_after_test)}.\n\n"
    if schema.files:
        lines = [[*_file(name), code(digest[:16])] for name, digest in schema.files.items()][:MAX_FILES]
        header = ["file", "part", "SHA-256 begins with"]
        if all(part == "-" for _, part, _ in lines):  # such as for census files, whose names say it
            header, lines = [header[0], header[2]], [[file, digest] for file, _, digest in lines]
        yield table(header, lines) + "\n"
        yield _more(len(schema.files), MAX_FILES, "file")
    columns: list[Categorical | Numeric] = [*schema.categorical, *schema.numeric]
    has_parts = any(one.part for one in schema.categorical)
    of_dates = " A date gives several inputs: itself, and its parts." if has_parts else ""
    counted = number_of(len(schema.numeric), "numeric column")
    yield f"Inputs: {len(schema.categorical):,} categorical and {counted}.{of_dates}\n\n"
    yield table(["column", "kind", "training rows"], map(_column, columns[:MAX_COLUMNS])) + "\n"
    yield _more(len(columns), MAX_COLUMNS, "column")


def _file(name: str) -> tuple[str, str]:
    """The name of a file in `Schema.files`, and the part of the data that it belongs to, such as `train`."""
    part, slash, file = name.partition("/")
    return (code(file), part) if slash else (code(name), "-")


def _column(column: Categorical | Numeric) -> list[str]:
    if isinstance(column, Numeric):
        mean = column.mean + column.origin
        if column.is_datetime:
            kind = "date"
            facts = f"mean {np.datetime64(round(mean), 'D')}, standard deviation {column.std:.4g} days"
        else:
            kind, facts = "numeric", f"mean {mean:.4g}, standard deviation {column.std:.4g}"
    else:
        kind = f"{column.part} of {code(column.source)}" if column.part else "categorical"
        facts = f"{column.buckets} hash buckets" if column.buckets else number_of(len(column.levels), "level")
        facts += f", vectors of {column.size}" if column.size else ""
        facts += ", target statistics of the training labels" if column.encoding else ""
        facts += f", at most {column.max_values} per row" if column.is_multi else ""
    return [code(column.name), kind, facts + (", some missing" if column.has_missing else "")]


def _rule(rule: Any, is_after_test: bool) -> str:
    """How the rows of a split were chosen. With `is_after_test`, the test rows were taken out first."""
    if not OmegaConf.is_dict(rule):
        return "files of their own"
    rest = ", without the test rows" if is_after_test and rule.get("of", "train") == "train" else ""
    by, source = rule.get("by"), f"the {rule.get('of', 'train').replace('train', 'training')} files"
    if rule.get("fraction") is not None:
        chosen = f"the values of {code(by)} in {source}" if by else f"the rows of {source}"
        return f"a random {rule.fraction:.3g} of {chosen}{rest}"
    if rule.get("last") is not None:
        return f"the rows of {source} with the largest {code(by)}, a share of {rule.last:.3g}{rest}"
    return f"those of {source} where {code(rule.get('column'))} is {code(rule.get('value'))}{rest}"


def _more(count: int, shown: int, what: str) -> str:
    return f"`schema.json` has {number_of(count - shown, f'more {what}')}.\n\n" if count > shown else ""
