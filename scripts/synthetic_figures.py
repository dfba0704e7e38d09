"""The figures and tables of scripts/reproduce_synthetic.py: a function for each figure of the paper.

Each one writes its figure and its CSV, and returns the paragraphs of its section in the report.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report_text import mean_text, table

from mmoe.data.synthetic_generator import RowGenerator
from mmoe.intervals import half_interval

NAMES = {
    "shared_bottom": "Shared-Bottom, 113 wide", "omoe": "OMoE, 8 x 16", "mmoe": "MMoE, 8 x 16",
    "shared_bottom_16": "Shared-Bottom, 16 wide",
}  # fmt: skip
COMPARED = {"shared_bottom": "--", "omoe": ":", "mmoe": "-"}  # models of figures 4 and 5, with line styles
# Read by eye from the paper's figures 2 and 4 (mean loss at 10,000 steps).
PUBLISHED_CORRELATION = {0.4: 0.06, 0.6: 0.10, 0.8: 0.20, 0.9: 0.30, 0.95: 0.45, 0.98: 0.65, 1.0: 1.0}
PUBLISHED_LOSS = {
    "shared_bottom": {0.5: 0.255, 0.9: 0.22, 1.0: 0.20},
    "omoe": {0.5: 0.145, 0.9: 0.12, 1.0: 0.08},
    "mmoe": {0.5: 0.085, 0.9: 0.08, 1.0: 0.07},
}


@dataclass(frozen=True)
class Results:
    """The losses of all runs and of the trials, and the settings behind them."""

    data: dict[str, Any]  # the configuration under `data`
    runs: pd.DataFrame
    trials: pd.DataFrame
    options: dict[str, str]
    out: Path


def figure2(results: Results) -> list[str]:
    """Correlation of the labels against the cosine. As in the paper, 10,000 rows with each of 100 seeds."""
    arguments = {key: results.data[key] for key in ("c", "m", "a", "b", "d", "noise_variance")}
    rows = []
    for cosine in [0.0, 0.2, *PUBLISHED_CORRELATION]:
        generator = RowGenerator(cosine, **arguments)
        for seed in range(100):
            labels = generator.rows([seed], 0, 10_000).labels
            correlation = torch.corrcoef(labels.T)[0, 1].item()
            rows.append({"cosine": cosine, "seed": seed, "correlation": correlation})
    frame = pd.DataFrame(rows)
    frame.to_csv(results.out / "figure2.csv", index=False, float_format="%.5f")
    means = frame.groupby("cosine")["correlation"].agg(["mean", "std"])
    figure, ((axes,),) = panels(1, 1, 5, 3.6)
    axes.errorbar(means.index, means["mean"], means["std"], fmt="o-", color="black", capsize=3, label="ours")
    published = np.array(list(PUBLISHED_CORRELATION.items()))
    axes.plot(published[:, 0], published[:, 1], "x", markersize=8, color="0.4", label="paper, by eye")
    axes.set(xlabel="cosine of the tasks' weights, p", ylabel="Pearson correlation of the labels")
    axes.legend()
    figure.savefig(results.out / "figure2.png", dpi=150)
    cells = []
    for cosine, row in means.iterrows():
        paper = PUBLISHED_CORRELATION.get(float(cosine))
        shown = ["-", "-"] if paper is None else [f"{paper:.2f}", f"{row['mean'] - paper:+.3f}"]
        cells.append([f"{cosine:g}", f"{row['mean']:.3f}", f"{row['std']:.3f}", *shown])
    residuals = [means["mean"][p] - correlation for p, correlation in PUBLISHED_CORRELATION.items()]
    return [
        "## Figure 2: correlation of the labels",
        table(["p", "correlation", "sd over 100 seeds", "paper, by eye", "residual"], cells),
        f"The root mean square of the residuals is {np.sqrt(np.mean(np.square(residuals))):.3f}.",
        "![correlation of the labels against the cosine](figure2.png)",
    ]


def figure3(results: Results) -> list[str]:
    """Shared-Bottom's loss during training, at each cosine."""
    runs = results.runs[results.runs["model"] == "shared_bottom_16"]
    figure, ((axes,),) = panels(1, 1, 5, 3.6)
    for (cosine, part), style in zip(runs.groupby("cosine"), itertools.cycle((":", "--", "-"))):
        draw_curve(axes, part, style, f"p = {cosine:g}")
    axes.set(xlabel="training steps", ylabel="loss (mean squared error)")
    axes.legend()
    figure.savefig(results.out / "figure3.png", dpi=150)
    return [
        "## Figure 3: Shared-Bottom suffers from tasks that differ",
        loss_table(runs, results.out / "figure3.csv"),
        f"Lines are means of {results.options['runs']} runs; bands are quartiles.",
        "![Shared-Bottom's loss during training](figure3.png)",
    ]


