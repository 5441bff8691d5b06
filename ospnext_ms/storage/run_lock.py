"""One run in a folder at a time, or several that share it in parts."""

import contextlib
import fcntl
import os
import socket
from pathlib import Path

from ospnext_ms.storage.files import naming

LOCK = ".run.lock"


class RunLock:
    """Keeps a folder for this process until it ends, however it ends, or releases it; another process is refused.

    A record lock, which file systems shared by several hosts know too; where there are no locks at all nothing is
    refused.

    Args:
        part: (i, n). Processes with other parts of a run are let in, those with the whole of it, (0, 1), are not.

    Raises:
        ValueError: another process has the folder (says which).
    """

    def __init__(self, folder: str | os.PathLike, part: tuple[int, int] = (0, 1)):
        self._path = Path(folder) / LOCK
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            self._file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115
            try:
                self._lock(part)
            except (BlockingIOError, PermissionError) as error:
                self._file.seek(0)
                owner = self._file.read().strip() or "another process"
                self._file.close()
                raise ValueError(f"{folder} is in use by {owner}; wait for that run to end, or give another output_dir"
                                 ) from error
            except OSError:
                return
            if self._is_at_its_place():
                break
            # Released, and thereby removed, by another process after it was opened here.
            self._file.close()
        with naming(self._path):
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()

    def _lock(self, part: tuple[int, int]) -> None:
        """The whole of a run has every byte; a part shares the first one and has another to itself."""
        if part == (0, 1):
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            fcntl.lockf(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 0)
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + part[0])

    def _is_at_its_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Lets others into the folder, and removes the lock's file where nobody else has a part."""
        # Somebody else has a part, or nothing can be removed here: a file without a lock on it is in nobody's way.
        with contextlib.suppress(OSError):
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
