"""Contact sheets: clips as rows of frames under their captions."""

import cv2
import numpy as np

COLUMNS = (0, 4, 8, 12, 16)
CAPTION_HEIGHT = 18


def contact_sheet(clips, captions):
    """Clips uint8 [N, F, H, W, 3] (RGB) -> one RGB image, a row of five frames a clip, two clips side by side."""
    rows = [_row(clip, caption) for clip, caption in zip(clips, captions, strict=True)]
    if len(rows) % 2:
        rows.append(np.zeros_like(rows[0]))
    gap = np.full((rows[0].shape[0], 8, 3), 60, np.uint8)
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return np.concatenate([np.concatenate((left, gap, right), axis=1) for left, right in pairs])


def _row(clip, caption):
    frames = np.concatenate([clip[min(i, len(clip) - 1)] for i in COLUMNS], axis=1)
    strip = np.full((CAPTION_HEIGHT, frames.shape[1], 3), 40, np.uint8)
    cv2.putText(strip, caption, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate((strip, frames))


def write_sheet(path, clips, captions):
    """Writes a contact sheet as PNG."""
    if not cv2.imwrite(str(path), contact_sheet(clips, captions)[..., ::-1]):
        raise OSError(f"OpenCV could not write {path}")
