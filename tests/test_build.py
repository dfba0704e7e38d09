"""Objects are built as the configuration says, and errors name its keys."""

from typing import Any

import pytest
from conftest import config
from omegaconf import OmegaConf

from mmoe.build import build
from mmoe.errors import UserError


def test_positional_arguments_are_built_unless_recursive_is_false():
    arguments = [[{"_target_": "builtins.dict", "a": 1}]]
    node = {"_target_": "builtins.list", "_args_": arguments}
    assert build(OmegaConf.create({"part": node}), "part") == [{"a": 1}]
    assert build(OmegaConf.create({"part": node | {"_recursive_": False}}), "part") == arguments[0]
    arguments[0][0]["_target_"] = "nowhere.Dict"
    with pytest.raises(UserError, match=r"^part\._args_\[0\]\[0\]: Error locating target 'nowhere.Dict'"):
        build(OmegaConf.create({"part": node}), "part")


@pytest.mark.parametrize("extra", ["mlflow", "wandb"])
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, extra: str):
    def refuse(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("Requirement 'other>=1.0.0' not met")

    loggers = OmegaConf.create({"logger": config("experiment=smoke", f"logger={extra}").logger[extra]})
    target = loggers.logger._target_
    monkeypatch.setattr(f"{target}.__init__", refuse)
    with pytest.raises(UserError, match=rf"^logger: needs pip install 'mmoe\[{extra}\]'$"):
        build(OmegaConf.create({"logger": {"_target_": target}}), "logger")
