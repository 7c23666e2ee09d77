"""Runs with the learning rate 1/(λ t), seen over decades of steps: what Theorems 2 and 3 share."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

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


def run(problem: Problem, n: int, data_sets: int, seen: np.ndarray) -> runs.Errors:
    """Returns the errors with every α, of shape (α, steps seen, data sets)."""
    data = runs.draw(problem, data_sets, n, seen[-1])
    settings = {
        "alpha": ALPHAS[:, None],
        "curvature": data.curvatures[None],
        "smoothness": np.full((1, 1), problem.smoothness),
    }
    return runs.errors(problem, data, runs.weights(problem, decaying, settings, data, seen))


def summary(
    text: str, seen: np.ndarray, errors: runs.Errors, rows: list[fits.Row]
) -> dict[str, Any]:
    """Returns a part: `text`, the errors of `alphas` after `steps`, and `fits`."""
    means = {name: fits.interval(np.asarray, e) for name, e in errors._asdict().items()}
    excess = fits.interval(np.asarray, errors.excess)
    return {"text": text, "alphas": ALPHAS, "steps": seen, **means, "excess": excess, "fits": rows}


def slopes(x: Sequence[float], curves: np.ndarray) -> np.ndarray:
    """Returns the exponent of each curve over x."""
    return np.array([fits.exponents([np.array(x, float)], curve)[0] for curve in curves])


def of_optimisation(
    seen: np.ndarray, errors: runs.Errors, predicted: Sequence[float]
) -> list[fits.Row]:
    """Fits the optimisation error of each α over the last decade of steps."""
    last = seen >= seen[-1] / 10
    what = [f"optimisation error against kT, α = {alpha:g}" for alpha in ALPHAS]
    fit = partial(slopes, seen[last])
    return fits.rows(what, predicted, fits.interval(fit, errors.optimisation[:, last]))


def of_generalisation(
    factor: str, values: Sequence[float], errors: Sequence[runs.Errors], predicted: float
) -> list[fits.Row]:
    """Fits the generalisation error at the end against a factor; none if it has one value."""
    if len(values) == 1:
        return []
    used = np.isin(ALPHAS, AT_END)
    at_end = np.stack([e.generalisation[used, -1] for e in errors], axis=1)
    what = [f"generalisation error against {factor}, α = {alpha:g}" for alpha in AT_END]
    fit = fits.interval(partial(slopes, values), at_end)
    return fits.rows(what, [predicted] * len(what), fit)


def draw(part: dict[str, Any], title: str, path: Path) -> None:
    """Draws the errors over kT, with the predicted slopes, and the excess risk over α."""
    alphas, steps = part["alphas"], np.array(part["steps"])
    of_alpha = {row["what"]: row for row in part["fits"]}
    with figures.picture(path, (13, 4.8), title, dpi=80) as figure:
        optimisation, generalisation, excess = figure.subplots(1, 3)
        for n, (alpha, look) in enumerate(figures.styles(alphas)):
            row = of_alpha[f"optimisation error against kT, α = {alpha:g}"]
            label = f"α = {alpha:g}: {plots.number(row['predicted'], '.2g')}, {plots.number(row['value'])}"
            for axes, name in ((optimisation, "optimisation"), (generalisation, "generalisation")):
                mine = {bound: values[n] for bound, values in part[name].items()}
                plots.curve(axes, steps, mine, **{**look, "label": label})
            last = steps[steps >= steps[-1] / 10]
            end = steps[-1], part["optimisation"]["value"][n][-1]
            plots.slope(optimisation, last, end, row["predicted"])
        optimisation.set(title="Optimisation error", xlabel="kT", xscale="log", yscale="log")
        optimisation.legend(fontsize=7, title="slope: predicted, fitted", title_fontsize=7)
        generalisation.set(title="Generalisation error", xlabel="kT", xscale="log")
        shown = [0, len(steps) // 2, -1]
        looks = figures.styles([f"kT = {steps[n]:,}" for n in shown])
        for n, (_, look) in zip(shown, looks, strict=True):
            mine = {bound: np.array(values)[:, n] for bound, values in part["excess"].items()}
            plots.curve(excess, alphas, mine, **look)
        excess.set(title="Excess risk", xlabel="α", yscale="log")
        excess.legend(fontsize=8)
