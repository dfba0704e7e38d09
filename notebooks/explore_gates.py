"""Look at the gates of a run in the browser: `marimo run notebooks/explore_gates.py`.

The app lists the runs below the folder in the environment variable MMOE_RUNS, or below runs/. Without a run,
it trains the smoke experiment on the bundled sample first, which takes half a minute.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Gates")

with app.setup:
    import os
    import subprocess
    import sys
    import tempfile
    from pathlib import Path

    import marimo as mo

    import mmoe
    from mmoe import analysis
    from mmoe.analysis.page import code
    from mmoe.errors import UserError


@app.function
def find_runs(folder: Path) -> list[Path]:
    """The folders of finished runs below a folder, newest first."""
    ended = [path.parent for path in folder.rglob("metrics.json") if (path.parent / "config.yaml").exists()]
    return sorted(ended, key=lambda path: path.stat().st_mtime, reverse=True)


@app.function
def train_smoke() -> Path:
    """Train the smoke experiment in a temporary folder."""
    folder = Path(tempfile.mkdtemp()) / "run"
    command = [sys.executable, "-m", "mmoe.train", "experiment=smoke", "logger=none", "figures=false"]
    subprocess.run([*command, f"hydra.run.dir={folder}"], check=True, capture_output=True)
    return folder


@app.function
def drawn(draw, *arguments, **options):
    """The figure that `draw` returns, or its one-line error."""
    try:
        return draw(*arguments, **options)
    except UserError as error:
        return mo.callout(str(error), kind="warn")


@app.cell
def _():
    runs = find_runs(Path(os.environ.get("MMOE_RUNS", "runs"))) or [train_smoke()]
    chosen_run = mo.ui.dropdown({str(path): path for path in runs}, value=str(runs[0]), label="run")
    trust = mo.ui.text(label="packages that you trust", placeholder="mypackage, another")
    mo.vstack([mo.md("# What do the gates do?"), mo.hstack([chosen_run, trust], justify="start", wrap=True)])
    return chosen_run, trust


@app.cell
def _(chosen_run, trust):
    problem = ""
    try:
        run = mmoe.load(chosen_run.value, [name.strip() for name in trust.value.split(",") if name.strip()])
        if run.config.replicas > 1:
            problem = "The run has replicas; `python -m mmoe.extract` makes one of them a run."
        elif not run.has_dataset:
            problem = "The data module of the run is not an `mmoe.DataModule`."
        elif run.num_experts < 2:
            problem = "The model of the run has no gates, or only one expert. Choose another run above."
    except UserError as error:
        problem = str(error)
    mo.stop(problem, mo.callout(mo.md(problem), kind="warn"))
    columns = run.schema.input_columns
    split = mo.ui.dropdown(["test", "val", "train"], value="test", label="rows")
    task = mo.ui.dropdown(
        [one.name for one in run.schema.tasks], value=run.schema.tasks[0].name, label="task"
    )
    expert = mo.ui.slider(0, run.num_experts - 1, value=0, label="expert", show_value=True)
    column = mo.ui.dropdown(columns, value=columns[0], label="subgroups by", searchable=True)
    mo.hstack([split, task, expert, column], justify="start", wrap=True)
    return column, expert, run, split, task


@app.cell
def _(run, split):
    mo.vstack(
        [
            mo.md("## Which experts does each task use?"),
            drawn(analysis.plot_gate_weights, run, split=split.value),
            mo.md("Each row sums to 1. A row with a cell near 1 is a collapsed gate."),
        ]
    )
    return


@app.cell
def _(column, run, split):
    try:
        by_group = analysis.gate_weights_by(run, column.value, split=split.value)
    except UserError as error:
        mo.stop(True, mo.callout(str(error), kind="warn"))
    mo.vstack(
        [
            mo.md(f"## Gate weights by {code(column.value)}"),
            drawn(analysis.plot_gate_weights_by, run, column.value, split=split.value),
            mo.md(
                "A column of the heat map is an expert. Compare its cells: a darker cell is a subgroup for"
                " which the task relies more on this expert."
            ),
        ]
    )
    return (by_group,)


@app.cell
def _(by_group, column, expert, task):
    weights = by_group[(task.value, expert.value)].astype(float).round(3)
    table = weights.rename("mean weight").to_frame().assign(rows=by_group["rows"].to_numpy().ravel())
    table.index = table.index.astype(str)
    mo.vstack(
        [
            mo.md(f"## Expert {expert.value} in the gate of {code(task.value)}"),
            mo.ui.table(table.reset_index(names=column.value), selection=None),
        ]
    )
    return (table,)


@app.cell
def _(run, split, task):
    mo.vstack(
        [
            mo.md("## What does a task lose without an expert?"),
            drawn(analysis.plot_expert_ablation, run, split=split.value),
            mo.md("Each expert is masked in turn. A long bar marks an expert that the task needs."),
        ]
    )
    return


if __name__ == "__main__":
    app.run()
