"""Every benchmark runs and writes its results. The tests do not check speeds."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Result

QUICK = ["rounds=1", "threads=1", "seconds=0.05", "out=out", "data.source=sample"]
FAKE_PEERS = """
import json, pathlib, sys, time
test = pathlib.Path(sys.argv[1], "census-income.test")
rows = len(test.read_text().splitlines()) if test.exists() else 0
for auroc in (0.4, rows / 10_000):
    print(json.dumps({"time": time.time(), "auroc": auroc}))
print(f'peer-one B={sys.argv[2]}  1234 samples/s'); print('broken failed: no')
"""


def results(name: str) -> dict:
    """The JSON results of a benchmark. Its table and figure are checked on the way."""
    result = json.loads(Path(f"out/{name}.json").read_text())
    assert result["benchmark"] == name
    table = Path(f"out/{name}.md").read_text().splitlines()
    assert len({line.count("|") for line in table}) == 1
    if "samples_per_second" in result:
        assert Path(f"out/{name}.png").stat().st_size > 10_000
    return result


@pytest.mark.slow
def test_training_is_compared_with_loops_and_other_libraries(script: Callable[..., Result]):
    Path("peers.py").write_text(FAKE_PEERS)
    options = ["batch_sizes=64,2048", f"peers={sys.executable}", "peers_script=peers.py"]
    done = script("bench", "train", *QUICK, *options)
    assert done.code == 0, done.err
    speeds = results("train")["samples_per_second"]
    assert list(speeds) == ["64", "2048"]
    assert speeds["64"]["peer-one"] == 1234
    assert "peer-one" not in speeds["2048"]
    names = {"mmoe", "mmoe, whole Trainer.fit", "bare loop", "bare loop, dense inputs"}
    names |= {"looped experts, DataLoader", "first layer's products alone"}
    assert set(speeds["2048"]) == names
    assert all(speed > 0 for line in speeds.values() for speed in line.values())
    assert speeds["2048"]["mmoe, whole Trainer.fit"] < speeds["2048"]["mmoe"]
    assert f"({speeds['64']['mmoe'] / 1234:.2f})" in done.out


@pytest.mark.parametrize(
    ("num_batches", "options"),
    [
        (10, ["trainer.max_epochs=11"]),  # of 320 rows: ten epochs take 3.2 seconds
        (
            1000,
            ["trainer.max_epochs=2", "++trainer.limit_train_batches=100", "++trainer.limit_val_batches=1"],
        ),
    ],
)
def test_a_training_takes_as_long_as_a_loop(
    script: Callable[..., Result], num_batches: int, options: list[str]
):
    """The bare loop trains 1,000 rows a second, so 3.2 seconds are 100 batches. The first epoch is extra."""
    script("bench")  # scripts are importable from here on
    from benchmarks.bench_train import mmoe_and_loops

    given = []

    def run(*arguments: str) -> tuple[str, float, float]:
        assert arguments[1:] == ("32", "3.2", "data.source=sample", "model.num_experts=3")
        batches = {"train": num_batches, "val": 8}
        return json.dumps({"samples_per_second": {"bare loop": 1000.0}, "batches": batches}), 0, 0

    def train(folder: Path, *overrides: str) -> tuple[dict[str, float], float, float]:
        given.extend(overrides)
        return {"steps_speed": 990.0, "fit_speed": 980.0}, 0, 0

    bench = SimpleNamespace(
        options={"seconds": "3.2"}, overrides=["data.source=sample"], run=run, train=train
    )
    speeds = mmoe_and_loops(bench, Path(), 32, "model.num_experts=3")
    assert given == ["data.batch_size=32", *options, "model.num_experts=3"]
    assert speeds == {"mmoe": 990.0, "mmoe, whole Trainer.fit": 980.0, "bare loop": 1000.0}


@pytest.mark.slow
def test_the_time_to_an_auroc(script: Callable[..., Result]):
    """A peer validates on the rows of mmoe. It reaches its own best in its second validation."""
    Path("peers.py").write_text(FAKE_PEERS)
    options = ["batch_sizes=256", f"peers={sys.executable}", "peers_script=peers.py", "trainer.max_epochs=2"]
    done = script("bench", "time_to_auroc", *QUICK, *options)
    assert done.code == 0, done.err
    found = results("time_to_auroc")
    cold, warm, *peers = found["lines"]
    assert [line["program"] for line in peers] == [
        f"{name}, batches of 256" for name in ("deepctr-torch", "torch-rechub")
    ]
    for line in peers:
        assert line["AUROC reached in every round"] == "0.5000"  # 5,000 validation rows of the bundled sample
        assert line["seconds to 0.949"] == "-"
        assert 0 < line[f"seconds to best of {line['program']} (0.5000)"] < 20
    assert (cold["program"], warm["program"]) == ("mmoe, batches of 256, cold", "mmoe, batches of 256, warm")
    for line in (cold, warm):
        (((first, _), (second, auroc)),) = found["rounds"][line["program"]]
        assert 1 < first < second
        assert line["AUROC reached in every round"] == f"{auroc:.4f}"


@pytest.mark.slow
def test_experts_and_start(script: Callable[..., Result]):
    assert script("bench", "experts", "experts=1,3", "batch=64", *QUICK).code == 0
    assert list(results("experts")["samples_per_second"]) == ["1", "3"]
    assert script("bench", "start", *QUICK).code == 0
    seconds = results("start")["seconds"]
    assert 0 < seconds["--help"] < seconds["first training step, cached rows"]
    assert seconds["raw files to cached tensors"] > 0


@pytest.mark.slow
def test_memory_ranks_and_replicas(script: Callable[..., Result], census_dir: Path):
    rows = [f"data.dir={census_dir}"]
    assert script("bench", "memory", "repeats=1,3", *QUICK[:-1], *rows).code == 0
    one, three = results("memory")["lines"]
    assert (one["rows"], three["rows"]) == (1800, 5400)
    assert one["encoded rows: MB"] > 50
    assert script("bench", "ranks", "batch_sizes=64", *QUICK).code == 0
    assert set(results("ranks")["samples_per_second"]["64"]) == {"one process", "two processes"}
    small = ["rounds=1", "threads=1", "out=out"]
    assert script("bench", "read", "rows=20000", *small).code == 0
    assert results("read")["lines"][0]["rows a second"] > 1000
    assert script("bench", "vocabulary", "batch_sizes=8192", "buckets=10,5000", *small).code == 0
    assert set(results("vocabulary")["samples_per_second"]["8192"]) == {"10 buckets", "5,000 buckets"}
    assert script("bench", "balance", "batch_sizes=64", "strategies=pcgrad", "models=adatt", *QUICK).code == 0
    assert list(results("balance")["samples_per_second"]["64"]) == ["constant", "pcgrad", "adatt"]
    assert script("bench", "busy", "batch_sizes=64", *QUICK).code == 0
    kinds = {f"mmoe, threads={n}, {kind}" for n in ("auto", 1, 2) for kind in ("quiet", "busy")}
    assert set(results("busy")["samples_per_second"]["64"]) == kinds
    options = ["replicas=2", "batch=512", "trainer.max_epochs=1"]
    assert script("bench", "replicas", *options, *QUICK).code == 0
    assert results("replicas")["ratio_to_separate_runs"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: bench.py train|busy|experts|start|memory|ranks|replicas|vocabulary"),
        (["nothing"], "usage: bench.py train|busy|experts|start|memory|ranks|replicas|vocabulary"),
        (["train", "rounds=0"], "rounds=0: must be an integer of at least 1"),
        (["train", "batch_sizes=32,x"], "batch_sizes=32,x: must be integers of at least 1"),
        (["train", "peers=no/python"], "peers=no/python: must be a Python program"),
        (["train", "seconds=x"], "seconds=x: must be a number above 0"),
        (["experts", "batch=32,64"], "batch=32,64: must be an integer of at least 1"),
        (["stream", "dask_rows=1e6"], "dask_rows=1e6: must be an integer of at least 0"),
        (["replicas", "replicas=2,4"], "replicas=2,4: must be an integer of at least 1"),
        (["memory"], "data.dir=: must hold census-income.data and census-income.test"),
        (["memory", "data.dir=none"], "data.dir=none: must hold census-income.data and census-income.test"),
    ],
)
def test_mistakes_are_reported_in_one_line(script: Callable[..., Result], arguments: list[str], message: str):
    done = script("bench", *arguments)
    assert done.code == 2
    assert done.err.startswith(f"error: {message}")
    assert len(done.err.splitlines()) == 1
