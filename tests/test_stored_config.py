"""The configuration of a run is stored whole and without interpolations, and is checked when it is read."""

from pathlib import Path

import pytest
from conftest import config
from omegaconf import OmegaConf

from mmoe.errors import UserError
from mmoe.training import stored_config

MONITOR = ("monitor=val/income/auroc", "monitor_mode=max")  # a run stores the monitor of its tasks


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


def test_the_folder_may_be_part_of_another_interpolation(whole: str, monkeypatch: pytest.MonkeyPatch):
    changed = OmegaConf.create(whole)
    changed.data.dir = "${oc.env:ML,${hydra:runtime.output_dir}/ml}"
    monkeypatch.delenv("ML", raising=False)
    assert (
        stored(stored_config.portable_yaml(changed))["data"]["dir"] == f"{stored_config.RUN_FOLDER_TEXT}/ml"
    )
    monkeypatch.setenv("ML", "elsewhere")
    assert stored(stored_config.portable_yaml(changed))["data"]["dir"] == "elsewhere"


def test_the_path_of_a_folder_is_never_resolved(whole: str):
    folder = Path("a${oc.env:HOME}b")
    folder.mkdir()
    stored_config.write_config(folder, whole)
    with pytest.raises(UserError, match=r"a\$\{oc.env:HOME\}b: must not hold \$\{, which begins"):
        stored_config.read_config(folder)


@pytest.mark.parametrize("text", [b"seed: \xff\n# end\n", b"seed: [1\n# end\n", b"- 1\n# end\n"])
def test_a_damaged_configuration_is_refused_where_a_run_is_looked_for(text: bytes):
    Path("config.yaml").write_bytes(text)
    with pytest.raises(UserError, match=r"^config\.yaml: (damaged|not UTF-8)"):
        stored_config.is_run_of(Path(), OmegaConf.create({"monitor": None}))


def test_a_run_is_recognised_although_its_monitor_was_left_open(smoke_run: Path):
    folder = stored_config.read_plain_config(smoke_run)
    open_one = OmegaConf.create(folder | {"monitor": None, "monitor_mode": None})
    assert folder["monitor"] == "val/income/auroc"
    assert stored_config.is_run_of(smoke_run, open_one)
    assert not stored_config.is_run_of(smoke_run, OmegaConf.create(folder | {"monitor": "val/marital/auroc"}))
    assert not stored_config.is_run_of(smoke_run, OmegaConf.merge(open_one, {"seed": 7}))
