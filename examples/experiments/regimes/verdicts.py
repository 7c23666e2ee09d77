"""Whether a method helps: comparisons with the plain one, judged together."""

from collections.abc import Sequence

import numpy as np

from experiments.paired import LEVEL, Comparison

HELPS, ALIKE, HURTS = "helps", "no difference", "hurts"


def holm(p: Sequence[float]) -> np.ndarray:
    """Returns p-values that are adjusted for their number by Holm's method.

    The m p-values in rising order are multiplied by m, m − 1, …, 1; none may be below the one
    before it, or above 1.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted


def verdict(comparison: Comparison, adjusted: float) -> str:
    """Returns the verdict of a comparison, from its adjusted p-value."""
    if adjusted > LEVEL:
        return ALIKE
    return HELPS if comparison.mean > 0 else HURTS
