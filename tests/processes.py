"""Run functions in real processes, without the seconds that each new one takes to import torch.

The processes are forked from a server, which is a new Python that has imported mmoe, but not pytest.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

IMPORTED = [
    "mmoe.train", "mmoe.evaluate", "mmoe.predict", "mmoe.tune", "mmoe.training.resume",
    "mmoe.training.stages", "mmoe.training.warm_start", "mmoe.training.optuna_study", "mmoe.data.census",
    "mmoe.data.synthetic", "mmoe.models.mmoe", "mmoe.analysis.card", "mmoe.analysis.figures", "markdown_it",
    "torch.utils.tensorboard", "pyarrow.dataset", "matplotlib.backends.backend_agg",
]  # fmt: skip
SCRIPTS = Path(__file__).parents[1] / "scripts"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED)


def start(
    main: Callable[[], object],
    *arguments: str,
    out: Path,
    err: Path,
    before: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> BaseProcess:
    """Start a process in the working directory, with the arguments in `sys.argv` and its output in two files.

    `main` and `before`, which is called first, must be functions of a module, or partials of these.
    """
    given = (main, before, arguments, str(Path.cwd()), dict(environment or os.environ), str(out), str(err))
    process = CONTEXT.Process(target=_call, args=given)
    process.start()
    return process


def run(
    main: Callable[[], object],
    *arguments: str,
    before: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a process to its end, like `subprocess.run`."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = start(main, *arguments, out=out, err=err, before=before, environment=environment)
        process.join(600)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{main} {arguments}")
        return subprocess.CompletedProcess(arguments, process.exitcode, out.read_text(), err.read_text())


def script(name: str) -> None:
    """Run a file of scripts/ in a process of its own; the commands that it starts are forked too."""
    sys.path.insert(0, str(SCRIPTS))
    import_module("commands").subprocess = FORKED
    import_module(name).main()


def run_module(
    command: Sequence[str], stdout: int | None = None, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Like `subprocess.run` of `python -m MODULE ARGUMENTS`, but fork the process."""
    _, _, module, *arguments = command
    done = run(import_module(module).main, *arguments, environment=env)
    print(done.stderr, end="", file=sys.stderr)
    if stdout is None:
        print(done.stdout, end="")
    return done


class ForkedCommand:
    """Like `subprocess.Popen` of `python -m MODULE ARGUMENTS`, but `wait` forks the process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.run = partial(run_module, *arguments, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> int:
        return self.run().returncode


FORKED = SimpleNamespace(Popen=ForkedCommand, DEVNULL=subprocess.DEVNULL)  # for the module `commands`


def _call(
    main: Callable[[], object],
    before: Callable[[], None] | None,
    arguments: Sequence[str],
    folder: str,
    environment: Mapping[str, str],
    out: str,
    err: str,
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for path, stream in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    sys.argv = ["mmoe", *arguments]
    if before:
        before()
    main()
