"""Encodes the same frames several times in memory that was used before: python -m tests.support.dirty_memory FOLDER

What malloc gives out then is full of small numbers, others every time. Prints a SHA-256 of each video on a line.
"""

import ctypes
import hashlib
import sys
from pathlib import Path

import numpy as np

from ospnext_ms.data.video import write_mp4

TIMES, BYTES = 5, 64 << 20
# Of glibc's malloc.h: above which sizes memory comes fresh from the system, and is given back to it.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def main(folder):
    """Writes the video TIMES times."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        libc.mallopt(option, 1 << 30)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:480, :832]
    texture = rng.integers(0, 60, (480, 832, 3))
    frames = [np.clip(100 + 60 * np.sin((x + y + 3 * i) / 17)[..., None] + np.roll(texture, (i, 2 * i), (0, 1)), 0, 255)
              .astype(np.uint8) for i in range(5)]
    path = Path(folder) / "video.mp4"
    for _ in range(TIMES):
        memory = libc.malloc(BYTES)
        numbers = np.ctypeslib.as_array(ctypes.cast(memory, ctypes.POINTER(ctypes.c_int16)), (BYTES // 2,))
        numbers[:] = rng.integers(-256, 256, BYTES // 2, np.int16)
        libc.free(memory)
        write_mp4(path, frames, 8, 18)
        print(hashlib.sha256(path.read_bytes()).hexdigest())


if __name__ == "__main__":
    main(*sys.argv[1:])
