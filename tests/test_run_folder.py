from pathlib import Path

import pytest
import torch
from conftest import config
from omegaconf import OmegaConf

from mmoe import atomic, load
from mmoe.build import build
from mmoe.errors import UserError
from mmoe.training import checkpoints, run_folder, stored_config
from mmoe.training.preparation import build_network
from mmoe.training.trust import check_targets

MONITOR = ("monitor=val/income/auroc", "monitor_mode=max")  # a run stores the monitor of its tasks


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "folder" / "a.txt"
    atomic.write(path, lambda scratch: scratch.write_text("one"))

    def fail(scratch: Path) -> None:
        scratch.write_text("tw")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic.write(path, fail)
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_network_comes_back_from_its_folder_alone(tmp_path: Path):
    c = config(
        "data.source=sample",
        "model.num_experts=3",
        "inputs=embedding",
        "callbacks=null",
        "logger=none",
        *MONITOR,
    )
    data = build(c, "data")
    network = build_network(c, data.schema).eval()
    run_folder.start(tmp_path, stored_config.portable_yaml(c), data.schema)
    (tmp_path / "checkpoints").mkdir()
    state = {f"objective.network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "checkpoints/best.ckpt")
    again = load(tmp_path).network()
    rows = data.dataset.splits["test"]
    assert not again.training
    for a, b in zip(network(rows.levels, rows.numbers), again(rows.levels, rows.numbers), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.load", "torch.hub.load", "builtins.eval", "mmoe.run.load", "mmoe.no.Such"],
)
def test_a_configuration_may_only_build_trusted_classes(tmp_path: Path, target: str):
    c = config("data.source=sample", "callbacks=null", "logger=none", *MONITOR)
    schema = build(c, "data").schema
    c.inputs.numeric = {"_target_": target, "_partial_": True}
    run_folder.start(tmp_path, stored_config.portable_yaml(c), schema)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/best.ckpt").touch()
    with pytest.raises(UserError, match=f"^inputs.numeric._target_={target}: a run folder may build modules"):
        load(tmp_path).network()


def test_every_shipped_configuration_is_trusted():
    for experiment in ("census", "census_paddlerec"):
        check_targets(plain(f"experiment={experiment}"))
    check_targets(plain("data=paddlerec"))
    for logger in ("csv", "tensorboard", "wandb", "mlflow"):
        check_targets(plain(f"logger={logger}"))


def plain(*overrides: str) -> dict:
    return OmegaConf.to_container(config(*overrides, *MONITOR), resolve=False)


def test_a_folder_holds_one_run(tmp_path: Path):
    c = config("data.source=sample", "callbacks=null", "logger=none", *MONITOR)
    schema = build(c, "data").schema
    run_folder.start(tmp_path, stored_config.portable_yaml(c), schema)
    with pytest.raises(ValueError, match="must not hold a run already"):
        run_folder.start(tmp_path, stored_config.portable_yaml(c), schema)


def test_a_folder_without_a_run(tmp_path: Path):
    with pytest.raises(ValueError, match=r"config\.yaml: missing; is .* a run folder\?"):
        load(tmp_path).network()


@pytest.fixture(scope="module")
def whole() -> str:
    """The text of a config.yaml."""
    return stored_config.portable_yaml(config("experiment=smoke", "logger=tensorboard", *MONITOR))


def stored(text: str) -> dict:
    Path("run").mkdir(exist_ok=True)
    Path("run/config.yaml").write_text(text)
    return stored_config.read_plain_config(Path("run"))


def test_a_configuration_is_read_back_and_a_cut_one_is_refused(whole: str):
    assert OmegaConf.create(stored(whole)) == OmegaConf.create(whole)
    assert stored_config.to_yaml(OmegaConf.create(stored(whole))) == whole
    for size in [*range(0, len(whole) - 30, 97), *range(len(whole) - 30, len(whole) - 1)]:
        with pytest.raises(UserError, match=r"^run/config\.yaml: damaged"):
            stored(whole[:size])
    with pytest.raises(AssertionError):
        stored_config.write_config(Path("run"), whole[:-3])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data", "5"), ("data", "null"), ("data", "{}"), ("replicas", "two"), ("replicas", "0"),
        ("seed", "null"), ("seed", "true"), ("seed", "-1"), ("trainer", "null"), ("model", "x"),
        ("model", "{_target_: 5}"),
        ("inputs", "[1]"), ("objective", "1.5"), ("learner", "''"), ("callbacks", "[1]"), ("monitor", "null"),
        ("callbacks", "{best: 5}"), ("logger", "csv"), ("logger", "{csv: csv}"), ("model", "???"),
    ],
)  # fmt: skip
def test_a_part_of_the_wrong_kind_is_named(whole: str, key: str, value: str):
    changed = OmegaConf.create(whole)
    changed[key] = "(changed)"
    text = stored_config.to_yaml(changed).replace("(changed)", value)
    with pytest.raises(UserError, match=rf"^run/config\.yaml, {key}[.=:].*must ") as caught:
        stored(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=rf"^run/config\.yaml, {key}"):
        stored_config.read_config(Path("run"))


