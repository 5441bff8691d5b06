"""Captioned clips of moving handwritten digits, the training data of the tiny family.

The digits are scikit-learn's `load_digits` (1,797 scans of 8x8 pixels, UCI ML repository), enlarged smoothly. A fixed
fifth of them is held out: no clip used in training shows one; those show the most typical of the others. Everything is
NumPy and OpenCV, so that a data set can be made wherever the package is tested.
"""

import contextlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache

import cv2
import numpy as np

try:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
except ImportError as error:
    raise SystemExit(f"error: the digits come with scikit-learn, which is not here ({error}); it is one of the test "
                     "packages: pip install -r requirements-test.txt") from error

NUM_FRAMES, FRAME_SIZE, FPS = 17, 128, 8
GLYPH_SIZE = 80
PAIR_SPACING = 0.75
SPLITS = ("train", "held_out")
HELD_OUT_SHARE = 0.2
TYPICAL_SCANS = 32

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
TRAVEL = {"slowly": 24, "": 40, "quickly": 56}
SIZES = {"small": 48, "": 56, "large": 64}
BRIGHTNESS = {"dim": 0.46, "": 0.73, "bright": 1.0}
# Paths start or end on this lattice, that of the transformer's tokens: a model of two million parameters then meets
# every digit in a few positions relative to its tokens instead of in all of them.
LATTICE = 16
# Starting processes takes as long as drawing some hundred clips.
PROCESSES_PAY_FROM = 512
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VERBS = ("moving", "drifting")
TWO_DIGITS_SHARE, NUMBER_WORD_SHARE = 0.08, 0.2


@dataclass(frozen=True)
class ClipLabel:
    """What a clip shows; `second_digit` is -1 where there is only one digit. Empty words are not in the caption."""

    digit: int
    direction: str
    speed: str = ""
    size: str = ""
    brightness: str = ""
    second_digit: int = -1


@lru_cache(maxsize=1)
def load_glyphs():
    """{split: (glyphs float32 [n, 80, 80] in [0, 1], digits int64 [n])}, the split being always the same."""
    data = load_digits()
    indices = np.arange(len(data.target))
    train, held_out = train_test_split(indices, test_size=HELD_OUT_SHARE, random_state=0, stratify=data.target)
    glyphs = np.stack([_enlarge(image) for image in data.images])
    return {"train": (glyphs[train], data.target[train]), "held_out": (glyphs[held_out], data.target[held_out])}


