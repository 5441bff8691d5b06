"""Tiled encoding and decoding of large frames."""

from fractions import Fraction

import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file

from ospnext_ms.models.sizes import Tiling
from ospnext_ms.models.vae import VAEConfig, WanVAE
from ospnext_ms.models.vae_tiling import apply_tiled, crossfade, tile_spans
from tests.support.compare import relative_error
from tests.support.weights import set_weights


@pytest.fixture(scope="module")
def vae(golden):
    return set_weights(WanVAE(VAEConfig(6)), load_file(golden / "vae_weights.safetensors"))


def smooth(channels, frames, height, width):
    """Low-frequency waves, different in every channel, [1, channels, frames, height, width] in [-1, 1]."""
    c, t, y, x = np.meshgrid(*map(np.arange, (channels, frames, height, width)), indexing="ij")
    waves = np.sin(c + 0.3 * t + 2 * np.pi * y / height) * np.cos(0.5 * c + 2 * np.pi * x / width)
    return waves[None].astype(np.float32)


@pytest.mark.parametrize("length", [8, 64, 65, 100, 129, 200])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 16), (64, 56)])
def test_tiles_cover_the_axis_and_overlap_enough(length, tile, overlap):
    spans = tile_spans(length, tile, overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert {stop - start for start, stop in spans} == {min(tile, length)}
    assert all(after[0] > before[0] for before, after in zip(spans, spans[1:], strict=False))
    assert all(before[1] - after[0] >= overlap for before, after in zip(spans, spans[1:], strict=False))


def test_crossfade_moves_linearly_from_one_to_the_other():
    before, after = Tensor(np.zeros((1, 6), np.float32)), Tensor(np.ones((1, 7), np.float32))
    expected = [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1, 1]
    np.testing.assert_allclose(crossfade(before, after, 2, axis=1).asnumpy()[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(crossfade(before, after, 6, axis=1).asnumpy()[0], [0] * 6 + [1] * 7)
    np.testing.assert_allclose(crossfade(before, after, 0, axis=1).asnumpy()[0, -1], 1)


@pytest.mark.parametrize(("height", "width"), [(24, 40), (37, 29), (16, 50), (7, 9)])
@pytest.mark.parametrize("overlap", [0, 5, 15])
def test_tiles_of_a_pointwise_function_join_without_a_trace(height, width, overlap):
    """Uneven last tiles, overlaps of more than half a tile, frames smaller than a tile."""
    x = np.random.default_rng(0).normal(size=(2, 3, 2, height, width)).astype(np.float32)

    def double_and_enlarge(tile):
        return Tensor((2 * tile.asnumpy()).repeat(3, 3).repeat(3, 4))

    joined = apply_tiled(double_and_enlarge, Tensor(x), 16, overlap, Fraction(3))
    assert relative_error(joined.asnumpy(), double_and_enlarge(Tensor(x)).asnumpy()) < 1e-6


@pytest.mark.parametrize("tile_size", [48, 64])
def test_a_tile_that_covers_the_frame_changes_nothing(vae, tile_size):
    tiling = Tiling(tile_size, 16)
    video, latent = Tensor(smooth(3, 5, 48, 40)), Tensor(smooth(16, 2, 6, 5))
    np.testing.assert_array_equal(vae.encode(video, tiling=tiling).asnumpy(), vae.encode(video).asnumpy())
    np.testing.assert_array_equal(vae.decode(latent, tiling=tiling).asnumpy(), vae.decode(latent).asnumpy())


def unaffected(length, spans, reach):
    """Which pixels along an axis are farther than `reach` from every tile border that is not the frame's."""
    clean = np.ones(length, bool)
    for start, stop in spans:
        clean[start : start + reach * (start > 0)] = False
        clean[stop - reach * (stop < length) : stop] = False
    return clean


@pytest.fixture(scope="module")
def local_vae(golden):
    """The network without what its attention and residual branches add: a border is felt over two latent pixels only.

    With all its random weights it carries a tile's border across the whole frame.
    """
    weights = load_file(golden / "vae_weights.safetensors")
    for name in weights:
        if name.endswith(("residual.6.weight", "residual.6.bias", "proj.weight", "proj.bias")):
            weights[name] = np.zeros_like(weights[name])
    return set_weights(WanVAE(VAEConfig(6)), weights)


def smooth_input(kind, frames, height, width):
    return Tensor(smooth(3, frames, height, width) if kind == "encode" else smooth(16, 2, height // 8, width // 8))


@pytest.mark.parametrize(("kind", "pixel", "reach"), [("encode", 8, 2), ("decode", 1, 16)])
def test_tiled_equals_untiled_away_from_tile_borders(local_vae, kind, pixel, reach):
    """Uneven last tiles in both directions. `pixel`: one of the output in those of video; `reach` in the output's."""
    size, tiling = (88, 152), Tiling(64, 40)
    x, function = smooth_input(kind, 5, *size), getattr(local_vae, kind)
    expected, actual = function(x).asnumpy(), function(x, tiling=tiling).asnumpy()
    clean = []
    for length in size:
        spans = [(start // pixel, stop // pixel) for start, stop in tile_spans(length, 64, 40)]
        clean.append(np.flatnonzero(unaffected(length // pixel, spans, reach)))
    assert min(map(len, clean)) > 1
    rows, columns = np.ix_(*clean)
    assert relative_error(actual[..., rows, columns], expected[..., rows, columns]) < 1e-6
    assert relative_error(actual, expected) > 1e-3, "tile borders left no trace, so nothing was tiled"


@pytest.mark.parametrize("kind", ["encode", "decode"])
def test_cross_fades_halve_the_error_of_hard_seams(local_vae, kind):
    """Smooth input; with an overlap of 2.5 times the reach the borders' errors enter with a fifth of their weight."""
    x, function = smooth_input(kind, 1, 64, 128), getattr(local_vae, kind)
    expected = function(x).asnumpy()
    hard, faded = (relative_error(function(x, tiling=Tiling(64, o)).asnumpy(), expected) for o in (0, 40))
    assert 0 < faded < hard / 2, (faded, hard)


@pytest.mark.parametrize(
    ("tile_size", "overlap", "words"),
    [
        (60, 16, "tile_size is 60; it must be a multiple of 8 and at most 16384; nearest valid: 56 and 64"),
        (64, 10, "tile_overlap is 10; it must be a multiple of 8 from 0 to 56; nearest valid: 8 and 16"),
        (0, 0, "tile_size is 0; it must be a multiple of 8 .*; nearest valid: 8$"),
        (64, 64, "tile_overlap is 64; .* from 0 to 56; nearest valid: 56$"),
        (64, -8, "tile_overlap is -8; .* from 0 to 56; nearest valid: 0$"),
    ],
)
def test_bad_tilings_are_named(tile_size, overlap, words):
    with pytest.raises(ValueError, match=words):
        Tiling(tile_size, overlap)
