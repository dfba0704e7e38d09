"""The paper's synthetic experiment (sections 3.3 and 5): figures 2 to 5, with their numbers.

usage: python scripts/reproduce_synthetic.py figure=2|3|4|5|all [option=value ...]

    figure=2           correlation of the labels against the cosine of the weights
    figure=3           Shared-Bottom of width 16: loss while training, at three cosines
    figure=4           Shared-Bottom, OMoE and MMoE of one size: loss while training
    figure=5           histograms of their final losses; the runs are those of figure 4
    runs=200           of each model and cosine, each with its own data and initialisation
    rates=1e-4,1e-3,1e-2   the paper's grid of learning rates
    trials=20          runs with which one of them is chosen, if there are more; their seeds are others
    cosines=.5,.9,1    p
    chunk=50           runs trained side by side in one process
    jobs=1             processes at a time
    folder=runs/reproduce_synthetic   run folders; what is there is not done again
    out=docs/results/synthetic        tables and figures

Anything else is an override for the training. It can be stopped at any time, and goes on.
"""

import itertools
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from options import call, parse, stop
from tables import table
from tqdm import tqdm

from mmoe import CONF_DIR
from mmoe.data.synthetic_generator import Generator
from mmoe.intervals import half_interval

DEFAULTS = {
    "figure": None, "runs": "200", "rates": "1e-4,1e-3,1e-2", "trials": "20", "cosines": ".5,.9,1",
    "chunk": "50", "jobs": "1", "folder": "runs/reproduce_synthetic", "out": "docs/results/synthetic",
}  # fmt: skip
TRIAL_SEED = 1_000_000  # of the runs that choose a rate
# Overrides of each model, and the line it is drawn with.
MODELS: dict[str, tuple[str, ...]] = {
    "shared_bottom": ("model=shared_bottom", "model.bottom_units=[113]", "model.tower_units=[8]"),
    "omoe": ("model=omoe", "model.num_experts=8", "model.expert_units=[16]", "model.tower_units=[8]"),
    "mmoe": ("model=mmoe", "model.num_experts=8", "model.expert_units=[16]", "model.tower_units=[8]"),
    "shared_bottom_16": ("model=shared_bottom", "model.bottom_units=[16]", "model.tower_units=[8]"),
}
STYLES = {"shared_bottom": "--", "omoe": ":", "mmoe": "-"}
NAMES = {
    "shared_bottom": "Shared-Bottom, 113 wide", "omoe": "OMoE, 8 x 16", "mmoe": "MMoE, 8 x 16",
    "shared_bottom_16": "Shared-Bottom, 16 wide",
}  # fmt: skip
OF_FIGURE = {"3": ["shared_bottom_16"], "4": ["shared_bottom", "omoe", "mmoe"]}
OF_FIGURE["5"] = OF_FIGURE["4"]
# Read by eye from the paper's figures 2 and 4 (mean loss at 10,000 steps).
PUBLISHED_CORRELATION = {0.4: 0.06, 0.6: 0.10, 0.8: 0.20, 0.9: 0.30, 0.95: 0.45, 0.98: 0.65, 1.0: 1.0}
PUBLISHED_LOSS = {
    "shared_bottom": {0.5: 0.255, 0.9: 0.22, 1.0: 0.20},
    "omoe": {0.5: 0.145, 0.9: 0.12, 1.0: 0.08},
    "mmoe": {0.5: 0.085, 0.9: 0.08, 1.0: 0.07},
}


@dataclass(frozen=True)
class Job:
    """Runs of one model, cosine and rate, with neighbouring seeds: one run folder of replicas."""

    model: str
    cosine: float
    rate: float
    seed: int
    count: int

    def folder(self, root: Path) -> Path:
        """Where its run folder is."""
        return root / f"{self.model}-p{self.cosine}-lr{self.rate:g}" / f"seeds{self.seed}+{self.count}"

    def run(self, root: Path, overrides: list[str], threads: int | None) -> None:
        """Train, unless that was done; what was stopped before its end is done again."""
        folder = self.folder(root)
        if (folder / "metrics.json").exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        given = [
            f"data.p={self.cosine}", f"learner.optimizer.lr={self.rate}", f"replicas={self.count}",
            f"seed={self.seed}", "logger=none", f"hydra.run.dir={folder}",
        ]  # fmt: skip
        env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        call("train", "experiment=synthetic", *MODELS[self.model], *given, *overrides, env=env)


