"""The sync period k, at an equal number of gradients kT.

Prediction, convex (Theorem 1): both errors depend on kT alone. λ-strongly convex (Theorem 2): the
optimisation error has a term T^(−2α), which at equal kT goes as k^(2α), and one of kT alone. Under
the μ-PL condition (Theorem 3) the slower of its terms has the factor α + 2 (1 − α)(k − 1). On the
generalisation errors k has hardly any effect.

Experiment: Lookahead with every α and k. The predicted exponent of k is fitted to the theorem's
expression, with 1 for the constants that O(·) hides; both fits begin at k = 20. In cycles shorter
than that the learning rate 1/(λ t + L), which the theorem has without the L, hardly falls.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import figures
from experiments.theory import convex, fits, plots, polyak_lojasiewicz, runs, strongly_convex
from experiments.theory.lookaheads import constant, decaying
from experiments.theory.problems import Problem

TITLE = "The sync period k"
PREDICTION = (
    "at equal kT the optimisation error has a term k^(2α) if strongly convex, α + 2(1 − α)(k − 1) "
    "under the μ-PL condition, and does not depend on k if convex; the generalisation error hardly "
    "depends on k"
)
ALPHAS = np.array([0.25, 0.5, 0.75, 1.0])
PERIODS = np.array([1, 5, 20, 100, 400])
FITTED = PERIODS >= 20


class Case(NamedTuple):
    """A problem and its theorem.

    Attributes:
      make: returns the problem.
      samples: their number n.
      optimizer: of the theorem.
      bounds: the theorem's optimisation and generalisation error up to factors without k, a
        function of α, all k, kT, and λ or μ.
    """

    make: Callable[[], Problem]
    samples: int
    optimizer: Callable[[dict[str, Any]], Any]
    bounds: Callable[[float, np.ndarray, int, float], tuple[np.ndarray, np.ndarray]]


def bounds_if_convex(
    alpha: float, k: np.ndarray, steps: int, curvature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the errors of Theorem 1."""
    return np.ones(len(k)), np.ones(len(k))


def bounds_if_strongly_convex(
    alpha: float, k: np.ndarray, steps: int, curvature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the errors of Theorem 2."""
    if alpha < 0.5:
        noise = steps ** (-2 * alpha) / (1 - 2 * alpha)
    elif alpha > 0.5:
        noise = 1 / ((2 * alpha - 1) * steps)
    else:
        noise = np.log(steps) / steps
    growth = ((steps + 1) ** alpha - 1) / (steps + k + 2) ** alpha
    return (steps / k) ** (-2 * alpha) + noise / curvature**2, growth


def bounds_under_pl(
    alpha: float, k: np.ndarray, steps: int, curvature: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the errors of Theorem 3."""
    factor = alpha * (alpha + 2 * (1 - alpha) * (k - 1)) / curvature**2
    optimisation = (steps + 1) ** (-2 * alpha) + factor * (steps + 1) ** (1 - 2 * alpha)
    return optimisation, np.ones(len(k))


PROBLEMS = {
    "logistic regression": Case(convex.classes, 200, constant, bounds_if_convex),
    "mean": Case(
        partial(strongly_convex.PROBLEMS["mean"].make, 1.0),
        300,
        decaying,
        bounds_if_strongly_convex,
    ),
    "sine": Case(
        partial(polyak_lojasiewicz.PROBLEMS["sine"].make, 0.5), 100, decaying, bounds_under_pl
    ),
}


def measure(case: Case, data_sets: int, steps: int) -> dict[str, Any]:
    """Runs every α with every k.

    Args:
      case: the problem, and what is predicted.
      data_sets: how many, each with draws of its own.
      steps: kT, of which are taken as many as there are in whole cycles of every k.

    Returns:
      `text`, the problem; both errors over those with k = 1, of shape (α, k), of `alphas` and
      `periods`; `bounds`, what is predicted for them but for a factor; and `fits`.
    """
    problem, steps = case.make(), steps - steps % int(PERIODS[-1])
    data = runs.draw(problem, data_sets, case.samples, steps)
    errors = run(problem, case.optimizer, data, steps)
    rows, bounds = [], {}
    for n, name in enumerate(runs.Errors._fields):
        bounds[name] = [
            case.bounds(alpha, PERIODS, steps, data.curvatures.mean())[n] for alpha in ALPHAS
        ]
        what = [f"{name} error against k, α = {alpha:g}" for alpha in ALPHAS]
        rows += fits.rows(what, slopes(bounds[name]), fits.interval(slopes, errors[n]))
    return {
        "text": f"{problem.text}; n = {case.samples}, kT = {steps:,}",
        "alphas": ALPHAS,
        "periods": PERIODS,
        **{
            name: fits.interval(lambda mean: mean / mean[:, :1], e)
            for name, e in errors._asdict().items()
        },
        "bounds": bounds,
        "fits": rows,
    }


def run(
    problem: Problem, optimizer: Callable[[dict[str, Any]], Any], data: runs.DataSets, steps: int
) -> runs.Errors:
    """Returns the errors after so many steps, each of shape (α, k, data sets)."""
    alphas, periods = np.meshgrid(ALPHAS, PERIODS, indexing="ij")
    settings = {
        "alpha": alphas.reshape(-1, 1),
        "period": periods.reshape(-1, 1),
        "rate": np.full((1, 1), convex.SCALE / steps**0.5),
        "curvature": data.curvatures[None],
        "smoothness": np.full((1, 1), problem.smoothness),
    }
    found = runs.errors(problem, data, runs.weights(problem, optimizer, settings, data, [steps]))
    return runs.Errors(*(values.reshape(*alphas.shape, -1) for values in found))


def slopes(curves: np.ndarray) -> np.ndarray:
    """Returns the exponent over k of the curve of each α."""
    return np.array([fits.exponents([PERIODS[FITTED]], curve[FITTED])[0] for curve in curves])


def draw(part: dict[str, Any], title: str, path: Path) -> None:
    """Draws both errors over k, with the theorem's expressions through the first fitted point."""
    periods, first = np.array(part["periods"]), int(FITTED.argmax())
    with figures.picture(path, (12, 4.6), title, dpi=80) as figure:
        for axes, name in zip(figure.subplots(1, 2), runs.Errors._fields, strict=True):
            for n, (alpha, look) in enumerate(figures.styles(part["alphas"])):
                what = f"{name} error against k, α = {alpha:g}"
                row = next(row for row in part["fits"] if row["what"] == what)
                exponents = (plots.number(row[which], ".2g") for which in ("predicted", "value"))
                mine = {bound: np.array(values)[n] for bound, values in part[name].items()}
                label = f"α = {alpha:g}: {', '.join(exponents)}"
                plots.curve(axes, periods, mine, **look | {"label": label})
                bound = np.array(part["bounds"][name][n])[FITTED]
                line = mine["value"][first] * bound / bound[0]
                axes.plot(periods[FITTED], line, color=look["color"], linestyle=":", linewidth=1.2)
            axes.set(xlabel="k", xscale="log", title=f"{name.capitalize()} error")
            axes.set_ylabel("over that with k = 1")
            axes.legend(
                fontsize=8, title="exponent of k: predicted (dotted), fitted", title_fontsize=8
            )
            if np.max(part[name]["value"]) > 1.5:
                axes.set(yscale="log")
            plots.ticks(axes, periods)
