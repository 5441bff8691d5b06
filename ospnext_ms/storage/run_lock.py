"""One run in a folder at a time."""

import fcntl
import os
import socket
from pathlib import Path

LOCK = ".run.lock"


class RunLock:
    """Keeps a folder for this process until it ends, however it ends; another process is refused.

    A record lock, which file systems shared by several hosts know too; where there are no locks at all nothing is
    refused.

    Raises:
        ValueError: another process has the folder (says which).
    """

    def __init__(self, folder: str | os.PathLike):
        path = Path(folder) / LOCK
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise ValueError(f"output_dir {folder} is in use by {owner}; wait for that run to end, or give another "
                             "output_dir") from error
        except OSError:
            return
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()