def figure4(results: Results) -> list[str]:
    """The three models' losses during training at each cosine, and the paper's claims about them."""
    runs = results.runs[results.runs["model"].isin(COMPARED)]
    cosines = runs["cosine"].unique()
    figure, (row,) = panels(1, len(cosines), 1 + 3 * len(cosines), 3.4, sharey=True)
    for axes, cosine in zip(row, cosines, strict=True):
        for model, style in COMPARED.items():
            draw_curve(axes, runs[(runs["cosine"] == cosine) & (runs["model"] == model)], style, NAMES[model])
        axes.set(xlabel="training steps", title=f"p = {cosine:g}")
    row[0].set_ylabel("loss (mean squared error)")
    row[0].legend()
    figure.savefig(results.out / "figure4.png", dpi=150)
    options = results.options
    choice = (
        "" if results.trials.empty else f", chosen by the mean final loss of {options['trials']} other runs"
    )
    has_both_cosines = {0.5, 1.0} <= set(cosines)
    return [
        "## Figure 4: three models of about the same size",
        loss_table(runs, results.out / "figure4.csv"),
        "`±` is half the 95 % confidence interval of the mean, and `sd` is the standard deviation over runs."
        f" Learning rates are from {options['rates']}{choice}. The paper's 13,056 parameters are the weights"
        " of the experts and of the towers' hidden layers; our numbers include gates and biases.",
        *rate_table(results),
        claim_table(final_losses(runs))
        if has_both_cosines
        else "The table of the paper's claims needs runs at p = 0.5 and p = 1.",
        f"Lines are means of {options['runs']} runs; bands are quartiles.",
        "![loss of three models during training](figure4.png)",
    ]


def figure5(results: Results) -> list[str]:
    """Histograms of the final losses."""
    ends = final_losses(results.runs[results.runs["model"].isin(COMPARED)])
    edges, cosines = np.linspace(0, ends["loss"].quantile(0.999) * 1.02, 40), ends["cosine"].unique()
    figure, grid = panels(len(COMPARED), len(cosines), 1 + 3 * len(cosines), 6, sharex=True, sharey=True)
    for row, model in zip(grid, COMPARED, strict=True):
        for axes, cosine in zip(row, cosines, strict=True):
            values = ends[(ends["model"] == model) & (ends["cosine"] == cosine)]["loss"]
            axes.hist(values, edges, color="0.7", edgecolor="black", linewidth=0.5)
            axes.axvline(values.mean(), linestyle="--", color="black")
            axes.set_title(f"{NAMES[model]}, p = {cosine:g}", fontsize=9)
        row[0].set_ylabel("runs")
    for axes in grid[-1]:
        axes.set_xlabel("final loss (mean squared error)")
    figure.savefig(results.out / "figure5.png", dpi=150)
    ends.to_csv(results.out / "figure5.csv", index=False, float_format="%.5f")
    return [
        "## Figure 5: distribution of the final losses",
        f"Each histogram shows {results.options['runs']} runs. The dashed line is the mean.",
        "![histograms of final losses](figure5.png)",
    ]


SECTIONS = {"2": figure2, "3": figure3, "4": figure4, "5": figure5}