@dataclass(frozen=True)
class Found:
    """What the figures are made of: losses of every run and validation, and those of the trials."""

    config: dict[str, Any]
    runs: pd.DataFrame
    trials: pd.DataFrame
    options: dict[str, str]
    out: Path


def main() -> None:
    """Make the figures that were asked for."""
    choices = {"figure": ("2", "3", "4", "5", "all")}
    least = {"runs": 2, "trials": 2, "chunk": 2, "jobs": 1}
    options, overrides = parse(sys.argv[1:], DEFAULTS, choices, least)
    root, out = Path(options["folder"]), Path(options["out"])
    used = settings(overrides)
    config = used["data"]
    figures = ["2", "3", "4", "5"] if options["figure"] == "all" else [options["figure"]]
    models = list(dict.fromkeys(model for figure in figures for model in OF_FIGURE.get(figure, ())))
    if models:
        settle(root, used)
    runs, trials = train(models, options, root, overrides) if models else (pd.DataFrame(), pd.DataFrame())
    found = Found(config, runs, trials, options, out)
    out.mkdir(parents=True, exist_ok=True)
    text = [
        "# The paper's synthetic experiment",
        "",
        f"Two regression tasks, y = s + sum sin(a s + b) + noise of variance {config['noise_variance']}, with"
        f" s = w . x, |w| = {config['c']}, a = {config['a']}, b = {config['b']} and {config['d']} inputs x;"
        " p is the cosine of the tasks' weights. Losses are mean squared errors on"
        f" {config['eval_rows']:,} new rows, averaged over the two tasks.",
    ]
    for figure in figures:
        text += ["", *SECTIONS[figure](found)]
    report = "\n".join(text) + "\n"
    (out / ("synthetic.md" if len(figures) == 4 else f"figure{figures[0]}.md")).write_text(report)
    print(report)


def settings(overrides: list[str]) -> dict[str, Any]:
    """What all runs have in common, by config group."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = compose("train", overrides=["experiment=synthetic", *overrides])
    parts = ("data", "inputs", "learner", "trainer", "objective")
    used = {part: OmegaConf.to_container(config[part], resolve=True) for part in parts}
    return used | {"overrides": sorted(overrides)}


def settle(root: Path, used: dict[str, Any]) -> None:
    """Refuse a folder with runs of other settings; note them in a new one."""
    text, path = json.dumps(used, sort_keys=True, indent=1), root / "settings.json"
    if path.exists() and path.read_text() != text:
        stop(f"{path}: is of other settings; name another folder")
    root.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def train(
    models: list[str], options: dict[str, str], root: Path, overrides: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Choose each rate, run all that is missing, and read the losses of every run, and of the trials."""
    runs, trials, chunk = (int(options[key]) for key in ("runs", "trials", "chunk"))
    rates = numbers(options, "rates")
    cells = [(model, cosine) for model in models for cosine in numbers(options, "cosines")]
    trials = trials if len(rates) > 1 else 0
    total = len(cells) * (len(rates) * trials + runs)
    with tqdm(total=total, unit="run", smoothing=0, desc="runs") as bar:
        chosen, tries = dict.fromkeys(cells, rates[0]), [pd.DataFrame()]
        if trials:
            tried = {cell: [Job(*cell, rate, TRIAL_SEED, trials) for rate in rates] for cell in cells}
            execute([job for part in tried.values() for job in part], options, root, overrides, bar)
            tries = [losses(job, root) for part in tried.values() for job in part]
            for cell, part in tried.items():
                chosen[cell] = min(part, key=lambda job: final(losses(job, root))["loss"].mean()).rate
        starts = range(0, runs, chunk)
        full = [Job(*cell, chosen[cell], s, min(chunk, runs - s)) for s in starts for cell in cells]
        execute(full, options, root, overrides, bar)
    return pd.concat([losses(job, root) for job in full]), pd.concat(tries)


def numbers(options: dict[str, str], key: str) -> list[float]:
    """The values of an option that is a list."""
    try:
        return [float(part) for part in options[key].split(",")]
    except ValueError:
        stop(f"{key}={options[key]}: must be numbers, separated by commas")