def _enlarge(image):
    """An 8x8 scan (0..16) as a smooth 80x80 glyph with a firm edge, one cell of margin on every side."""
    padded = cv2.copyMakeBorder(image.astype(np.float32) / 16, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    large = cv2.resize(padded, (GLYPH_SIZE, GLYPH_SIZE), interpolation=cv2.INTER_CUBIC)
    level = np.clip((large - 0.25) / 0.6, 0, 1)
    return level * level * (3 - 2 * level)


def caption_of(label, rng):
    """A sentence that says what `label` says; the wording (verb, order, digit or word) is drawn from `rng`."""
    digit = _digit_name(label.digit, rng)
    subject = " ".join(word for word in ("a", label.brightness, label.size, digit) if word)
    if label.second_digit >= 0:
        subject += f" and a {_digit_name(label.second_digit, rng)}"
    if label.direction == "still":
        return f"{subject} standing still"
    verb = VERBS[rng.integers(len(VERBS))]
    if label.speed and rng.random() < 0.5:
        return f"{subject} {label.speed} {verb} {label.direction}"
    return " ".join(word for word in (subject, verb, label.direction, label.speed) if word)


def _digit_name(digit, rng):
    return NUMBER_WORDS[digit] if rng.random() < NUMBER_WORD_SHARE else str(digit)


def draw_label(rng, digit=None, direction=None, two_digits=None):
    """A random label; `digit`, `direction` and `two_digits` fix these properties."""
    digit = int(rng.integers(10)) if digit is None else digit
    if direction is None:
        direction = list(DIRECTIONS)[rng.integers(len(DIRECTIONS))]
    elif direction not in DIRECTIONS:
        raise ValueError(f"direction is {direction!r}; valid: {', '.join(DIRECTIONS)}")
    two_digits = rng.random() < TWO_DIGITS_SHARE if two_digits is None else two_digits
    speed = "" if direction == "still" else list(TRAVEL)[rng.integers(len(TRAVEL))]
    size = "small" if two_digits else list(SIZES)[rng.integers(len(SIZES))]
    brightness = list(BRIGHTNESS)[rng.integers(len(BRIGHTNESS))]
    return ClipLabel(digit, direction, speed, size, brightness, int(rng.integers(10)) if two_digits else -1)


def render(label, rng, split="train", draw=lambda glyph: glyph):
    """The clip of a label, uint8 [17, 128, 128, 3], grey; the scan and the place are drawn. `draw` gives a glyph,
    float32 [80, 80], its look."""
    size = SIZES[label.size]
    travel = 0 if label.direction == "still" else TRAVEL[label.speed]
    step_x, step_y = (travel * component for component in DIRECTIONS[label.direction])
    glyphs = [draw(_draw_glyph(label.digit, rng, split))]
    if label.second_digit >= 0:
        glyphs.append(draw(_draw_glyph(label.second_digit, rng, split)))
        size = min(size, (FRAME_SIZE - abs(step_x)) / (1 + PAIR_SPACING))
    start_x = _draw_start(rng, size * (1 + PAIR_SPACING * (len(glyphs) - 1)), step_x)
    start_y = _draw_start(rng, size, step_y)
    clip = np.empty((NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    for frame, progress in zip(clip, np.linspace(0, 1, NUM_FRAMES), strict=True):
        x, y = start_x + progress * step_x, start_y + progress * step_y
        placed = [place_glyph(glyph, size, x + i * PAIR_SPACING * size, y) for i, glyph in enumerate(glyphs)]
        frame[...] = np.rint(255 * BRIGHTNESS[label.brightness] * np.maximum.reduce(placed))[..., None]
    return clip


def _draw_glyph(digit, rng, split):
    glyphs, digits = load_glyphs()[split]
    candidates = typical_scans()[digit] if split == "train" else np.flatnonzero(digits == digit)
    return glyphs[candidates[rng.integers(len(candidates))]]


@lru_cache(maxsize=1)
def typical_scans():
    """{digit: indices of the TYPICAL_SCANS training scans nearest to their mean}: what a small model can learn well."""
    glyphs, digits = load_glyphs()["train"]
    nearest = {}
    for digit in range(10):
        members = np.flatnonzero(digits == digit)
        distances = np.square(glyphs[members] - glyphs[members].mean(0)).sum((1, 2))
        nearest[digit] = members[np.argsort(distances, kind="stable")[:TYPICAL_SCANS]]
    return nearest


def _draw_start(rng, extent, step):
    """First position of a box that stays inside the frame while it travels `step` pixels. Its lowest position on the
    way is a multiple of LATTICE."""
    room = int(FRAME_SIZE - extent - abs(step))
    return LATTICE * int(rng.integers(room // LATTICE + 1)) + max(0, -step)


def place_glyph(glyph, size, x, y):
    """The glyph in a box of `size` pixels whose corner is at (x, y), sub-pixel exact."""
    scale = size / GLYPH_SIZE
    # Pixel centres sit at half-integers: glyph centre g + 0.5 lands on (g + 0.5) * scale.
    matrix = np.array([[scale, 0, x + 0.5 * scale - 0.5], [0, scale, y + 0.5 * scale - 0.5]])
    return cv2.warpAffine(glyph, matrix, (FRAME_SIZE, FRAME_SIZE), flags=cv2.INTER_LINEAR)


def make_clip(rng, split="train", **fixed):
    """A random clip: (uint8 [17, 128, 128, 3], caption, label as a dict).

    `fixed` may hold digit, direction and two_digits (see `draw_label`). `split` is "train" or "held_out": the scans
    that may be shown.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; valid: {', '.join(SPLITS)}")
    label = draw_label(rng, **fixed)
    caption = caption_of(label, rng)
    return render(label, rng, split), caption, asdict(label)


def make_clips(seed, start, count, split="train", workers=4):
    """Clips number `start` ... `start + count - 1` of the endless data set `seed`: (uint8 [count, 17, 128, 128, 3],
    captions, labels). Clip i depends on (seed, i) alone. Many clips are drawn by `workers` processes.
    """
    jobs = [(seed, i, split) for i in range(start, start + count)]
    clips = np.empty((count, NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
    captions, labels = [], []
    with contextlib.ExitStack() as stack:
        drawn = map(_draw_clip, jobs)
        if workers > 1 and count >= PROCESSES_PAY_FROM:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            pool = stack.enter_context(ProcessPoolExecutor(workers, context))
            drawn = pool.map(_draw_clip, jobs, chunksize=8)
        for clip, (grey, caption, label) in zip(clips, drawn, strict=True):
            clip[...] = grey[..., None]
            captions.append(caption)
            labels.append(label)
    return clips, captions, labels


def _draw_clip(job):
    """(one of the three equal colours of the clip, caption, label) of job (seed, i, split)."""
    seed, i, split = job
    clip, caption, label = make_clip(np.random.default_rng([seed, i]), split)
    return np.ascontiguousarray(clip[..., 0]), caption, label


def captions_of_clips(seed, start, count):
    """The captions of `make_clips(seed, start, count)`, without drawing the clips."""
    captions = []
    for i in range(start, start + count):
        rng = np.random.default_rng([seed, i])
        captions.append(caption_of(draw_label(rng), rng))
    return captions
