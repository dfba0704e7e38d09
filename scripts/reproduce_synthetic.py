"""Reproduce the paper's synthetic experiment (sections 3.3 and 5): figures 2 to 5, with tables.

usage: python scripts/reproduce_synthetic.py figure=2|3|4|5|all [option=value ...]

    figure=2           correlation of the labels against the cosine of the tasks' weights
    figure=3           training loss of Shared-Bottom with width 16, at three cosines
    figure=4           training loss of Shared-Bottom, OMoE and MMoE with about the same number of parameters
    figure=5           histograms of the final losses of figure 4's runs
    runs=200           runs of each model and cosine; each has its own data and initialisation
    rates=1e-4,1e-3,1e-2   the paper's learning rates, from which the best is chosen
    trials=20          runs that choose the rate, if there are several; they have other seeds
    cosines=0.5,0.9,1  values of p, the cosine of the tasks' weights
    chunk=50           runs trained side by side in one process
    jobs=1             number of processes at a time
    folder=runs/reproduce_synthetic   run folders; finished runs are used again
    out=docs/results/synthetic        folder for tables and figures

All other arguments are overrides for the training. A stopped script continues when it is started again.
"""

import itertools
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from commands import compose_config, train_once
from finished import check_settings
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from options import parse, stop
from tables import mean_text, table
from tqdm import tqdm

from mmoe.data.synthetic_generator import RowGenerator
from mmoe.intervals import half_interval
from mmoe.training.run_folder import has_ended, read_metrics, read_table

DEFAULTS = {
    "figure": None, "runs": "200", "rates": "1e-4,1e-3,1e-2", "trials": "20", "cosines": "0.5,0.9,1",
    "chunk": "50", "jobs": "1", "folder": "runs/reproduce_synthetic", "out": "docs/results/synthetic",
}  # fmt: skip
TRIAL_SEED = 1_000_000  # first seed of the runs that choose a rate
MODELS: dict[str, tuple[str, ...]] = {  # overrides
    "shared_bottom": ("model=shared_bottom", "model.bottom_units=[113]", "model.tower_units=[8]"),
    "omoe": ("model=omoe", "model.num_experts=8", "model.expert_units=[16]", "model.tower_units=[8]"),
    "mmoe": ("model=mmoe", "model.num_experts=8", "model.expert_units=[16]", "model.tower_units=[8]"),
    "shared_bottom_16": ("model=shared_bottom", "model.bottom_units=[16]", "model.tower_units=[8]"),
}
NAMES = {
    "shared_bottom": "Shared-Bottom, 113 wide", "omoe": "OMoE, 8 x 16", "mmoe": "MMoE, 8 x 16",
    "shared_bottom_16": "Shared-Bottom, 16 wide",
}  # fmt: skip
COMPARED = {"shared_bottom": "--", "omoe": ":", "mmoe": "-"}  # models of figures 4 and 5, with line styles
FIGURE_MODELS = {"2": [], "3": ["shared_bottom_16"], "4": list(COMPARED), "5": list(COMPARED)}
# Read by eye from the paper's figures 2 and 4 (mean loss at 10,000 steps).
PUBLISHED_CORRELATION = {0.4: 0.06, 0.6: 0.10, 0.8: 0.20, 0.9: 0.30, 0.95: 0.45, 0.98: 0.65, 1.0: 1.0}
PUBLISHED_LOSS = {
    "shared_bottom": {0.5: 0.255, 0.9: 0.22, 1.0: 0.20},
    "omoe": {0.5: 0.145, 0.9: 0.12, 1.0: 0.08},
    "mmoe": {0.5: 0.085, 0.9: 0.08, 1.0: 0.07},
}


@dataclass(frozen=True)
class Job:
    """Runs of one model, cosine and rate with consecutive seeds. They are the replicas of one run folder."""

    model: str
    cosine: float
    rate: float
    seed: int
    count: int

    def folder(self, root: Path) -> Path:
        """The run folder."""
        return root / f"{self.model}-p{self.cosine}-lr{self.rate:g}" / f"seeds{self.seed}+{self.count}"

    def run(self, root: Path, overrides: list[str], threads: int | None) -> None:
        """Train, unless the run has ended."""
        given = [
            *MODELS[self.model], f"data.p={self.cosine}", f"learner.optimizer.lr={self.rate}",
            f"replicas={self.count}", f"seed={self.seed}",
        ]  # fmt: skip
        env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        train_once(self.folder(root), "experiment=synthetic", *given, *overrides, env=env)

    def losses(self, root: Path) -> pd.DataFrame:
        """The loss of each run and validation, as the mean over tasks."""
        history = read_table(self.folder(root), "history.csv")
        tasks = [name for name in history if name.startswith("val/") and name.endswith("/mse")]
        parameters = read_metrics(self.folder(root))["parameters"]
        cell = {"model": self.model, "cosine": self.cosine, "rate": self.rate, "parameters": parameters}
        return history[["seed", "step"]].assign(loss=history[tasks].mean(axis=1), **cell)


@dataclass(frozen=True)
class Results:
    """The losses of all runs and of the trials, and the settings behind them."""

    data: dict[str, Any]  # the configuration under `data`
    runs: pd.DataFrame
    trials: pd.DataFrame
    options: dict[str, str]
    out: Path


