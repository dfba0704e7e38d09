"""The results of a benchmark as a table and a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from report_text import table

THICK, DOTTED = "mmoe", "first layer's products alone"  # programs whose lines in the figure stand out


def result_table(found: Mapping[str, Any]) -> str:
    """The results of a benchmark as a Markdown table."""
    if "samples_per_second" in found:
        return speed_table(found)
    if "lines" in found:
        rows = [list(map(line_text, line.values())) for line in found["lines"]]
        return table(found["lines"][0], rows)
    values = found.get("seconds", found)
    texts = {key: f"{value:.2f}" if isinstance(value, float) else str(value) for key, value in values.items()}
    return table(["what", "seconds" if "seconds" in found else "value"], map(list, texts.items()))


def line_text(value: float | str) -> str:
    """A cell of a table."""
    return value if isinstance(value, str) else f"{value:,.1f}".removesuffix(".0")


def speed_table(found: Mapping[str, Any]) -> str:
    """Samples a second in thousands. In parentheses: the speed of the first program divided by this speed."""
    speeds = found["samples_per_second"]
    names = list(dict.fromkeys(name for line in speeds.values() for name in line))
    first = names[0]
    rows = []
    for name in names:
        cells = []
        for line in speeds.values():
            ratio = f" ({line[first] / line[name]:.2f})" if name in line and name != first else ""
            cells.append(f"{line[name] / 1000:.1f}{ratio}" if name in line else "-")
        rows.append([name, *cells])
    title = f"thousand samples a second (in parentheses: {first} / this speed)"
    return table([title, *(f"{found['x']} {x}" for x in speeds)], rows)


def speed_figure(found: Mapping[str, Any], path: Path) -> None:
    """Draw the samples a second of all programs."""
    speeds = found["samples_per_second"]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(name for line in speeds.values() for name in line):
        points = [(int(x), line[name]) for x, line in speeds.items() if name in line]
        width, dashes = (2.5, "-") if name == THICK else (1.2, ":" if name == DOTTED else "--")
        axes.plot(*zip(*points, strict=True), dashes, marker="o", linewidth=width, markersize=4, label=name)
    axes.set(xscale="log", yscale="log", xlabel=found["x"], ylabel="samples a second")
    axes.set_xticks([int(x) for x in speeds], [str(x) for x in speeds])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
