"""The configuration of a run: config.yaml, written without interpolations and read back with checks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mmoe.atomic import write_text
from mmoe.checks.arguments import check_integers
from mmoe.errors import UserError, first_line

RUN_FOLDER_TEXT = "${hydra:runtime.output_dir}"  # config.yaml has this text instead of the run folder's path
FOLDER_PLACEHOLDER = "__folder_qkzvxwjhbp__"  # stands for RUN_FOLDER_TEXT while OmegaConf resolves the rest
END = "# end"  # last line of config.yaml; without it, a truncated file could pass as valid YAML
REQUIRED_PARTS = ("inputs", "model", "data", "objective", "learner", "trainer")  # of every configuration


def write_config(folder: Path, config: str) -> None:
    """Write config.yaml from the text of `portable_yaml` or `to_yaml`."""
    assert _is_complete(config)
    write_text(folder / "config.yaml", config)


def portable_yaml(config: DictConfig) -> str:
    """Resolve a configuration and return it as YAML, with `RUN_FOLDER_TEXT` for the run folder.

    Raises:
        UserError: a resolved value still looks like an interpolation.
    """
    raw = OmegaConf.to_container(config, resolve=False)
    marked = OmegaConf.create(
        _map_strings(raw, lambda _, text: text.replace(RUN_FOLDER_TEXT, FOLDER_PLACEHOLDER))
    )
    resolved = _map_strings(OmegaConf.to_container(marked, resolve=True), _refuse_interpolation)
    portable = _map_strings(resolved, lambda _, text: text.replace(FOLDER_PLACEHOLDER, RUN_FOLDER_TEXT))
    return to_yaml(OmegaConf.create(portable))


def to_yaml(config: DictConfig) -> str:
    """Return the configuration as the text of a config.yaml, without resolving it."""
    return f"{OmegaConf.to_yaml(config)}{END}\n"


def is_run_of(folder: Path, config: DictConfig) -> bool:
    """Whether the folder holds a run with exactly this configuration.

    Raises:
        UserError: its config.yaml is not UTF-8, or it cannot be parsed. It is parsed only if
            `config.monitor` is null.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        return False
    text = read_text(path, "")
    if _is_complete(text) and config.get("monitor") is None:
        # The run has stored the monitor that follows from its tasks.
        stored = read_plain_config(folder)
        filled = {key: stored.get(key) for key in ("monitor", "monitor_mode")}
        config = OmegaConf.merge(config, filled)  # type: ignore[assignment]
    return text == portable_yaml(config)


def read_config(folder: Path) -> DictConfig:
    """Read config.yaml and replace `RUN_FOLDER_TEXT` by the folder's path. No interpolation is resolved.

    Raises:
        UserError: the file is missing or damaged, or the folder's path contains ${.
    """
    config = read_plain_config(folder)
    absolute = str(folder.absolute())
    if "${" in absolute:
        raise UserError(f"{absolute}: must not hold ${{, which begins an interpolation; rename the folder")
    with_path = _map_strings(config, lambda _, text: text.replace(RUN_FOLDER_TEXT, absolute))
    read: DictConfig = OmegaConf.create(with_path, flags={"allow_objects": False})
    return read


def holds_runs(folder: Path) -> bool:
    """Whether a folder contains run folders, as the folder of a sweep does."""
    return any(folder.glob("*/config.yaml"))


def read_plain_config(folder: Path) -> dict[str, Any]:
    """Read config.yaml as plain dicts and lists.

    Raises:
        UserError: the file is missing or damaged, or holds an interpolation.
    """
    path = folder / "config.yaml"
    question = "sweep? Then name one of its runs" if holds_runs(folder) else "run folder?"
    text = read_text(path, f"; is {folder} a {question}")
    if not _is_complete(text):
        raise UserError(f"{path}: damaged (its last line must be {END!r})")
    try:
        config = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except Exception as error:  # PyYAML may raise anything, such as for a wrong tag
        raise UserError(f"{path}: damaged ({first_line(error)})") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: damaged (it must be a mapping)")
    _map_strings(
        config, lambda key, text: _refuse_interpolation(f"{path}, {key}", text.replace(RUN_FOLDER_TEXT, ""))
    )
    try:
        _check_parts(config)
    except UserError as error:
        raise UserError(f"{path}, {error}") from None
    return {str(key): value for key, value in config.items()}


def _is_complete(text: str) -> bool:
    return text.splitlines()[-1:] == [END]


def _map_strings(node: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """Copy plain dicts and lists, and replace each string with `change(dotted key, string)`."""
    if isinstance(node, dict):
        return {k: _map_strings(v, change, f"{key}.{k}" if key else str(k)) for k, v in node.items()}
    if isinstance(node, list):
        return [_map_strings(v, change, f"{key}[{i}]") for i, v in enumerate(node)]
    return change(key, node) if isinstance(node, str) else node


def _refuse_interpolation(key: str, text: str) -> str:
    if "${" in text:
        rule = f"must not hold an interpolation; the only one allowed in a config.yaml is {RUN_FOLDER_TEXT}"
        raise UserError(f"{key}={text}: {rule}")
    return text


def _check_parts(config: dict[Any, Any]) -> None:
    """Raise UserError if a part of a stored configuration is missing or has the wrong type."""
    for key in (*REQUIRED_PARTS, "callbacks", "monitor", "seed", "replicas"):
        if key not in config:
            raise UserError(f"{key}: is missing")
    for key in REQUIRED_PARTS:
        if not isinstance(config[key], dict):
            raise UserError(f"{key}={config[key]}: must be a mapping with a _target_")
        if not isinstance(config[key].get("_target_"), str):
            raise UserError(f"{key}: must have a _target_, the class to build")
    for key in ("callbacks", "logger"):  # null or false: not built
        parts = config.get(key) or {}
        if not isinstance(parts, dict):
            raise UserError(f"{key}={parts}: must be a mapping or null")
        for name, part in parts.items():
            if part and not isinstance(part, dict) and "_target_" not in parts:
                raise UserError(f"{key}.{name}={part}: must be a mapping or null")
    if not isinstance(config["monitor"], str):
        raise UserError(f"monitor={config['monitor']}: must be the name of a metric")
    check_integers(0, seed=config["seed"])
    check_integers(1, replicas=config["replicas"])


def read_text(path: Path, hint: str) -> str:
    """Read a text file of a run folder; raise UserError, with a hint if it is missing."""
    if not path.is_file():
        raise UserError(f"{path}: missing{hint}")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
