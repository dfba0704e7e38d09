"""Damaged files of a run folder are recognised when they are read, and reported on one line."""

import errno
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from mmoe import analysis, load
from mmoe.analysis.figures import plots_of
from mmoe.data.census_files import SAMPLE_DIR
from mmoe.errors import UserError
from mmoe.extract import extract
from mmoe.training import checkpoints, run_folder, stored_config

ROWS = SAMPLE_DIR / "census-income.test.gz"
COMMANDS = {
    "predict": [f"input={ROWS}", "output=out.parquet"],
    "evaluate": ["resamples=0", "out=out.json"],
    "export": ["format=torch_export", "out=out.pt2"],
}


@pytest.fixture
def run(smoke_run: Path) -> Path:
    """A copy of a run folder, to be damaged."""
    shutil.copytree(smoke_run, "run")
    return Path("run")


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_200_flipped_bits_are_refused_or_change_nothing(smoke_run: Path):
    content = (smoke_run / "checkpoints/best.ckpt").read_bytes()
    whole = checkpoints.load(smoke_run / "checkpoints/best.ckpt")
    draws, path, refused = random.Random(0), Path("best.ckpt"), 0
    # A flipped bit most likely goes unnoticed in the headers at the start or the directory at the end.
    bits = [draws.randrange(8 * len(content)) for _ in range(100)]
    bits += [draws.randrange(8 * 2000) for _ in range(50)]
    bits += [8 * len(content) - 1 - draws.randrange(8 * 4000) for _ in range(50)]
    for bit in bits:
        path.write_bytes(flipped(content, bit))
        try:
            found = checkpoints.load(path)
        except UserError as error:
            refused += 1
            assert str(error).startswith(("best.ckpt: damaged", "best.ckpt: not a checkpoint"))  # noqa: PT017
            continue
        assert found.keys() == whole.keys()
        assert found["epoch"] == whole["epoch"]
        for name, value in whole["state_dict"].items():
            assert torch.equal(found["state_dict"][name], value)
    assert refused > 100


@pytest.mark.slow
def test_every_flipped_bit_of_a_small_checkpoint_is_refused_or_changes_nothing():
    whole, path = {"state_dict": {"a": torch.arange(3.0)}, "epoch": 1}, Path("a.ckpt")
    torch.save(whole, path)
    content, refused = path.read_bytes(), 0
    assert len(content) < 2000
    for bit in range(8 * len(content)):
        path.write_bytes(flipped(content, bit))
        try:
            found = checkpoints.load(path)
        except UserError:
            refused += 1
            continue
        assert found["epoch"] == 1, bit
        assert found["state_dict"].keys() == {"a"}, bit
        assert torch.equal(found["state_dict"]["a"], whole["state_dict"]["a"]), bit
    assert refused > 4 * len(content)


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, OSError), (errno.EINVAL, UserError)])
def test_a_disk_error_is_not_damage(monkeypatch: pytest.MonkeyPatch, number: int, kind: type):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, "why")

    torch.save({"state_dict": {}}, "a.ckpt")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(kind, match="why") as caught:
        checkpoints.load(Path("a.ckpt"))
    assert type(caught.value) is kind


DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "flipped": lambda content: flipped(content, 4 * len(content)),
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"hello\n",
    "another zip": lambda content: b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_damaged_checkpoint_is_refused_by_every_command(command: Callable, run: Path, name: str, how: str):
    path = run / "checkpoints/best.ckpt"
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    result = command(name)("run=run", *COMMANDS[name])
    assert result.code == 2
    assert result.err.startswith("error: run/checkpoints/best.ckpt: damaged")
    assert result.err.count("\n") == 1
    assert not list(Path().glob("out*"))
    with pytest.raises(UserError, match="damaged"):
        analysis.gate_weights(run)


def test_a_checkpoint_of_something_else_is_refused(command: Callable, run: Path):
    path = run / "checkpoints/best.ckpt"
    whole = torch.load(path, weights_only=True)
    others = {
        "a list": [1, 2],
        "no weights": {"epoch": 1},
        "other weights": whole | {"state_dict": {"objective.network.a": torch.zeros(2)}},
        "other shapes": whole | {"state_dict": {k: v[:1] for k, v in whole["state_dict"].items()}},
        "none": whole | {"state_dict": {}},
    }
    for content in others.values():
        torch.save(content, path)
        for name, arguments in COMMANDS.items():
            result = command(name)("run=run", *arguments)
            assert result.code == 2, result.err
            assert result.err.startswith("error: run/checkpoints/best.ckpt: ")
            assert result.err.count("\n") == 1


