"""How the tests compare arrays."""

import numpy as np


def relative_error(actual, expected):
    """Relative Frobenius error ||actual - expected|| / ||expected|| in float64; NaN never passes a bound."""
    actual, expected = (np.asarray(a, dtype=np.float64) for a in (actual, expected))
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    norm = np.linalg.norm(expected)
    return np.linalg.norm(actual - expected) / norm if norm else np.linalg.norm(actual)
