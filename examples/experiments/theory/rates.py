"""Runs with the learning rate 1/(λ t), seen over decades of steps: what Theorems 2 and 3 share."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import figures
from experiments.theory import fits, plots, runs
from experiments.theory.lookaheads import K, decaying
from experiments.theory.problems import Problem

ALPHAS = np.array([0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0])
AT_END = (0.5, 1.0)  # α with which generalisation is fitted.
DECADES = 2  # How many are seen; the last is fitted.


def looks(steps: int) -> np.ndarray:
    """Returns when to look: at syncs, in equal ratios over the last decades of a run."""
    first = steps / 10**DECADES
    return K * np.unique(np.rint(np.geomspace(first, steps, 10 * DECADES + 1) / K).astype(int))


class Seen(NamedTuple):
    """What was seen of the runs on a problem.

    Attributes:
      steps: after which.
      errors: of Lookahead, each of shape (α, steps, data sets).
      sgd: of SGD with the learning rates α η_t, likewise.
      curvature: λ or μ, the mean over the data sets.
    """

    steps: np.ndarray
    errors: runs.Errors
    sgd: runs.Errors
    curvature: float


def run(problem: Problem, n: int, data_sets: int, steps: np.ndarray) -> Seen:
    """Runs Lookahead with every α, and SGD, which is that with α = 1, with every α η_t."""
    data, ones = runs.draw(problem, data_sets, n, steps[-1]), np.ones_like(ALPHAS)
    slower = np.append(ones, 1 / ALPHAS)[:, None]
    settings = {
        "alpha": np.append(ALPHAS, ones)[:, None],
        "curvature": slower * data.curvatures,
        "smoothness": slower * problem.smoothness,
    }
    found = runs.errors(problem, data, runs.weights(problem, decaying, settings, data, steps))
    mine, sgd = zip(*(np.split(values, 2) for values in found), strict=True)
    return Seen(steps, runs.Errors(*mine), runs.Errors(*sgd), data.curvatures.mean())


def summary(text: str, seen: Seen, rows: list[fits.Row]) -> dict[str, Any]:
    """Returns a part: `text`, the errors of `alphas` after `steps`, and `fits`."""
    means = {name: fits.interval(np.asarray, e) for name, e in seen.errors._asdict().items()}
    excess = fits.interval(np.asarray, seen.errors.excess)
    rows = [*rows, *of_best(seen), *of_sgd(seen)]
    return {
        "text": text,
        "alphas": ALPHAS,
        "steps": seen.steps,
        **means,
        "excess": excess,
        "fits": rows,
    }


def slopes(x: Sequence[float], curves: np.ndarray) -> np.ndarray:
    """Returns the exponent of each curve over x."""
    return np.array([fits.exponents([np.array(x, float)], curve)[0] for curve in curves])


def of_optimisation(
    seen: Seen, predicted: Sequence[float], notes: Sequence[str] = ("",) * len(ALPHAS)
) -> list[fits.Row]:
    """Fits the optimisation error of each α over the last decade of steps."""
    last = seen.steps >= seen.steps[-1] / 10
    what = [
        f"optimisation error against kT, α = {alpha:g}{note}"
        for alpha, note in zip(ALPHAS, notes, strict=True)
    ]
    fit = fits.interval(partial(slopes, seen.steps[last]), seen.errors.optimisation[:, last])
    return fits.rows(what, predicted, fit)


def of_end(
    error: str, factor: str, values: Sequence[float], found: Sequence[Seen], predicted: float
) -> list[fits.Row]:
    """Fits one of `runs.Errors` at the end against a factor; none if it has one value."""
    if len(values) == 1:
        return []
    used = np.isin(ALPHAS, AT_END)
    at_end = np.stack([getattr(seen.errors, error)[used, -1] for seen in found], axis=1)
    what = [f"{error} error against {factor}, α = {alpha:g}" for alpha in AT_END]
    fit = fits.interval(partial(slopes, values), at_end)
    return fits.rows(what, [predicted] * len(what), fit)


def of_growth(seen: Seen, predicted: Sequence[float]) -> list[fits.Row]:
    """Fits the generalisation error over the last decade of steps."""
    last, used = seen.steps >= seen.steps[-1] / 10, np.isin(ALPHAS, AT_END)
    what = [f"generalisation error against kT, α = {alpha:g}" for alpha in AT_END]
    curves = seen.errors.generalisation[used][:, last]
    return fits.rows(what, predicted, fits.interval(partial(slopes, seen.steps[last]), curves))


def shown(count: int) -> list[int]:
    """Returns which of so many steps are the first, the middle and the last."""
    return [0, count // 2, count - 1]


def of_best(seen: Seen) -> list[fits.Row]:
    """Finds the α with the lowest excess risk early and late, of which no number is predicted."""
    return [
        row
        for n in shown(len(seen.steps))
        for row in fits.rows(
            [f"best α after {seen.steps[n]:,} gradients"],
            [None],
            fits.interval(partial(fits.lowest, ALPHAS), seen.errors.excess[:, n]),
        )
    ]


def of_sgd(seen: Seen) -> list[fits.Row]:
    """Compares the excess risk of SGD with the learning rate α η_t, at the end."""
    both = np.stack([seen.errors.excess[:, -1], seen.sgd.excess[:, -1]])
    difference = fits.interval(lambda mean: np.mean(mean[1] / mean[0] - 1), both)
    what = "excess risk of SGD with learning rate α η_t, over that of Lookahead with α, minus 1"
    return fits.rows([what], [0], difference)


def draw(part: dict[str, Any], title: str, path: Path) -> None:
    """Draws the errors over kT, with the predicted slopes, and the excess risk over α.

    The first fits of the part are those of the optimisation error.
    """
    alphas, steps = part["alphas"], np.array(part["steps"])
    with figures.picture(path, (14, 4.6), title, dpi=75) as figure:
        optimisation, generalisation, excess = figure.subplots(1, 3)
        for n, (alpha, look) in enumerate(figures.styles(alphas)):
            row = part["fits"][n]
            exponents = plots.number(row["predicted"], "g"), plots.number(row["value"])
            label = f"α = {alpha:g}: {', '.join(exponents)}"
            for axes, name in ((optimisation, "optimisation"), (generalisation, "generalisation")):
                mine = {bound: values[n] for bound, values in part[name].items()}
                plots.curve(axes, steps, mine, **{**look, "label": label})
            last = steps[steps >= steps[-1] / 10]
            end = steps[-1], part["optimisation"]["value"][n][-1]
            plots.slope(optimisation, last, end, row["predicted"])
        optimisation.set(title="Optimisation error", xlabel="kT", xscale="log", yscale="log")
        handles = optimisation.get_legend_handles_labels()
        heading = "exponent over kT:\npredicted, fitted"
        figure.legend(*handles, loc="outside right center", title=heading, fontsize=8)
        generalisation.set(title="Generalisation error", xlabel="kT", xscale="log")
        looks = figures.styles([f"kT = {steps[n]:,}" for n in shown(len(steps))])
        for n, (_, look) in zip(shown(len(steps)), looks, strict=True):
            mine = {bound: np.array(values)[:, n] for bound, values in part["excess"].items()}
            plots.curve(excess, alphas, mine, **look)
        excess.set(title="Excess risk", xlabel="α", yscale="log")
        excess.legend(fontsize=8)
