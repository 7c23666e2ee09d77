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
from functools import partial
from typing import Any

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
PROBLEMS: dict[str, tuple[Callable[[], Problem], tuple[int, ...]]] = {
    "sine": (partial(sine, 0.5, np.pi, np.pi + 5, 10, 1.0), (30, 100, 300)),
    "interpolation": (partial(interpolation, 100, 0.5), (10, 20, 40)),
}


def measure(
    chosen: tuple[Callable[[], Problem], tuple[int, ...]], data_sets: int, steps: int
) -> dict[str, Any]:
    """Runs every α, with every n.

    Args:
      chosen: the problem, and numbers of samples; optimisation is looked at in the second.
      data_sets: how many, each with draws of its own.
      steps: the largest kT.

    Returns:
      What `rates.summary` does.
    """
    make, samples = chosen
    problem = make()
    seen = rates.run(problem, samples[1], data_sets, rates.looks(steps))
    end = rates.looks(steps // 4)[-1:]
    by_samples = [rates.run(problem, n, data_sets, end) for n in samples]
    ratio = (1 - 1 / samples[1]) * problem.smoothness / seen.curvature
    gammas = [ratio * alpha for alpha in rates.AT_END]
    first_terms = [f", first term −{2 * alpha:g}" for alpha in ALPHAS]
    return rates.summary(
        f"{problem.text}; n = {samples[1]}",
        seen,
        [
            *rates.of_optimisation(seen, [1 - 2 * alpha for alpha in ALPHAS], first_terms),
            *rates.of_growth(seen, [gamma / (1 + gamma) for gamma in gammas]),
            *rates.of_generalisation("n", samples, by_samples, -1),
        ],
    )
