"""Files and folders that are either complete under their name or not there at all.

What a killed process leaves behind has a name that begins with a dot and can be deleted.
"""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

_POINTER = b"version https://git-lfs."

# What atomic_path writes to: of STEM.SUFFIX, .STEM.HEX.SUFFIX.
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}(\.[^.]*|)", re.DOTALL)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path` (same folder and suffix), which becomes `path` when the block succeeds.

    The file is flushed to the disk before it is renamed and the folder after, so that an error, a kill, a full disk
    or a power cut leaves either what was under the name or the complete new file. A missing parent folder is created.

    Raises:
        IsADirectoryError: `path` is a folder. OSError: as the system says; that of a full disk names the path too.
        FileNotFoundError: the block ended without writing the temporary path.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"cannot write the file {path}: a folder of that name is there")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        if not temporary.is_file():
            raise FileNotFoundError(f"nothing was written for {path}")
        sync(temporary)
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        _raise_with_path(error, path, temporary)
    sync(path.parent)


def refuse_pointer(path: str | os.PathLike):
    """ValueError where a file is git LFS's stand-in for another one, as a repository cloned without LFS has them."""
    path = Path(path)
    with open(path, "rb") as file:
        text = file.read(1024)
    if text.startswith(_POINTER):
        size = re.search(rb"^size (\d+)$", text, re.MULTILINE)
        of = f" of {int(size[1]) / 1e9:.3g} GB" if size else ""
        raise ValueError(f"{path} is a git LFS pointer ({path.stat().st_size} bytes), not the file{of} that it stands "
                         f"for: run `git lfs pull` in its repository, or download the file itself")


def current_folder() -> str:
    """What the message about a path that is not there says after it: where a relative one was looked for."""
    return f"(current folder {Path.cwd()})"


def conversion(path: str | os.PathLike, network: str = "dit|vae|umt5") -> str:
    """What to do with weights in another project's form; `network` is what the converter calls it."""
    path = Path(path)
    target = path.with_name(f"{path.stem if path.is_file() else path.name}_converted")
    return f"convert it: python tools/convert_checkpoint.py {network} --source {path} --target {target}"


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new empty folder beside `path`, which becomes `path` when the block succeeds.

    With `overwrite` a folder that already has the name is set aside, and removed once the new one stands in its
    place; an error removes the new folder and leaves the old one as it was.

    Raises:
        FileExistsError: `path` exists and `overwrite` is not set, or it is not a folder.
    """
    path = Path(path)
    if path.exists() and not (overwrite and path.is_dir()):
        raise FileExistsError(f"{path} already exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)
    temporary = path.with_name(f".{path.name}.{token}")
    aside = path.with_name(f".{path.name}.{token}.old")
    try:
        temporary.mkdir()
        yield temporary
        for entry in temporary.rglob("*"):
            sync(entry)
        sync(temporary)
        if path.exists():
            path.rename(aside)
        try:
            temporary.rename(path)
        except OSError:
            if aside.exists():
                aside.rename(path)
            raise
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _raise_with_path(error, path)
    sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(paths: Iterable[str | os.PathLike]) -> None:
    """Removes what killed processes have left of files that atomic_path was to write. Nobody may be writing them."""
    wanted = {}
    for path in map(Path, paths):
        wanted.setdefault(path.parent, set()).add((path.stem, path.suffix))
    for folder, names in wanted.items():
        for entry in folder.iterdir() if folder.is_dir() else []:
            match = _TEMPORARY.fullmatch(entry.name)
            if match and (match[1], match[2]) in names:
                entry.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Context of writing to an open file: what the system says of a full disk is raised with the file's path."""
    try:
        yield
    except OSError as error:
        _raise_with_path(error, path)


def _raise_with_path(error: BaseException, path: str | os.PathLike, temporary: Path | None = None) -> NoReturn:
    """Raises the error again; where the system complains without saying of which file (a full disk), or of the
    temporary one, with its path."""
    if isinstance(error, OSError) and error.errno is not None and error.filename in (None, temporary, str(temporary)):
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    raise error


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