def panels(
    num_rows: int, num_columns: int, width: float, height: float, **shared: bool
) -> tuple[Figure, Any]:
    """A figure of `width` x `height` inches, and its axes [num_rows, num_columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **shared)


def draw_curve(axes: Axes, runs: pd.DataFrame, style: str, label: str) -> None:
    """Draw the mean and the quartiles of the loss against steps."""
    by_step = runs.groupby("step")["loss"]
    mean, low, high = by_step.mean(), by_step.quantile(0.25), by_step.quantile(0.75)
    (line,) = axes.plot(mean.index, mean, style, label=label)
    axes.fill_between(mean.index, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.grid(alpha=0.3)


def final_losses(runs: pd.DataFrame) -> pd.DataFrame:
    """The last loss of each run."""
    return runs[runs["step"] == runs["step"].max()].drop(columns="step")


def loss_table(runs: pd.DataFrame, path: Path) -> str:
    """Table of the final losses by model and cosine. Statistics of all steps are written to `path`."""
    by_step = runs.groupby(["model", "cosine", "rate", "step"])["loss"]
    by_step.describe().to_csv(path, float_format="%.5f")
    rows = []
    for (model, cosine, rate), group in final_losses(runs).groupby(["model", "cosine", "rate"], sort=False):
        values = group["loss"]
        quantiles = [f"{values.quantile(q):.3f}" for q in (0.05, 0.5, 0.95)]
        paper = PUBLISHED_LOSS.get(model, {}).get(cosine)
        rows.append(
            [
                NAMES[model], f"{cosine:g}", f"{rate:g}",
                mean_text(values, ".3f"), f"{values.std():.3f}", *quantiles,
                "-" if paper is None else f"{paper:.3f}", f"{group['parameters'].iloc[0]:,}",
            ]
        )  # fmt: skip
    header = ["model", "p", "rate", "mean final loss", "sd", "5 %", "median", "95 %", "paper's mean, by eye"]
    return table([*header, "parameters"], rows)


def rate_table(results: Results) -> list[str]:
    """Table of the final losses of the trials at every rate, if there were trials."""
    if results.trials.empty:
        return []
    ends = final_losses(results.trials[results.trials["model"].isin(COMPARED)])
    rates = sorted(ends["rate"].unique())
    rows = []
    for (model, cosine), group in ends.groupby(["model", "cosine"], sort=False):
        losses = [group.loc[group["rate"] == rate, "loss"] for rate in rates]
        cells = [f"{mean_text(v, '.3f')} (sd {v.std():.3f})" for v in losses]
        rows.append([NAMES[model], f"{cosine:g}", *cells])
    return [
        f"Final losses of {results.options['trials']} trials at each rate:",
        table(["model", "p", *(f"rate {rate:g}" for rate in rates)], rows),
    ]


def claim_table(ends: pd.DataFrame) -> str:
    """Table of the paper's claims about figures 4 and 5: whether they hold here, with the numbers."""
    losses = {cell: group["loss"] for cell, group in ends.groupby(["model", "cosine"])}
    mean = {cell: values.mean() for cell, values in losses.items()}
    half = {cell: half_interval(values) for cell, values in losses.items()}
    sd = {cell: values.std() for cell, values in losses.items()}
    cosines = ends["cosine"].unique()

    def is_below(first: str, second: str) -> bool:
        return mean[first, 0.5] + half[first, 0.5] < mean[second, 0.5] - half[second, 0.5]

    def shown(values: dict[Any, float], models: Iterable[str], p: float) -> str:
        return ", ".join(f"{model} {values[model, p]:.3f}" for model in models)

    gap = {model: mean[model, 0.5] - mean[model, 1.0] for model in COMPARED}
    gap_half = {model: np.hypot(half[model, 0.5], half[model, 1.0]) for model in COMPARED}
    others = min(gap[model] - gap_half[model] for model in ("omoe", "shared_bottom"))
    is_smallest = min(gap, key=lambda model: abs(gap[model])) == "mmoe"
    claims = [
        (
            "at p = 0.5 MMoE has a lower loss than OMoE, and OMoE than Shared-Bottom; intervals are disjoint",
            is_below("mmoe", "omoe") and is_below("omoe", "shared_bottom"),
            shown(mean, ("mmoe", "omoe", "shared_bottom"), 0.5),
        ),
        (
            "the gap between p = 0.5 and p = 1 is smallest for MMoE; intervals are disjoint",
            is_smallest and gap["mmoe"] + gap_half["mmoe"] < others,
            ", ".join(f"{model} {gap[model]:+.3f} ± {gap_half[model]:.3f}" for model in gap),
        ),
        (
            "Shared-Bottom's final losses have the largest sd at every p",
            all(sd["shared_bottom", p] > max(sd["omoe", p], sd["mmoe", p]) for p in cosines),
            "; ".join(f"p = {p:g}: {shown(sd, COMPARED, p)}" for p in cosines),
        ),
    ]
    rows = [[claim, "holds" if holds else "does not hold", numbers] for claim, holds, numbers in claims]
    return table(["claim of the paper", "here", "numbers"], rows)
