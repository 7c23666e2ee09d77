"""Theorem 2: λ-strongly convex problems, with the learning rate 1/(λ t).

Prediction: the optimisation error falls as T^(−2α) + (kT)^(−2α) / (λ² (1 − 2α)) for α < ½, with a
logarithm as log(kT) / (λ² kT) for α = ½, and as T^(−2α) + 1 / (λ² (2α − 1) kT) above. The
generalisation error is O(((Tk + 1)^α − 1) / (nλ ((T + 1)k + 2)^α)), about 1/(nλ).

Experiment: Lookahead with every α, seen over two decades of kT. In a direction of curvature λ a
step of the slow weights multiplies the distance by about 1 − α/t, so that it falls as t^(−α), and
its noise as the theorem says. In `mean` all directions are so. In `ridge` those are in which the
data are flat: most of the distance at the start is along them, whereas the noise is in others. In
`softmax` such a direction is what the weights of all classes have in common.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.theory import rates
from experiments.theory.classification import softmax
from experiments.theory.problems import Problem, least_squares, mean
from experiments.theory.rates import ALPHAS, draw

__all__ = ["PREDICTION", "PROBLEMS", "TITLE", "draw", "measure"]

TITLE = "Theorem 2, strongly convex"
PREDICTION = (
    "optimisation error 1/(kT)^min(2α, 1), with a logarithm at α = ½; generalisation error 1/(nλ)"
)
SAMPLES = (100, 300, 1_000)
MIDDLE = 1  # Of SAMPLES, at which optimisation is looked at.


class Family(NamedTuple):
    """A problem for every λ.

    Attributes:
      make: returns the problem of a λ.
      curvatures: λ, with which generalisation is measured; the first is that of all else.
    """

    make: Callable[[float], Problem]
    curvatures: tuple[float, ...]


def ridge(curvature: float, dimensions: int = 200, flat: int = 8) -> Problem:
    """Least squares as in Theorem 1 with λ/2 ‖θ‖², started at a distance along flat directions."""
    j = np.arange(1, dimensions + 1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], dimensions)
    start = np.append(np.zeros(dimensions), np.full(flat, 2 / flat**0.5))
    text = (
        f"ridge regression with λ = {curvature:g}, x normal with the variances 1/j, θ*_j² = 1/j, "
        f"j ≤ {dimensions}, and {flat} flat directions, along which it starts at a distance of 2; "
        "y = xᵀθ* + ε"
    )
    eigenvalues = np.append(1 / j, np.zeros(flat))
    solution = np.append(signs / j**0.5, np.zeros(flat))
    return least_squares(text, eigenvalues, solution, start, 1.0, curvature)


PROBLEMS = {
    "mean": Family(partial(mean, dimensions=30, distance=3.0, noise=1.0), (1.0,)),
    "ridge": Family(ridge, (0.1, 0.05, 0.2, 0.4)),
    "softmax": Family(
        lambda curvature: softmax(5, 10, curvature, 2.0, 10_000), (0.05, 0.025, 0.1, 0.2)
    ),
}


def measure(family: Family, data_sets: int, steps: int) -> dict[str, Any]:
    """Runs every α, with every n and λ.

    Args:
      family: the problem.
      data_sets: how many, each with draws of its own.
      steps: the largest kT.

    Returns:
      What `rates.summary` does.
    """
    problem = family.make(family.curvatures[0])
    seen = rates.run(problem, SAMPLES[MIDDLE], data_sets, rates.looks(steps))
    end = rates.looks(steps // 4)[-1:]
    by_samples = [rates.run(problem, n, data_sets, end) for n in SAMPLES]
    by_curvature = [
        rates.run(family.make(curvature), SAMPLES[MIDDLE], data_sets, end)
        for curvature in family.curvatures
    ]
    return rates.summary(
        f"{problem.text}; n = {SAMPLES[MIDDLE]}",
        seen,
        [
            *rates.of_optimisation(seen, [-min(2 * alpha, 1) for alpha in ALPHAS]),
            *rates.of_growth(seen, [0] * len(rates.AT_END)),
            *rates.of_end("generalisation", "n", SAMPLES, by_samples, -1),
            *rates.of_end("generalisation", "λ", family.curvatures, by_curvature, -1),
        ],
    )
