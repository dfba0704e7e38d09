"""Train on a table from Python: DataFrames, or files.

table = mmoe.Table(train, tasks={"click": "clicked", "spend": mmoe.Regression("spend", where="clicked")})
run = mmoe.fit(table, "runs/mine", "model.num_experts=4")
scores = run.predict(new)
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from pyarrow import parquet

from mmoe.atomic import write
from mmoe.checks.arguments import check_argument
from mmoe.cli.composition import composed
from mmoe.cli.hidden_warnings import useless_warnings_hidden
from mmoe.data.table import Table
from mmoe.errors import UserError, is_disk_error
from mmoe.training.run_folder import CARDS, FILES, FOLDERS
from mmoe.training.stored_config import RUN_FOLDER_TEXT, holds_runs

if TYPE_CHECKING:
    from mmoe.run import Run


def fit(table: Table, folder: Path | str, *overrides: str) -> "Run":
    """Train on a table, as `python -m mmoe.train` does, and return the run.

    Args:
        table: the rows and the tasks.
        folder: the run folder, which must not hold a run, or a file or a folder that a run writes.
        overrides: of the configuration, such as `"model.num_experts=4"` or `"model=ple"`.

    Raises:
        UserError: the folder is not free, an override or the table is invalid, or training diverges.
    """
    from mmoe.train import train

    started = time.perf_counter()
    check_argument(isinstance(table, Table), "table", table, "must be a mmoe.Table")
    is_path = isinstance(folder, Path) or (isinstance(folder, str) and folder != "")
    check_argument(is_path, "folder", folder, "must be the path of a folder")
    for one in overrides:
        check_argument(isinstance(one, str), "overrides", one, "must be text such as 'model.num_experts=4'")
    folder = Path(folder)
    frames = table.frames(folder)
    if (folder / "config.yaml").exists():
        raise UserError(f"folder={folder}: must not hold a run; name another folder")
    if holds_runs(folder):
        rule = f"holds runs in folders of their own; name a new one, such as {folder / 'first'}"
        raise UserError(f"folder={folder}: {rule}")
    for path in (*(folder / name for name in (*FILES, *CARDS, *FOLDERS)), *frames):
        if path.exists():
            rule = f"must not hold {path.relative_to(folder)}, which the run writes"
            raise UserError(f"folder={folder}: {rule}; name another folder, or move it")
    configuration = composed(table.config(RUN_FOLDER_TEXT), folder, overrides)
    with useless_warnings_hidden(), configuration as config, _written(frames, folder):
        run = train(config, folder, started)
    assert run is not None
    return run


@contextmanager
def _named_as_frames(paths: Sequence[Path]) -> Iterator[None]:
    """In the message of a UserError, name the DataFrame instead of the file that holds its rows."""
    try:
        yield
    except UserError as error:
        message = str(error)
        for path in paths:
            message = message.replace(str(path.absolute()), f"DataFrame {path.stem}")
        if message == str(error):
            raise
        raise UserError(message) from None


@contextmanager
def _written(frames: Mapping[Path, pa.Table], folder: Path) -> Iterator[None]:
    """Write DataFrames to a new run folder. After an error, remove them if no run was made."""
    new_folders = [path for path in (folder / "data", folder, *folder.parents) if not path.exists()]
    written = []
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_disk_error(error):
                raise
            raise UserError(f"folder={folder}: cannot be a folder ({error.strerror})") from None
        for path, frame in frames.items():
            write(path, partial(parquet.write_table, frame))
            written.append(path)
        with _named_as_frames(written):
            yield
    except BaseException:
        if not (folder / "config.yaml").exists():
            for path in written:
                path.unlink(missing_ok=True)
            for path in new_folders:
                with suppress(OSError):  # the folder holds other files, or was not made
                    path.rmdir()
        raise