def test_a_part_that_is_missing_is_named_and_some_may_be(whole: str):
    content = OmegaConf.to_container(OmegaConf.create(whole), resolve=False)
    required = [*stored_config.REQUIRED_PARTS, "callbacks", "monitor", "seed", "replicas"]
    for key in content:
        text = stored_config.to_yaml(OmegaConf.create({k: v for k, v in content.items() if k != key}))
        if key in required:
            with pytest.raises(UserError, match=rf"^run/config\.yaml, {key}: is missing"):
                stored(text)
        else:
            stored(text)
    for key, value in {
        "callbacks": None,
        "logger": None,
        "callbacks.best": None,
        "logger.csv": False,
    }.items():
        changed = OmegaConf.create(whole)
        OmegaConf.update(changed, key, value)
        stored(stored_config.to_yaml(changed))


@pytest.mark.parametrize(
    "text",
    ["[" * 2000, "{a: " * 2000, "a: !!int ''", "a: !!float ''", "a: !!bool x", "a: !!timestamp x",
     "a: &a [*a]", "a: *b", "? [1]\n: 2", "a: 1\na: 2", "\0", "a: \x07", "a\n b: c", "a: ${", "5",
     "[1, 2]", ""],
)  # fmt: skip
def test_text_that_is_no_configuration_is_refused_on_one_line(text: str):
    with pytest.raises(UserError, match=r"^run/config\.yaml") as caught:
        stored(f"{text}\n{stored_config.END}\n")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["metrics.json", "schema.json"])
def test_nesting_without_end_is_refused(name: str):
    Path("run").mkdir()
    Path("run", name).write_text("[" * 100_000)
    read = {"metrics.json": run_folder.read_metrics, "schema.json": run_folder.read_schema}[name]
    with pytest.raises(UserError, match=rf"^run/{name}: "):
        read(Path("run"))


def test_the_folder_may_stand_in_another_interpolation(whole: str, monkeypatch: pytest.MonkeyPatch):
    changed = OmegaConf.create(whole)
    changed.data.dir = "${oc.env:ML,${hydra:runtime.output_dir}/ml}"
    monkeypatch.delenv("ML", raising=False)
    assert stored(stored_config.portable_yaml(changed))["data"]["dir"] == f"{stored_config.FOLDER}/ml"
    monkeypatch.setenv("ML", "elsewhere")
    assert stored(stored_config.portable_yaml(changed))["data"]["dir"] == "elsewhere"


def test_the_path_of_a_folder_is_never_resolved(whole: str):
    folder = Path("a${oc.env:HOME}b")
    folder.mkdir()
    stored_config.write_config(folder, whole)
    with pytest.raises(UserError, match=r"a\$\{oc.env:HOME\}b: must not hold \$\{, which begins"):
        stored_config.read_config(folder)


def test_a_lock_is_removed_while_it_is_held(monkeypatch: pytest.MonkeyPatch):
    release, found = run_folder.FileLock.release, []

    def watch(lock: run_folder.FileLock, *arguments: bool) -> None:
        found.append(Path("run.lock").exists())
        release(lock, *arguments)

    monkeypatch.setattr(run_folder.FileLock, "release", watch)
    with run_folder.locked(Path()):
        assert Path("run.lock").exists()
        with pytest.raises(UserError, match="another process is at work"), run_folder.locked(Path()):
            pass
    assert found[0] is False
    with run_folder.locked(Path()):
        pass


@pytest.mark.parametrize("replica", [-1, 1.0, True, "0", 4, None])
def test_a_replica_is_one_of_the_run(replica: object):
    given = "replica" if replica is None else f"replica={replica}"
    with pytest.raises(UserError, match=f"^{given}: must be 0 to 3, because the run has 4 replicas"):
        checkpoints.check_replica(4, replica)
    with pytest.raises(UserError, match=r"^replica=0: the run has no replicas"):
        checkpoints.check_replica(1, 0)
    checkpoints.check_replica(1, None)
    checkpoints.check_replica(4, 3)


@pytest.mark.parametrize("text", ["", "\n", "\n\n"])
def test_a_history_may_be_empty(text: str):
    Path("history.csv").write_text(text)
    assert run_folder.read_table(Path(), "history.csv").empty


def test_a_run_is_recognised_although_its_monitor_was_left_open(smoke_run: Path):
    folder = stored_config.read_plain_config(smoke_run)
    open_one = OmegaConf.create(folder | {"monitor": None, "monitor_mode": None})
    assert folder["monitor"] == "val/income/auroc"
    assert stored_config.is_run_of(smoke_run, open_one)
    assert not stored_config.is_run_of(smoke_run, OmegaConf.create(folder | {"monitor": "val/marital/auroc"}))
    assert not stored_config.is_run_of(smoke_run, OmegaConf.merge(open_one, {"seed": 7}))
