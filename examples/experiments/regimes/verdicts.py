"""Whether a method is better than another one: paired differences, and what they are worth."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.05
HELPS, ALIKE, HURTS = "helps", "no difference", "hurts"


class Comparison(NamedTuple):
    """Gains of a method over the plain one, from the same seeds.

    Attributes:
      mean: of the gains; above 0 if the method is better.
      half_width: of the 95 % interval of the mean, by Student's t.
      p: two-sided, of the hypothesis that the mean is 0.
      wins: from how many seeds the method is better; equal ones count half.
    """

    mean: float
    half_width: float
    p: float
    wins: float


def compare(gains: Sequence[float]) -> Comparison:
    """Returns mean, interval and p-value of gains from two or more seeds.

    Gains that are all equal have an interval of no width, and p = 0, or 1 if all are 0.
    """
    gains = np.asarray(gains, np.float64)
    mean, error = gains.mean(), stats.sem(gains)
    freedom = len(gains) - 1
    p = 2 * stats.t.sf(abs(mean) / error, freedom) if error > 0 else float(mean == 0)
    half_width = stats.t.ppf(1 - LEVEL / 2, freedom) * error
    wins = (gains > 0).sum() + 0.5 * (gains == 0).sum()
    return Comparison(float(mean), float(half_width), float(p), float(wins))


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