TEXTS = {
    "empty": lambda text: b"",
    "cut": lambda text: text[: len(text) // 2],
    "not UTF-8": lambda text: b"\xff\xfe" + text,
    "zeros": lambda text: bytes(100),
    "a list": lambda text: b"[1, 2]",
    "a word": lambda text: b"word",
    "deep": lambda text: b"[" * 100_000,
}


@pytest.mark.parametrize("how", TEXTS)
@pytest.mark.parametrize("name", ["config.yaml", "schema.json"])
def test_a_damaged_description_is_refused(command: Callable, run: Path, name: str, how: str):
    path = run / name
    path.write_bytes(TEXTS[how](path.read_bytes()))
    for program, arguments in {**COMMANDS, "train": []}.items():
        result = command(program)(f"{'resume' if program == 'train' else 'run'}=run", *arguments)
        assert result.code == 2, (program, result.err)
        assert result.err.startswith(f"error: run/{name}")
        assert result.err.count("\n") == 1
    with pytest.raises(UserError, match=name):
        load(run).network()


NONSENSE = {
    "NaN": ("numeric", 0, "mean", float("nan")),
    "no spread": ("numeric", 0, "std", 0.0),
    "text": ("numeric", 0, "std", "1"),
    "decreasing bins": ("numeric", 0, "bins", [3.0, 2.0, 1.0]),
    "shuffled levels": ("categorical", 0, "levels", ["b", "a"]),
    "a mode that is no level": ("categorical", 0, "mode", "none of them"),
    "a task of no kind": ("tasks", 0, "kind", "riddle"),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_a_nonsensical_schema_is_refused(command: Callable, run: Path, what: str):
    group, i, key, value = NONSENSE[what]
    path = run / "schema.json"
    schema = json.loads(path.read_text())
    schema[group][i][key] = value
    path.write_text(json.dumps(schema))
    result = command("predict")("run=run", *COMMANDS["predict"])
    assert result.code == 2
    assert result.err.startswith("error: run/schema.json: ")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("how", TEXTS)
def test_damaged_results_are_refused(run: Path, how: str):
    path = run / "metrics.json"
    whole = path.read_bytes()
    path.write_bytes(TEXTS[how](whole))
    with pytest.raises(UserError, match=r"run/metrics\.json: "):
        analysis.sweep_table(Path())
    path.write_bytes(whole)
    path = run / "predictions.parquet"
    path.write_bytes(TEXTS[how](path.read_bytes()))
    with pytest.raises(UserError, match=r"run/predictions\.parquet: damaged"):
        analysis.roc(run)


def test_a_flipped_bit_of_the_predictions_is_found(run: Path):
    path, found = run / "predictions.parquet", 0
    whole, table = path.read_bytes(), run_folder.read_table(run, "predictions.parquet")
    draws = random.Random(0)
    for _ in range(100):
        path.write_bytes(flipped(whole, draws.randrange(8 * len(whole))))
        try:
            again = run_folder.read_table(run, "predictions.parquet")
        except UserError:
            found += 1
        else:
            assert again.equals(table)
    assert found > 80
    for text in (b"marital_probability", b"income_label"):
        for i in range(whole.count(text)):  # names are in several places, none with a checksum
            *before, after = whole.split(text, i + 1)
            path.write_bytes(text.join(before) + text[:-1] + b"x" + after)
            with suppress(UserError):
                assert run_folder.read_table(run, "predictions.parquet").equals(table)


def test_a_damaged_replica_is_not_extracted(train: Callable, command: Callable):
    options = ["experiment=smoke", "replicas=2", "trainer.max_epochs=1", "logger=none"]
    assert train(*options, "+trainer.limit_train_batches=3", "hydra.run.dir=run").code == 0
    path = Path("run/checkpoints/best.ckpt")
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, 4 * len(whole)))
    result = command("extract")("run=run", "replica=1")
    assert result.code == 2
    assert "run/checkpoints/best.ckpt: damaged" in result.err
    assert not Path("run/replica_1").exists()
    path.write_bytes(whole)
    Path("run/.replica_1.part").mkdir()  # left by a process that was killed
    Path("run/.replica_1.part/config.yaml").touch()
    assert command("extract")("run=run", "replica=1").code == 0
    assert load("run/replica_1").network()
    assert not list(Path("run").rglob(".*"))


def test_a_replica_without_validation_and_test_is_extracted(
    train: Callable, command: Callable, monkeypatch: pytest.MonkeyPatch
):
    options = ["experiment=smoke", "replicas=2", "trainer.max_epochs=1", "logger=none", "hydra.run.dir=run"]
    limits = [f"+trainer.limit_{stage}_batches={n}" for stage, n in (("train", 2), ("val", 0), ("test", 0))]
    assert train(*options, *limits, "callbacks.early_stopping=null").code == 0
    assert not Path("run/predictions.parquet").exists()
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("file").touch()
    for out in ("new", "empty", "full"):
        done = command("extract")("run=run", "replica=1", f"out={out}")
        assert done.code == 0, done.err
        assert load(out).network()
        assert run_folder.read_table(Path(out), "history.csv").empty
        assert stored_config.read_plain_config(Path(out))["seed"] == 1
        assert not Path(out, "predictions.parquet").exists()
    assert Path("full/notes.txt").read_text() == "mine"
    assert not list(Path().glob(".*.part"))
    for out, why in (("new", "must not hold a run already"), ("file", "must be a folder")):
        done = command("extract")("run=run", "replica=1", f"out={out}")
        assert done.code == 2
        assert done.err.startswith(f"error: {out}: {why}")
    with pytest.raises(UserError, match="is empty, because the run had no validation"):
        analysis.plot_training_curves("new")
    # config.yaml, which makes the folder a run's, is written last.
    Path("full/config.yaml").unlink()
    written = []
    monkeypatch.setattr(stored_config, "write_config", lambda folder, _: written.append(folder))
    extract(load("run"), 1, Path("full"))
    assert written[-1] == Path("full")
    assert not Path("full/config.yaml").exists()
    Path("new/history.csv").unlink()
    with pytest.raises(UserError, match=r"new/history\.csv: missing"):
        plots_of(load("new"))