def execute(jobs: list[Job], options: dict[str, str], root: Path, overrides: list[str], bar: Any) -> None:
    """Run those that are missing, some at a time; what was there does not count for the time left."""
    missing = [job for job in jobs if not (job.folder(root) / "metrics.json").exists()]
    there = sum(job.count for job in jobs) - sum(job.count for job in missing)
    bar.initial += there
    bar.update(there)
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


def losses(job: Job, root: Path) -> pd.DataFrame:
    """Loss of each run and validation, as the mean over tasks."""
    history = pd.read_csv(job.folder(root) / "history.csv")
    tasks = [name for name in history if name.startswith("val/") and name.endswith("/mse")]
    metrics = json.loads((job.folder(root) / "metrics.json").read_text())
    cell = {"model": job.model, "cosine": job.cosine, "rate": job.rate, "parameters": metrics["parameters"]}
    return history[["seed", "step"]].assign(loss=history[tasks].mean(axis=1), **cell)


def figure2(found: Found) -> list[str]:
    """Correlation of the labels against the cosine: 100 generators of 10,000 rows each, as in the paper."""
    cosines = [0.0, 0.2, *PUBLISHED_CORRELATION]
    arguments = {key: found.config[key] for key in ("c", "m", "a", "b", "d", "noise_variance")}
    rows = []
    for cosine in cosines:
        generator = Generator(cosine, **arguments)
        for seed in range(100):
            labels = generator.rows([seed], 0, 10_000).labels
            correlation = torch.corrcoef(labels.T)[0, 1].item()
            rows.append({"cosine": cosine, "seed": seed, "correlation": correlation})
    frame = pd.DataFrame(rows)
    frame.to_csv(found.out / "figure2.csv", index=False, float_format="%.5f")
    means = frame.groupby("cosine")["correlation"].agg(["mean", "std"])
    fig, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
    axes.errorbar(means.index, means["mean"], means["std"], fmt="o-", color="black", capsize=3, label="ours")
    read = np.array(list(PUBLISHED_CORRELATION.items()))
    axes.plot(read[:, 0], read[:, 1], "x", markersize=8, color="0.4", label="paper, by eye")
    axes.set(xlabel="cosine of the tasks' weights, p", ylabel="Pearson correlation of the labels")
    axes.legend()
    save(fig, found.out / "figure2.png")
    cells = []
    for cosine, row in means.iterrows():
        paper = PUBLISHED_CORRELATION.get(float(cosine))
        difference = f"{row['mean'] - paper:+.3f}" if paper is not None else "-"
        shown = "-" if paper is None else f"{paper:.2f}"
        cells.append([f"{cosine:g}", f"{row['mean']:.3f}", f"{row['std']:.3f}", shown, difference])
    residuals = [means["mean"][p] - r for p, r in PUBLISHED_CORRELATION.items()]
    return [
        "## Figure 2: how alike the labels are",
        "",
        *table(["p", "correlation", "sd over 100 trials", "paper, by eye", "residual"], cells),
        "",
        f"Root mean square of the residuals: {np.sqrt(np.mean(np.square(residuals))):.3f}.",
        "",
        "![correlation of the labels against the cosine](figure2.png)",
    ]


def figure3(found: Found) -> list[str]:
    """Shared-Bottom's loss while training, at three cosines."""
    part = found.runs[found.runs["model"] == "shared_bottom_16"]
    fig, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for (cosine, runs_of_it), style in zip(part.groupby("cosine"), itertools.cycle((":", "--", "-"))):
        curve(axes, runs_of_it, style, f"p = {cosine:g}")
    axes.set(xlabel="training steps", ylabel="loss (mean squared error)")
    axes.legend()
    save(fig, found.out / "figure3.png")
    return [
        "## Figure 3: Shared-Bottom suffers from tasks that differ",
        "",
        *summary(part, found.out / "figure3.csv"),
        "",
        f"{NAMES['shared_bottom_16']}; lines are means of {found.options['runs']} runs, bands their"
        " quartiles.",
        "",
        "![Shared-Bottom's loss while training](figure3.png)",
    ]


