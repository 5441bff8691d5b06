"""Pictures as files."""

import errno
from pathlib import Path

import cv2
import numpy as np
import pytest

from ospnext_ms.data.pictures import write_png


def test_a_picture_is_read_as_it_was_written(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    write_png(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new" / "a.png"))[..., ::-1], image)


def test_a_full_disk_is_told_with_the_path(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*sheet\.png'"):
        write_png(tmp_path / "sheet.png", np.zeros((4, 4, 3), np.uint8))
