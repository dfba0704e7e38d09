"""Find and open files, on this machine or by fsspec URL (memory://, https://, s3://)."""

import binascii
import errno
import glob
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa

from mmoe.errors import UserError

CSV, PARQUET, ARROW = "CSV", "Parquet", "Arrow"
KINDS = {
    CSV: (".csv", ".tsv", ".txt", ".data", ".test"),
    PARQUET: (".parquet", ".pq", ".parq"),
    ARROW: (".arrow", ".feather", ".ipc"),
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}


def file_kind(path: str) -> str | None:
    """The kind of a data file by the ending of its name; None for another file."""
    suffixes = ["", "", *(suffix.lower() for suffix in PurePosixPath(_url_path(path)).suffixes)]
    before, last = suffixes[-2:]
    if last in COMPRESSIONS:
        return CSV if before in KINDS[CSV] else None
    return next((kind for kind, endings in KINDS.items() if last in endings), None)


def is_tsv(path: str) -> bool:
    """Whether the name of a file, compressed or not, ends with .tsv."""
    name = PurePosixPath(_url_path(path)).name.lower()
    return name.endswith(tuple(f".tsv{compression}" for compression in ("", *COMPRESSIONS)))


def find_files(source: str | Path | Sequence[str | Path]) -> list[str]:
    """The data files of a source, all of one kind, sorted.

    A source is a file, a glob, a folder (all its data files, at any depth), or a list of these. Files and
    folders whose names begin with a point or an underscore are left out unless they are named.

    Raises:
        UserError: there is no such file, a source has no data files, or the kinds differ.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise UserError("[]: must name at least one file")
    found = sorted({file for part in sources for file in _expand(str(part))})
    first = {file_kind(file): file for file in reversed(found)}
    if len(first) > 1:
        listed = " and ".join(f"{file} ({kind})" for kind, file in sorted(first.items(), key=str))
        raise UserError(f"{listed}: files of one source must be of one kind")
    return found


def name_files(files: Sequence[str]) -> str:
    """The first file and the number of the others, for messages."""
    return files[0] + f" and {len(files) - 1} more" * (len(files) > 1)


def open_stream(path: str) -> pa.NativeFile:
    """Open a file to be read from the start, decompressed. Call it within `file_errors`."""
    file = open_file(path)
    start = file.read(4)
    file.seek(0)
    by_name = COMPRESSIONS.get(PurePosixPath(_url_path(path)).suffix.lower())
    codec = by_name or next((codec for magic, codec in MAGIC.items() if start.startswith(magic)), None)
    return pa.CompressedInputStream(file, codec) if codec and start else file


def open_file(path: str) -> pa.NativeFile:
    """Open a file for random access. Call it within `file_errors`."""
    if not _is_remote(path):
        return pa.OSFile(str(expand_home(path)), "rb")
    return pa.PythonFile(fsspec.open(path, "rb").open(), mode="r")


def file_size(path: str) -> int:
    """The size of a file in bytes.

    Raises:
        UserError: the file cannot be read.
    """
    with file_errors(path):
        system, name = system_of(path)
        return int(system.info(name)["size"])


def system_of(path: str) -> tuple[Any, str]:
    """The file system of fsspec that holds a file, and the file's name there."""
    if not _is_remote(path):
        return fsspec.filesystem("file"), str(expand_home(path))
    return fsspec.core.url_to_fs(path)  # type: ignore[no-any-return]


def expand_home(path: str) -> Path:
    """The path with a leading `~` or `~USER` replaced by the home directory.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: ~ must be followed by the name of an existing user") from None


@contextmanager
def file_errors(path: str) -> Iterator[None]:
    """Turn errors of a file into UserError. The body should only open, read and decode the file.

    Backends of fsspec raise errors of their own classes, so any error while a remote file is
    read counts as an error of the file.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pa.ArrowException, EOFError, UnicodeError, binascii.Error, zlib.error) as error:
        raise UserError(f"{path}: damaged or incomplete file ({_reason(error)})") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # a temporary file does not fit
            raise
        if error.errno is None:  # Arrow's decompressors
            raise UserError(f"{path}: damaged or incomplete file ({_reason(error)})") from None
        raise UserError(f"{path}: cannot be read ({error.strerror or _reason(error)})") from None
    except Exception as error:
        if not _is_remote(path):
            raise
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from None


def _expand(source: str) -> list[str]:
    files = _expand_remote(source) if _is_remote(source) else _expand_local(source)
    if not files:
        raise UserError(f"{source}: must hold data files, which end with {_endings()}; there are none")
    return files


def _expand_local(source: str) -> list[str]:
    path = expand_home(source)
    if path.is_file():
        if file_kind(source) is None:
            raise UserError(f"{source}: must end with {_endings()}")
        return [source]
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.is_file())
        return [str(file) for file in inside if _is_data_file(file.relative_to(path).as_posix())]
    if not glob.has_magic(source):
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise UserError(f"{source}: no such file{where}")
    found = glob.glob(str(path), recursive=True)  # noqa: PTH207, because Path.glob takes no absolute patterns
    matches = [match for match in found if _is_match(match, path)]
    if not matches:
        raise UserError(f"{source}: matches no file")
    in_folders = [file for match in matches if Path(match).is_dir() for file in _expand_local(match)]
    return in_folders + [match for match in matches if Path(match).is_file() and file_kind(match)]


def _expand_remote(source: str) -> list[str]:
    try:
        system, path = fsspec.core.url_to_fs(source)
    except ImportError as error:  # the message names the package
        is_s3 = fsspec.utils.get_protocol(source) in ("s3", "s3a")
        hint = "needs pip install 'mmoe[s3]'" if is_s3 else _reason(error)
        raise UserError(f"{source}: {hint}") from None
    except ValueError as error:
        raise UserError(f"{source}: {_reason(error)}") from None
    with file_errors(source):
        if file_kind(source) and system.exists(path) and not _is_remote_folder(system, path):
            return [source]
        if glob.has_magic(path):
            found = system.glob(path)
        elif _is_remote_folder(system, path):
            start = system.unstrip_protocol(path).rstrip("/") + "/"
            inside = (system.unstrip_protocol(file) for file in system.find(path))
            return [file for file in inside if _is_data_file(file.removeprefix(start))]
        elif system.exists(path):
            raise UserError(f"{source}: must end with {_endings()}")
        else:
            raise UserError(f"{source}: no such file")
    names = [system.unstrip_protocol(file) for file in found]
    return [name for name in names if file_kind(name) and _is_match(name, PurePosixPath(source))]


def _is_remote_folder(system: Any, path: str) -> bool:
    """Whether a remote path is a folder. An HTTP page counts as one if it has links."""
    try:
        return bool(system.isdir(path)) and not (file_kind(path) and system.isfile(path))
    except FileNotFoundError:
        return False


def _is_data_file(relative: str) -> bool:
    return file_kind(relative) is not None and all(map(_is_visible, PurePosixPath(relative).parts))


def _is_match(path: str, pattern: PurePath) -> bool:
    """Whether the parts of the path that the pattern does not spell out are visible."""
    return all(_is_visible(part) for part in PurePath(path).parts if part not in pattern.parts)


def _is_visible(name: str) -> bool:
    return not name.startswith((".", "_"))


def _is_remote(path: str) -> bool:
    return "://" in path


def _url_path(path: str) -> str:
    """The path without the query of a URL."""
    return urlsplit(path).path or path if path.startswith(("http://", "https://")) else path


def _endings() -> str:
    endings = [ending for kind in KINDS.values() for ending in kind]
    return f"{', '.join(endings)} (text also .gz, .zst or .bz2)"


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]
