"""Every script that uses finished results again stops if they are results of other settings."""

import json
import subprocess
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pandas as pd
import processes
import pytest
from conftest import Result

STARTED = 7  # exit code of a script that begins to train
SAMPLE = "data.source=sample"
# For each script: its options, the file with the settings, and options with their key in it.
SCRIPTS: dict[str, tuple[list[str], str, dict[str, str]]] = {
    "results": (["sample=true"], "settings.json", {"replicas=3": "replicas"}),
    "compare_balancing": (
        ["datasets=census", SAMPLE], "settings.json", {"seeds=3": "seeds", "trials=3": "trials"},
    ),
    "compare_streaming": (["rows=600", "data.dir=census"], "600/settings.json", {}),
    "ablate_census": (
        [SAMPLE], "settings.json", {"runs=3": "runs", "experiment=census_paper": "experiment"},
    ),
    "ablate_census_best": ([SAMPLE], "settings.json", {}),
    "spread_census": ([SAMPLE], "settings.json", {}),
    "reproduce_census": (
        ["group=1", "sample=true"], "group1/settings.json", {"trials=3": "trials", "chunk=4": "chunk"},
    ),
    "reproduce_synthetic": (["figure=3"], "settings.json", {"data.noise_variance=1": "data, overrides"}),
    "compare_tables": (
        ["tables=student"], "options.json",
        {"gate_temperature=2": "student, overrides", "runs=3": "runs", "trials=3": "trials"},
    ),
    "compare_gbdt": (
        ["sample=true", "experiments=census"], "options.json",
        {"gate_temperature=2": "census, overrides", "trials=3": "trials", "rounds=3": "rounds"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_results_of_other_settings_are_refused(
    script: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, census_dir: Path, name: str
):
    class Failing(processes.ForkedCommand):
        def wait(self) -> int:
            return STARTED

    def start(*_: Any) -> NoReturn:
        raise SystemExit(STARTED)

    monkeypatch.setattr(processes, "FORKED", SimpleNamespace(Popen=Failing, DEVNULL=subprocess.DEVNULL))
    monkeypatch.syspath_prepend(str(processes.SCRIPTS))
    if name in ("compare_tables", "compare_gbdt"):  # these two train in their own process
        monkeypatch.setattr(import_module(name), "cached", start)
    if name == "compare_tables":
        rows = {"Dalc": [1, 2, 3] * 20, "G1": range(60), "G2": range(60), "class": ["High", "Low"] * 30}
        Path("student").mkdir()
        pd.DataFrame(rows).to_csv("student/student_por_new.csv", index=False)
        monkeypatch.setenv("MMOE_TABLES_DIR", str(Path().absolute()))
    options, file, changes = SCRIPTS[name]
    options = [*options, "folder=work"]
    path, training = Path("work", file), "learner.optimizer.weight_decay=0.5"
    assert script(name, *options, training).code == STARTED
    assert training in json.loads(path.read_text())["overrides"]

    # Other settings of the machine are accepted.
    machine = [] if name == "compare_gbdt" else ["threads=2"]  # compare_gbdt.py measures seconds
    if name != "reproduce_synthetic":  # which has no cache
        machine.append(f"++data.cache_dir={Path('cache').absolute()}")
    assert script(name, *options, *machine, training).code == STARTED

    # Everything else is refused, and the file stays as it is.
    before = path.read_text()
    for change, keys in {"gate_temperature=2": "overrides", **changes}.items():
        done = script(name, *options, training, change)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        advice = "give another folder=... and out=..."
        assert done.err.endswith(f": holds results of other settings: {keys}; {advice}\n")
    assert path.read_text() == before

    # Files of earlier versions lack some of the settings.
    path.write_text("{}")
    assert script(name, *options, training).code == STARTED
    assert path.read_text() != "{}"