def main() -> None:
    """Train the models, and write the figures and their tables."""
    choices = {"figure": ("2", "3", "4", "5", "all")}
    minimums = {"runs": 2, "trials": 2, "chunk": 2, "jobs": 1}
    options, overrides = parse(sys.argv[1:], DEFAULTS, choices, minimums)
    root, out = Path(options["folder"]), Path(options["out"])
    settings = common_settings(overrides)
    data = settings["data"]
    figures = list(SECTIONS) if options["figure"] == "all" else [options["figure"]]
    models = list(dict.fromkeys(model for figure in figures for model in FIGURE_MODELS[figure]))
    runs = trials = pd.DataFrame()
    if models:
        check_settings(root / "settings.json", settings, overrides)
        runs, trials = train_models(models, options, root, overrides)
    results = Results(data, runs, trials, options, out)
    out.mkdir(parents=True, exist_ok=True)
    text = [
        "# The paper's synthetic experiment",
        "Each of the two regression tasks has the label y = s + sum sin(a s + b) + noise, with s = w . x."
        f" The noise has variance {data['noise_variance']}, |w| = {data['c']}, a = {data['a']},"
        f" b = {data['b']}, and x has {data['d']} inputs. p is the cosine between the weights w of the tasks."
        f" Losses are mean squared errors on {data['eval_rows']:,} new rows, averaged over the two tasks.",
    ]
    for figure in figures:
        text += SECTIONS[figure](results)
    report = "\n\n".join(text) + "\n"
    (out / ("synthetic.md" if len(figures) == 4 else f"figure{figures[0]}.md")).write_text(report)
    print(report)


def common_settings(overrides: list[str]) -> dict[str, Any]:
    """The settings that all runs share, by config group."""
    config = compose_config("experiment=synthetic", *overrides)
    parts = ("data", "inputs", "learner", "trainer", "objective")
    return {part: OmegaConf.to_container(config[part], resolve=True) for part in parts}


def train_models(
    models: list[str], options: dict[str, str], root: Path, overrides: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Choose the rates and train the missing runs. Return the losses of the runs and of the trials."""
    num_runs, num_trials, chunk = (int(options[key]) for key in ("runs", "trials", "chunk"))
    rates = floats(options, "rates")
    cells = [(model, cosine) for model in models for cosine in floats(options, "cosines")]
    num_trials = num_trials if len(rates) > 1 else 0
    total = len(cells) * (len(rates) * num_trials + num_runs)
    with tqdm(total=total, unit="run", smoothing=0, desc="runs") as bar:
        chosen, trials = dict.fromkeys(cells, rates[0]), [pd.DataFrame()]
        if num_trials:
            tried = {cell: [Job(*cell, rate, TRIAL_SEED, num_trials) for rate in rates] for cell in cells}
            run_jobs([job for jobs in tried.values() for job in jobs], options, root, overrides, bar)
            trials = [job.losses(root) for jobs in tried.values() for job in jobs]
            for cell, jobs in tried.items():
                chosen[cell] = min(jobs, key=lambda job: final_losses(job.losses(root))["loss"].mean()).rate
        starts = range(0, num_runs, chunk)
        jobs = [Job(*cell, chosen[cell], s, min(chunk, num_runs - s)) for s in starts for cell in cells]
        run_jobs(jobs, options, root, overrides, bar)
    return pd.concat([job.losses(root) for job in jobs]), pd.concat(trials)


def floats(options: dict[str, str], key: str) -> list[float]:
    """The value of an option that is a list of numbers."""
    try:
        return [float(part) for part in options[key].split(",")]
    except ValueError:
        stop(f"{key}={options[key]}: must be numbers, separated by commas")


def run_jobs(jobs: list[Job], options: dict[str, str], root: Path, overrides: list[str], bar: Any) -> None:
    """Run the missing jobs, several at a time. The bar's estimate of the time left ignores finished jobs."""
    missing = [job for job in jobs if not has_ended(job.folder(root))]
    num_finished = sum(job.count for job in jobs) - sum(job.count for job in missing)
    bar.initial += num_finished
    bar.update(num_finished)
    at_once = int(options["jobs"])
    threads = max(1, (os.cpu_count() or 1) // at_once) if at_once > 1 else None
    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(job.run, root, overrides, threads): job for job in missing}
        try:
            for future in as_completed(futures):
                future.result()
                bar.update(futures[future].count)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def figure2(results: Results) -> list[str]:
    """Correlation of the labels against the cosine. As in the paper, 100 generators draw 10,000 rows each."""
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
        table(["p", "correlation", "sd over 100 trials", "paper, by eye", "residual"], cells),
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
    has_claimed = {0.5, 1.0} <= set(cosines)
    return [
        "## Figure 4: three models of about the same size",
        loss_table(runs, results.out / "figure4.csv"),
        "`±` is half the 95 % confidence interval of the mean, and `sd` is the standard deviation over runs."
        f" Learning rates are from {options['rates']}{choice}. The paper's 13,056 parameters are the weights"
        " of the experts and of the towers' hidden layers; our numbers include gates and biases.",
        *rate_table(results),
        claim_table(final_losses(runs)) if has_claimed else "The claims need p = 0.5 and p = 1.",
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


if __name__ == "__main__":
    main()
