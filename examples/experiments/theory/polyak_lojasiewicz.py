"""Theorem 3: problems that satisfy the μ-PL condition, with the learning rate 1/(μ t).

Prediction: the optimisation error falls as (Tk + 1)^(−2α) plus
α (α + 2 (1 − α)(k − 1)) / μ² · (Tk + 1)^(1 − 2α), of which the second is the slower. The
generalisation error is O(α^(1/(1 + γ)) (Tk)^(γ/(1 + γ)) / (n − 1)), where γ = (1 − 1/n) α L/μ.

Experiment: Lookahead with every α, seen over two decades of kT. `sine` is not convex, and the PL
condition is tight at its minimum, so that the distance falls as t^(−α) there. In `interpolation`
the samples are fitted exactly: there is no noise at the minimum, and in the flattest direction that
has data the squared distance falls as t^(−2α).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments.theory import rates
from experiments.theory.problems import Problem, interpolation, sine
from experiments.theory.rates import ALPHAS, draw

__all__ = ["PREDICTION", "PROBLEMS", "TITLE", "draw", "measure"]

TITLE = "Theorem 3, μ-PL"
PREDICTION = (
    "optimisation error 1/(kT)^(2α) + 1/(kT)^(2α − 1); generalisation error 1/(n − 1), times a "
    "power of kT"
)


class Family(NamedTuple):
    """A problem, for several μ if it is one that can be chosen.

    Attributes:
      make: returns the problem of one of the settings.
      settings: that decide on μ; the first is that of all else.
      samples: n, with which generalisation is measured; the second is that of all else.
    """

    make: Callable[[float], Problem]
    settings: tuple[float, ...]
    samples: tuple[int, ...]


PROBLEMS = {
    "sine": Family(
        lambda bend: sine(bend, np.pi, np.pi + 5, 10, 1.0), (0.5, 0.3, 0.7), (30, 100, 300)
    ),
    "interpolation": Family(lambda noise: interpolation(100, noise), (0.5,), (10, 20, 40)),
}


def measure(family: Family, data_sets: int, steps: int) -> dict[str, Any]:
    """Runs every α, with every n and μ.

    Args:
      family: the problem.
      data_sets: how many, each with draws of its own.
      steps: the largest kT.

    Returns:
      What `rates.summary` does.
    """
    problem, samples = family.make(family.settings[0]), family.samples
    seen = rates.run(problem, samples[1], data_sets, rates.looks(steps))
    end = rates.looks(steps // 4)[-1:]
    by_samples = [rates.run(problem, n, data_sets, end) for n in samples]
    by_curvature = [
        rates.run(family.make(setting), samples[1], data_sets, end) for setting in family.settings
    ]
    curvatures = [of_one.curvature for of_one in by_curvature]
    ratio = (1 - 1 / samples[1]) * problem.smoothness / seen.curvature
    gammas = [ratio * alpha for alpha in rates.AT_END]
    first_terms = [f", first term −{2 * alpha:g}" for alpha in ALPHAS]
    return rates.summary(
        f"{problem.text}; n = {samples[1]}",
        seen,
        [
            *rates.of_optimisation(seen, [1 - 2 * alpha for alpha in ALPHAS], first_terms),
            *rates.of_growth(seen, [gamma / (1 + gamma) for gamma in gammas]),
            *rates.of_end("generalisation", "n", samples, by_samples, -1),
            *rates.of_end("optimisation", "μ", curvatures, by_curvature, -2),
        ],
    )
