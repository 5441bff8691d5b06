"""Saves training checkpoints behind the training thread's back, keeps the last few, and finds the newest intact one.

The layout on the disk is that of training_checkpoint.py. A checkpoint is written to a hidden folder and gets
its own name when everything in it has reached the disk: whoever kills the process, at whatever moment, leaves the
checkpoints that stood there before.
"""

import contextlib
import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ospnext_ms.storage.files import atomic_path, sync
from ospnext_ms.storage.safetensors_io import INDEX_SUFFIX, MAX_SHARD_BYTES, ArrayTensor, plan_shards, write_file
from ospnext_ms.storage.training_checkpoint import (
    FORMAT,
    STATE,
    Checkpoint,
    Piece,
    as_pieces,
    describe_files,
    open_checkpoint,
    problems_of,
    step_folder,
    step_of,
    write_manifest,
)

PART_TIMEOUT_SECONDS = 600
_POLL_SECONDS = 0.05


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they lie, one folder each.
        keep_last: how many of the newest to keep; None keeps all.
        writer, num_writers: which of the writing processes this is. All of them write to one file system; number 0
            writes the manifest when the files of all others are there. A process that writes nothing needs no store to
            save.
        max_shard_bytes: limit of one file.
    """

    def __init__(self, folder: str | os.PathLike, keep_last: int | None = None, writer: int = 0, num_writers: int = 1,
                 max_shard_bytes: float = MAX_SHARD_BYTES):
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last is {keep_last}; it must be at least 1, or null to keep all")
        if not 0 <= writer < num_writers:
            raise ValueError(f"writer is {writer} of {num_writers}; valid: 0 to {num_writers - 1}")
        self.folder = Path(folder)
        self.keep_last = keep_last
        self.writer, self.num_writers = writer, num_writers
        self.max_shard_bytes = max_shard_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=_give_way)
        self._running = None

    def remove_leftovers(self) -> list[str]:
        """Deletes what killed runs left half-written and returns its names.

        To be called by writer 0 before any process saves, and never while another run writes to the folder.
        """
        leftovers = sorted(entry for entry in self.folder.glob(".step_*") if entry.is_dir())
        return [entry.name for entry in leftovers if _delete(entry)]

    def save(self, step: int, groups: Mapping[str, Mapping[str, np.ndarray | Piece]], state: Mapping,
             write_beside: Callable[[Path], Iterable[Path]] | None = None) -> None:
        """Starts to write a checkpoint and returns; waits first for one that is still being written.

        Args:
            groups: {group: {name: array or Piece}}. The arrays belong to the store now: nobody may change them.
            state: JSON values; only writer 0's are written.
            write_beside: called on writer 0 with the checkpoint's folder, where it writes what belongs to it besides
                and returns the files' paths.

        Raises:
            OSError, ValueError, TimeoutError: the previous checkpoint could not be written.
        """
        text = json.dumps(state)
        self.wait()
        groups = {group: self._mine(tensors) for group, tensors in groups.items()}
        self._running = self._thread.submit(self._write, step, groups, text, write_beside)

    def wait(self) -> None:
        """Waits until the last checkpoint is complete; raises what writing it raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def look(self) -> None:
        """Raises what writing the last checkpoint raised, if that is known already; waits for nothing."""
        if self._running is not None and self._running.done():
            self.wait()

    def check_space(self, nbytes: int) -> str:
        """What is said of the space that checkpoints of `nbytes` each need.

        Raises:
            OSError: there is not room for one.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        # A new one is complete before the oldest is removed.
        kept = "all are kept" if self.keep_last is None else f"up to {self.keep_last + 1} of them at a time"
        text = f"a checkpoint takes {nbytes / 1e9:.3g} GB, {kept}; {free / 1e9:.3g} GB are free in {self.folder}"
        if free < nbytes:
            raise OSError(errno.ENOSPC, text, str(self.folder))
        return text

    @property
    def saving(self) -> bool:
        """True while a checkpoint is being written."""
        return self._running is not None and not self._running.done()

    def paths(self) -> list[Path]:
        """The folders that carry a checkpoint's name, oldest first, intact or not."""
        return [path for _, path in self._by_step()]

    def newest(self, report: Callable[[str], object] = print, reader: int = 0, num_readers: int = 1,
               agree: Callable[[bool], bool] = lambda intact: intact) -> Checkpoint | None:
        """Opens the newest intact checkpoint, None where there is no checkpoint at all.

        A damaged or unfinished one is reported, with the files that are wrong, and the one before it is tried.

        Args:
            reader, num_readers: which share of the files this process reads to compare their SHA-256.
            agree: makes one verdict out of all processes' (True where every one says True).

        Raises:
            ValueError: there are checkpoints, but none is intact.
        """
        paths = self.paths()
        for path in reversed(paths):
            problems = problems_of(path, reader, num_readers)
            if agree(not problems):
                return open_checkpoint(path)
            lines = "; ".join(problems) or "another process found it damaged"
            report(f"checkpoint {path} is refused: {lines}")
        if paths:
            raise ValueError(f"none of the {len(paths)} checkpoints in {self.folder} is intact (see above). To start "
                             "anew, give another output_dir or remove them")
        return None

    def _by_step(self) -> list[tuple[int, Path]]:
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted((step, entry) for entry in entries if entry.is_dir() and (step := step_of(entry)) is not None)

    def _mine(self, tensors: Mapping[str, np.ndarray | Piece]) -> dict[str, Piece]:
        """Pieces to write; an empty piece of a tensor that others hold is left out."""
        return {name: piece for name, piece in as_pieces(tensors).items()
                if piece.values.size or self.num_writers == 1}

    def _write(self, step: int, groups: Mapping[str, Mapping[str, Piece]], state: str,
               write_beside: Callable[[Path], Iterable[Path]] | None) -> None:
        final = self.folder / step_folder(step)
        try:
            self._write_files(step, groups, state, write_beside, final)
        except OSError as error:
            if error.errno is None:
                raise
            text = f"the checkpoint {final} could not be written: {error.strerror or error}"
            raise OSError(error.errno, text, error.filename or str(final)) from error

    def _write_files(self, step: int, groups: Mapping[str, Mapping[str, Piece]], state: str,
                     write_beside: Callable[[Path], Iterable[Path]] | None, final: Path) -> None:
        temporary = self.folder / f".{final.name}.saving"
        temporary.mkdir(parents=True, exist_ok=True)
        files, tensors = [], {}
        for group, pieces in groups.items():
            written, group_files = self._write_group(temporary, group, pieces)
            files += group_files
            tensors[group] = {name: {"dtype": ArrayTensor(piece.values).dtype, "shape": list(piece.shape),
                                     "pieces": [[written[name], piece.start]]} for name, piece in pieces.items()}
        if self.writer == 0:
            with atomic_path(temporary / STATE) as path:
                path.write_text(state, encoding="utf-8")
            files.append(STATE)
            if write_beside is not None:
                files += [path.relative_to(temporary).as_posix() for path in write_beside(temporary)]
        mine = {"files": describe_files(temporary, files), "tensors": tensors}
        if self.writer:
            with atomic_path(temporary / f"part-{self.writer:05d}.json") as path:
                path.write_text(json.dumps(mine))
            return
        self._finish(step, mine, temporary, final)

    def _write_group(self, folder: Path, group: str, pieces: Mapping[str, Piece]) -> tuple[dict[str, str], list[str]]:
        """Writes this process's pieces of a group; returns ({name: file}, all files)."""
        sources = {name: ArrayTensor(piece.values) for name, piece in pieces.items()}
        shards = plan_shards(sources, self.max_shard_bytes) if sources else []
        stem = "model" if self.num_writers == 1 else f"part-{self.writer:05d}"
        written = {}
        for i, names in enumerate(shards):
            number = f"-{i + 1:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            file = f"{stem}{number}.safetensors"
            write_file(folder / group / file, {name: sources[name] for name in names}, {"format": "np"})
            written |= dict.fromkeys(names, file)
        files = sorted(set(written.values()))
        if len(shards) > 1 and self.num_writers == 1:
            index = f"model.safetensors{INDEX_SUFFIX}"
            with atomic_path(folder / group / index) as path:
                path.write_text(json.dumps({"weight_map": written}))
            files.append(index)
        return {name: f"{group}/{file}" for name, file in written.items()}, [f"{group}/{file}" for file in files]

    def _finish(self, step: int, mine: dict, temporary: Path, final: Path) -> None:
        """Joins the parts of all processes in a manifest, gives the folder its name and deletes old checkpoints."""
        files, tensors = mine["files"], mine["tensors"]
        for writer in range(1, self.num_writers):
            theirs = _await_part(temporary / f"part-{writer:05d}.json")
            files |= theirs["files"]
            for group, entries in theirs["tensors"].items():
                for name, entry in entries.items():
                    known = tensors.setdefault(group, {}).setdefault(name, entry)
                    if known is not entry:
                        known["pieces"] += entry["pieces"]
        write_manifest(temporary, {"format": FORMAT, "step": step, "files": files, "tensors": tensors})
        if os.path.lexists(final):
            _remove(final)
        temporary.rename(final)
        sync(self.folder)
        if self.keep_last is not None:
            # Later ones are those that were refused when this run resumed: they do not count as kept.
            for path in [path for saved, path in self._by_step() if saved <= step][: -self.keep_last]:
                _remove(path)


def _give_way() -> None:
    """Lowers this thread's priority (Linux counts it per thread), so that hashing does not slow training down."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)


def _await_part(path: Path) -> dict:
    deadline = time.monotonic() + PART_TIMEOUT_SECONDS
    while not path.is_file():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not appear within {PART_TIMEOUT_SECONDS} s: another process failed to "
                               "write its part of the checkpoint, or does not see this folder")
        time.sleep(_POLL_SECONDS)
    return json.loads(path.read_text())


def _remove(path: Path) -> None:
    """Hides the folder first, so that one that is half deleted is never taken for a checkpoint."""
    if path.is_symlink():
        _delete(path)
        return
    hidden = path.with_name(f".{path.name}.removed")
    if _delete(hidden):
        try:
            path.rename(hidden)
        except OSError as error:
            print(f"checkpoint {path} is left where it is: {error}")
            return
        _delete(hidden)


def _delete(path: Path) -> bool:
    """Deletes a folder, or a link to one; whether it is gone. What cannot be deleted is named and stops nothing."""
    try:
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
    except OSError as error:
        print(f"{path} could not be deleted: {error}")
        return False
    return True
