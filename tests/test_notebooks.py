"""The notebooks run without a run folder given, and are committed with their outputs; the app runs."""

from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from conftest import Command
from nbclient import NotebookClient

import mmoe
from mmoe import analysis

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gate_weights", "sweep", "your_own_table"])
def test_a_notebook_runs(name: str, monkeypatch: pytest.MonkeyPatch):
    for variable in ("MMOE_RUN", "MMOE_SWEEP", "MMOE_TABLE"):
        monkeypatch.delenv(variable, raising=False)
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    num_plots = sum("analysis.plot_" in cell.source for cell in notebook.cells if cell.cell_type == "code")
    NotebookClient(notebook, timeout=300).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == num_plots > 0


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_committed_with_its_outputs(path: Path):
    assert path.stat().st_size < 1_000_000
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert "def " not in "".join(cell.source for cell in code)


def test_the_app_shows_the_gates_of_a_run(smoke_run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MMOE_RUNS", str(smoke_run.parent))
    monkeypatch.syspath_prepend(str(NOTEBOOKS))
    explore_gates = import_module("explore_gates")
    outputs, values = explore_gates.app.run()
    assert values["chosen_run"].value == smoke_run
    assert len([output for output in outputs if output is not None]) == 6  # none was stopped
    run = mmoe.load(smoke_run)
    expected = analysis.gate_weights_by(run, values["column"].value)["income", 0]
    assert values["table"]["mean weight"].tolist() == expected.astype(float).round(3).tolist()
    assert values["table"]["rows"].sum() == run.schema.num_rows["test"]


def test_the_app_says_why_a_run_has_no_figures(train: Command, monkeypatch: pytest.MonkeyPatch):
    options = ["experiment=smoke", "model=shared_bottom", "logger=none", "trainer.max_epochs=1"]
    assert train(*options, "+trainer.limit_train_batches=2").code == 0
    monkeypatch.syspath_prepend(str(NOTEBOOKS))
    explore_gates = import_module("explore_gates")
    outputs, values = explore_gates.app.run()
    assert "no gates" in values["problem"]
    assert "table" not in values
    assert any("no gates" in output.text for output in outputs if output is not None)
