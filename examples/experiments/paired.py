"""Paired differences: whether one thing is better than another from the same seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.05


class Comparison(NamedTuple):
    """Gains of one thing over another, from the same seeds.

    Attributes:
      mean: of the gains; above 0 if the first is better.
      half_width: of the 95 % interval of the mean, by Student's t.
      p: two-sided, of the hypothesis that the mean is 0.
      wins: from how many seeds the first is better; equal ones count half.
    """

    mean: float
    half_width: float
    p: float
    wins: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean."""
        return self.mean - self.half_width, self.mean + self.half_width


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
