"""Reproduce the paper's synthetic experiment (sections 3.3 and 5): figures 2 to 5, with tables.

usage: python scripts/reproduce_synthetic.py figure=2|3|4|5|all [option=value ...]

    figure=2           correlation of the labels against the cosine of the tasks' weights
    figure=3           loss on new rows during training, of Shared-Bottom with width 16, at each cosine
    figure=4           the same of Shared-Bottom, OMoE and MMoE with about the same number of parameters
    figure=5           histograms of the final losses of figure 4's runs
    runs=200           runs of each model and cosine; each has its own data and initialisation
    rates=1e-4,1e-3,1e-2   the paper's learning rates, from which the best is chosen
    trials=20          runs of each rate, with other seeds, to choose the best of several rates
    cosines=0.5,0.9,1  values of p, the cosine of the tasks' weights
    chunk=50           runs trained side by side in one process
    jobs=1             number of processes at a time
    folder=runs/reproduce_synthetic   run folders; finished runs are used again
    out=docs/results/synthetic        folder for tables and figures

All other arguments are overrides for the training. A stopped script continues when it is started again.
"""

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from commands import compose_config, run_in_threads, train_once
from omegaconf import OmegaConf
from options import parse, stop
from stored_results import store_settings
from synthetic_figures import COMPARED, SECTIONS, Results, final_losses
from tqdm import tqdm

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
FIGURE_MODELS = {"2": [], "3": ["shared_bottom_16"], "4": list(COMPARED), "5": list(COMPARED)}


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
        """The loss of each run at each validation, averaged over the tasks."""
        history = read_table(self.folder(root), "history.csv")
        tasks = [name for name in history if name.startswith("val/") and name.endswith("/mse")]
        parameters = read_metrics(self.folder(root))["parameters"]
        cell = {"model": self.model, "cosine": self.cosine, "rate": self.rate, "parameters": parameters}
        return history[["seed", "step"]].assign(loss=history[tasks].mean(axis=1), **cell)


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
        store_settings(root / "settings.json", settings, overrides)
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
    runs = [partial(job.run, root, overrides, threads) for job in missing]
    run_in_threads(runs, at_once, lambda place: bar.update(missing[place].count))


if __name__ == "__main__":
    main()
