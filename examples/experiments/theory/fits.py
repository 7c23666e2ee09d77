"""Exponents of power laws, with confidence intervals over the data sets."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 400
CONFIDENCE = 0.95


def exponents(factors: Sequence[np.ndarray], values: np.ndarray) -> np.ndarray:
    """Fits values = c · x₁^p₁ · x₂^p₂ ⋯ by least squares of the logarithms.

    Args:
      factors: x₁, x₂, …, each of shape (points,).
      values: of shape (points,), positive.

    Returns:
      p₁, p₂, …; NaN if a value is not positive or not finite.
    """
    if not (np.isfinite(values) & (values > 0)).all():
        return np.full(len(factors), np.nan)
    design = np.stack([*map(np.log, factors), np.zeros(len(values))], axis=1)
    design[:, -1] = 1
    return np.linalg.lstsq(design, np.log(values / values[0]), rcond=None)[0][:-1]


def lowest(settings: np.ndarray, values: np.ndarray) -> float:
    """Returns the setting at which a curve is lowest, by a parabola over log(setting).

    The parabola goes through the lowest point and its neighbours. If the lowest point has but one,
    it is that point.
    """
    n = int(values.argmin())
    if n in (0, len(values) - 1):
        return float(settings[n])
    three = slice(n - 1, n + 2)
    a, b, _ = np.polyfit(np.log(settings[three]), values[three], 2)
    return float(np.exp(-b / (2 * a)))


def reached(steps: np.ndarray, curve: np.ndarray, level: float) -> float:
    """Returns the step from which on a curve is at most `level`, to the end; NaN if it is not.

    Between the steps the curve is a power law.
    """
    above = np.flatnonzero(~(curve <= level))
    if not above.size:
        return float(steps[0])
    n = above[-1] + 1
    if n == len(curve):
        return float("nan")
    x, y = np.log(steps[n - 1 : n + 1]), np.log(curve[n - 1 : n + 1])
    return float(np.exp(np.interp(-np.log(level), -y, x)))


def interval(
    statistic: Callable[[np.ndarray], Any], values: np.ndarray, seed: int = 0
) -> dict[str, Any]:
    """Returns a statistic of the mean over data sets, with its bootstrap interval.

    Args:
      statistic: a function of values without their last axis; returns a number or an array.
      values: the last axis is that of the data sets, which are drawn with replacement.
      seed: of the draws.

    Returns:
      `value`, and `low` and `high`, between which are 95 % of the resampled data sets' statistics.
    """
    rng, count = np.random.default_rng(seed), values.shape[-1]
    resampled = [
        statistic(values[..., rng.integers(count, size=count)].mean(-1)) for _ in range(RESAMPLES)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return {"value": statistic(values.mean(-1)), "low": low, "high": high}


# A row of a table: `what` was measured, what the theorem has `predicted`, and the estimate.
Row = dict[str, Any]


def rows(
    what: Sequence[str], predicted: Sequence[float | None], estimate: dict[str, np.ndarray]
) -> list[Row]:
    """Returns a row for each number of an estimate."""
    names, numbers = estimate.keys(), np.broadcast_arrays(*map(np.atleast_1d, estimate.values()))
    return [
        {"what": of, "predicted": exponent} | dict(zip(names, map(float, one), strict=True))
        for of, exponent, one in zip(what, predicted, zip(*numbers, strict=True), strict=True)
    ]