def figure4(found: Found) -> list[str]:
    """The three models' losses while training, at three cosines, and what the paper claims of them."""
    part = found.runs[found.runs["model"].isin(OF_FIGURE["4"])]
    cosines = part["cosine"].unique()
    size = (1 + 3 * len(cosines), 3.4)
    fig, (grid,) = plt.subplots(
        1, len(cosines), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, cosine in zip(grid, cosines, strict=True):
        for model in OF_FIGURE["4"]:
            of_both = part[(part["cosine"] == cosine) & (part["model"] == model)]
            curve(axes, of_both, STYLES[model], NAMES[model])
        axes.set(xlabel="training steps", title=f"p = {cosine:g}")
    grid[0].set_ylabel("loss (mean squared error)")
    grid[0].legend()
    save(fig, found.out / "figure4.png")
    return [
        "## Figure 4: three models of one size",
        "",
        *summary(part, found.out / "figure4.csv"),
        "",
        "`±` is half the 95 % confidence interval of the mean, `sd` the standard deviation over runs. Rates"
        f" are chosen from {found.options['rates']}, where there are more, by {found.options['trials']} other"
        " runs each."
        " The paper's 13,056 parameters are the weights of experts and towers' hidden layers; ours are all,"
        " with gates and biases.",
        "",
        *by_rate(found),
        *(claims(final(part)) if {0.5, 1.0} <= set(part["cosine"]) else ["The claims need p = .5 and 1."]),
        "",
        f"Lines are means of {found.options['runs']} runs, bands their quartiles.",
        "",
        "![loss of three models while training](figure4.png)",
    ]


def figure5(found: Found) -> list[str]:
    """Histograms of the final losses."""
    ends = final(found.runs[found.runs["model"].isin(OF_FIGURE["5"])])
    edges = np.linspace(0, ends["loss"].quantile(0.999) * 1.02, 40)
    cosines, how = ends["cosine"].unique(), {"sharex": True, "sharey": True, "squeeze": False}
    size = (1 + 3 * len(cosines), 6)
    fig, grid = plt.subplots(len(OF_FIGURE["5"]), len(cosines), figsize=size, layout="constrained", **how)
    for row, model in zip(grid, OF_FIGURE["5"], strict=True):
        for axes, cosine in zip(row, cosines, strict=True):
            values = ends[(ends["model"] == model) & (ends["cosine"] == cosine)]["loss"]
            axes.hist(values, edges, color="0.7", edgecolor="black", linewidth=0.5)
            axes.axvline(values.mean(), linestyle="--", color="black")
            axes.set_title(f"{NAMES[model]}, p = {cosine:g}", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("final loss (mean squared error)")
    for axes in grid[:, 0]:
        axes.set_ylabel("runs")
    save(fig, found.out / "figure5.png")
    ends.to_csv(found.out / "figure5.csv", index=False, float_format="%.5f")
    return [
        "## Figure 5: how final losses are spread",
        "",
        f"Of {found.options['runs']} runs each; the dashed line is the mean.",
        "",
        "![histograms of final losses](figure5.png)",
    ]


SECTIONS = {"2": figure2, "3": figure3, "4": figure4, "5": figure5}


def curve(axes: Any, runs: pd.DataFrame, style: str, label: str) -> None:
    """Mean and quartiles of the loss against steps."""
    by_step = runs.groupby("step")["loss"]
    mean, low, high = by_step.mean(), by_step.quantile(0.25), by_step.quantile(0.75)
    (line,) = axes.plot(mean.index, mean, style, label=label)
    axes.fill_between(mean.index, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.grid(alpha=0.3)


def final(runs: pd.DataFrame) -> pd.DataFrame:
    """The last loss of each run."""
    return runs[runs["step"] == runs["step"].max()].drop(columns="step")


def summary(runs: pd.DataFrame, path: Path) -> list[str]:
    """Table of the final losses by model and cosine; the curves go to a file."""
    by_step = runs.groupby(["model", "cosine", "rate", "step"])["loss"]
    by_step.describe().to_csv(path, float_format="%.5f")
    rows = []
    for (model, cosine, rate), group in final(runs).groupby(["model", "cosine", "rate"], sort=False):
        values = group["loss"]
        quantiles = [f"{values.quantile(q):.3f}" for q in (0.05, 0.5, 0.95)]
        paper = PUBLISHED_LOSS.get(model, {}).get(cosine)
        rows.append(
            [
                NAMES[model], f"{cosine:g}", f"{rate:g}",
                f"{values.mean():.3f} ± {half_interval(values):.3f}", f"{values.std():.3f}", *quantiles,
                "-" if paper is None else f"{paper:.3f}", f"{group['parameters'].iloc[0]:,}",
            ]
        )  # fmt: skip
    header = ["model", "p", "rate", "mean final loss", "sd", "5 %", "median", "95 %", "paper's mean, by eye"]
    return table([*header, "parameters"], rows)


def by_rate(found: Found) -> list[str]:
    """Table of the final losses at every rate that was tried."""
    if found.trials.empty:
        return []
    ends = final(found.trials[found.trials["model"].isin(OF_FIGURE["4"])])
    rates = sorted(ends["rate"].unique())
    rows = []
    for (model, cosine), group in ends.groupby(["model", "cosine"], sort=False):
        by = [group.loc[group["rate"] == rate, "loss"] for rate in rates]
        cells = [f"{v.mean():.3f} ± {half_interval(v):.3f} (sd {v.std():.3f})" for v in by]
        rows.append([NAMES[model], f"{cosine:g}", *cells])
    return [
        f"Final losses of the {found.options['trials']} trials at every rate:",
        "",
        *table(["model", "p", *(f"rate {rate:g}" for rate in rates)], rows),
        "",
    ]


def claims(ends: pd.DataFrame) -> list[str]:
    """Whether what the paper says of its figures 4 and 5 holds, with the numbers."""
    losses = {cell: group["loss"] for cell, group in ends.groupby(["model", "cosine"])}
    mean = {cell: values.mean() for cell, values in losses.items()}
    half = {cell: half_interval(values) for cell, values in losses.items()}

    def below(first: str, second: str) -> bool:
        return mean[first, 0.5] + half[first, 0.5] < mean[second, 0.5] - half[second, 0.5]

    order = below("mmoe", "omoe") and below("omoe", "shared_bottom")
    gap = {model: mean[model, 0.5] - mean[model, 1.0] for model in OF_FIGURE["4"]}
    gap_half = {model: np.hypot(half[model, 0.5], half[model, 1.0]) for model in OF_FIGURE["4"]}
    smallest = min(gap, key=lambda model: abs(gap[model])) == "mmoe"
    others = min(gap[m] - gap_half[m] for m in ("omoe", "shared_bottom"))
    apart = smallest and gap["mmoe"] + gap_half["mmoe"] < others
    sd = {cell: values.std() for cell, values in losses.items()}
    cosines = ends["cosine"].unique()
    wider = all(sd["shared_bottom", p] > max(sd["omoe", p], sd["mmoe", p]) for p in cosines)

    def shown(values: dict[Any, float], keys: list[Any]) -> str:
        return ", ".join(f"{key[0] if isinstance(key, tuple) else key} {values[key]:.3f}" for key in keys)

    at_half = [(model, 0.5) for model in ("mmoe", "omoe", "shared_bottom")]
    rows = [
        [
            "MMoE below OMoE below Shared-Bottom at p = 0.5, intervals apart",
            holds(order),
            shown(mean, at_half),
        ],
        [
            "the gap between p = 0.5 and p = 1 is smallest for MMoE, intervals apart",
            holds(apart),
            ", ".join(f"{model} {gap[model]:+.3f} ± {gap_half[model]:.3f}" for model in gap),
        ],
        [
            "Shared-Bottom's final losses are spread widest at every p",
            holds(wider),
            "; ".join(
                f"p = {p:g}: " + shown(sd, [(model, p) for model in ("shared_bottom", "omoe", "mmoe")])
                for p in cosines
            ),
        ],
    ]
    return table(["claim of the paper", "here", "numbers"], rows)


def holds(claim: bool) -> str:
    """A claim's state in a table."""
    return "holds" if claim else "does not hold"


def save(fig: Any, path: Path) -> None:
    """Write a figure."""
    fig.savefig(path, dpi=150)
    plt.close(fig)


if __name__ == "__main__":
    main()
