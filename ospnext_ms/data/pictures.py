"""Pictures of videos: PNG files, thumbnails, contact sheets. An image is uint8 RGB [height, width, 3]."""

import os
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from ospnext_ms.storage.files import atomic_path

THUMBNAIL_WIDTH = 240
_CAPTION_HEIGHT = 22
_GAP = 4


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes a uint8 RGB image [height, width, 3]."""
    is_made, data = cv2.imencode(".png", image[..., ::-1])
    assert is_made, f"OpenCV makes no PNG of {image.shape}"
    # Written here, as OpenCV does not say why it cannot.
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.tobytes())


def read_png(path: str | os.PathLike) -> np.ndarray | None:
    """The uint8 RGB image [height, width, 3] of a file; None where there is none, or something else."""
    image = cv2.imread(os.fspath(path), cv2.IMREAD_COLOR)
    return None if image is None else np.ascontiguousarray(image[..., ::-1])


def evenly_spaced(count: int, columns: int) -> list[int]:
    """Indices of at most `columns` of `count` frames, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(columns, count))})


def thumbnail(frame: np.ndarray, width: int = THUMBNAIL_WIDTH) -> np.ndarray:
    """The frame scaled down to `width` pixels; as it is where it is not wider."""
    if frame.shape[1] <= width:
        return frame
    height = max(round(frame.shape[0] * width / frame.shape[1]), 1)
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def contact_sheet(videos: Sequence[Sequence[np.ndarray]], captions: Sequence[str], columns: int,
                  headings: Sequence[str] = ()) -> np.ndarray:
    """Image [height, width, 3] with one row per video: its caption above `columns` evenly spaced thumbnails.

    `headings` stand above the columns of the first row.
    Captions are cut to the sheet's width; OpenCV's font has ASCII only, other characters become question marks.
    ValueError without videos, or with another number of captions.
    """
    if not videos or len(videos) != len(captions):
        raise ValueError(f"{len(videos)} videos and {len(captions)} captions; expected as many, and at least one")
    rows = [[thumbnail(video[i]) for i in evenly_spaced(len(video), columns)] for video in videos]
    width = max(sum(cell.shape[1] + _GAP for cell in row) for row in rows) + _GAP
    strips = [_headings(rows[0], headings, width)] if headings else []
    for row, caption in zip(rows, captions, strict=True):
        height = max(cell.shape[0] for cell in row)
        strip = np.full((_CAPTION_HEIGHT + height + _GAP, width, 3), 255, np.uint8)
        _write_caption(strip, caption)
        left = _GAP
        for cell in row:
            strip[_CAPTION_HEIGHT : _CAPTION_HEIGHT + cell.shape[0], left : left + cell.shape[1]] = cell
            left += cell.shape[1] + _GAP
        strips.append(strip)
    return np.concatenate(strips)


def _headings(row: Sequence[np.ndarray], headings: Sequence[str], width: int) -> np.ndarray:
    strip, left = np.full((_CAPTION_HEIGHT, width, 3), 255, np.uint8), 0
    for cell, heading in zip(row, headings, strict=True):
        right = left + _GAP + cell.shape[1]
        _write_caption(strip[:, left:right], heading)
        left = right
    return strip


def _write_caption(strip: np.ndarray, caption: str) -> None:
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    text = " ".join(caption.split()).encode("ascii", "replace").decode()
    room = strip.shape[1] - 2 * _GAP
    fits = _longest_fit(text, lambda part: cv2.getTextSize(part, font, scale, 1)[0][0] <= room)
    cv2.putText(strip, fits, (_GAP, _CAPTION_HEIGHT - 7), font, scale, (0, 0, 0), 1, cv2.LINE_AA)


def _longest_fit(text: str, fits: Callable[[str], bool]) -> str:
    if fits(text):
        return text
    return next((text[:n] + "..." for n in range(len(text) - 1, 0, -1) if fits(text[:n] + "...")), "")
