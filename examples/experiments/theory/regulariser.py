"""Theorem 4: SLRLA's generalisation error against β, when an optimisation error ε is reached.

Prediction, λ-strongly convex: O(1 / (n (β/α + λ))), as stability has it, so that a regulariser
helps generalisation by what it adds to λ; under the μ-PL condition O(1 / (n (c/α + μ))).

Experiment: SLRLA with every β in stages of equal length, until the optimisation error is that which
the slowest reaches at the end; and the generalisation errors then, and at the end.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments import figures
from experiments.theory import fits, plots, runs
from experiments.theory.lookaheads import K
from experiments.theory.problems import Problem, sine
from experiments.theory.strongly_convex import ridge
from slrla_jax import Stage, slrla

TITLE = "Theorem 4, generalisation against β"
PREDICTION = (
    "at equal optimisation error the generalisation error is 1/(n(β/α + λ)), or with μ for λ"
)
ALPHA, RATE = 0.5, 0.02
BETAS = np.array([0.0, 0.1, 0.3, 1.0, 3.0])
SAMPLES = 300
STAGES = 40

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "ridge": partial(ridge, 0.02, 100),
    "sine": partial(sine, 0.5, np.pi, np.pi + 2, 10, 1.0),
}


def optimizer(cycles: int, setting: dict[str, jax.Array]) -> optax.GradientTransformation:
    """Returns SLRLA with `beta`, in stages of so many cycles."""
    return slrla(optax.sgd, [Stage(cycles, RATE, setting["beta"], K, ALPHA)] * STAGES)


def measure(make_problem: Callable[[], Problem], data_sets: int, steps: int) -> dict[str, Any]:
    """Runs every β.

    Args:
      make_problem: returns the problem.
      data_sets: how many, each with draws of its own.
      steps: of a run, as many as there are in whole stages.

    Returns:
      `text`, the problem; `betas`; `total`, β/α + λ; both errors after `steps`; `level`, the ε that
      all reach, and `generalised`, the generalisation error there; and `fits`.
    """
    problem, cycles = make_problem(), max(steps // (K * STAGES), 1)
    seen = K * cycles * np.arange(1, STAGES + 1)
    data = runs.draw(problem, data_sets, SAMPLES, seen[-1])
    settings = {"beta": BETAS[:, None]}
    make = partial(optimizer, cycles)
    errors = runs.errors(problem, data, runs.weights(problem, make, settings, data, seen))
    level = errors.optimisation[:, -1].mean(-1).max()
    both = np.stack(errors)
    there = partial(at_level, seen, level)
    total = BETAS / ALPHA + data.curvatures.mean()

    def fit(find: Callable[[np.ndarray], np.ndarray], mean: np.ndarray) -> np.ndarray:
        return fits.exponents([total], find(mean))

    return {
        "text": (
            f"{problem.text}; n = {SAMPLES}, α = {ALPHA:g}, η = {RATE:g}, {STAGES} stages of "
            f"{K * cycles:,} gradients"
        ),
        "betas": BETAS,
        "total": total,
        "steps": seen,
        **{name: fits.interval(np.asarray, e) for name, e in errors._asdict().items()},
        "level": level,
        "generalised": fits.interval(there, both),
        "fits": [
            *fits.rows(
                ["generalisation error against β/α + λ, at equal optimisation error"],
                [-1],
                fits.interval(partial(fit, there), both),
            ),
            *fits.rows(
                ["generalisation error against β/α + λ, after equal gradients"],
                [None],
                fits.interval(partial(fit, lambda mean: mean[1, :, -1]), both),
            ),
        ],
    }


def at_level(steps: np.ndarray, level: float, errors: np.ndarray) -> np.ndarray:
    """Returns the generalisation error of each β when its optimisation error is at the level.

    Args:
      steps: of the errors.
      level: of the optimisation error.
      errors: both, of shape (2, β, steps).

    Returns:
      Of shape (β,); that of the last step where the level is not reached.
    """
    when = [np.nan_to_num(fits.reached(steps, curve, level), nan=steps[-1]) for curve in errors[0]]
    return np.array([np.interp(t, steps, curve) for t, curve in zip(when, errors[1], strict=True)])


def draw(part: dict[str, Any], title: str, path: Path) -> None:
    """Draws the generalisation error over the optimisation error, and over β/α + λ."""
    total = np.array(part["total"])
    with figures.picture(path, (11, 4.6), title, dpi=80) as figure:
        path_of, at_equal = figure.subplots(1, 2)
        for n, (label, look) in enumerate(figures.styles([f"β = {b:g}" for b in part["betas"]])):
            x, y = (part[name]["value"][n] for name in ("optimisation", "generalisation"))
            path_of.plot(x, y, linewidth=1.6, **look | {"label": label})
        path_of.axvline(part["level"], color="0.6", linewidth=1)
        path_of.set(xlabel="optimisation error", ylabel="generalisation error", xscale="log")
        path_of.set_title("Along the runs, from right to left", fontsize=9)
        path_of.legend(fontsize=8)
        equal = {bound: np.array(values) for bound, values in part["generalised"].items()}
        plots.curve(at_equal, total, equal, color="#0072B2", marker="o")
        plots.slope(at_equal, total[:3], (total[0], equal["value"][0]), -1)
        what = "generalisation error against β/α + λ, at equal optimisation error"
        at_equal.set_title(f"At the grey line: exponent{plots.fitted(part, what)}", fontsize=9)
        at_equal.set(xlabel="β/α + λ", xscale="log", yscale="log")
        plots.ticks(at_equal, total)
