"""Theorem 1: convex problems, with a constant learning rate η ∝ 1/√(kT).

Prediction: the optimisation error is O(1 / (α √(kT))) and the generalisation error
O(α √(kT) / n), so that the excess risk is lowest at α = O(min(1, √(n / (kT)))).

Experiment: every α with every number of samples n and of gradients kT, on data sets of their own.
Beside it SGD with the learning rate α η, which moves as far in as many gradients.

Least squares with the eigenvalues 1/j, θ*_j² ∝ 1/j and d directions is as hard as the theorem
allows. After the time s = α η kT, gradient flow has the bias Σ λ_j θ*_j² exp(−2 λ_j s) / 2 ≈ 1/(4s)
and the variance σ²/(2n) Σ (1 − exp(−λ_j s))² ≈ ln 2 σ² s/n, as long as s is well below d.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import figures
from experiments.theory import fits, plots, runs
from experiments.theory.classification import logistic
from experiments.theory.lookaheads import K, constant
from experiments.theory.problems import Problem, least_squares

TITLE = "Theorem 1, convex"
PREDICTION = "optimisation error 1/(α√(kT)), generalisation error α√(kT)/n, best α √(n/(kT))"
SCALE = 0.5  # η √(kT)
ALPHAS = np.geomspace(0.03, 1.0, 10)
FRACTIONS = (1 / 16, 1 / 4, 1)  # Of the steps asked for.
# Where s = α η kT is neither so short that only the start is seen nor so long that d is.
TIMES = (2.0, 40.0)


def hard(noise: float, dimensions: int = 500, flat: int = 8) -> Problem:
    """Least squares with eigenvalues 1/j and θ*_j² = 1/j, and with flat directions."""
    j = np.arange(1, dimensions + 1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], dimensions)
    eigenvalues, solution = (
        np.append(1 / j, np.zeros(flat)),
        np.append(signs / j**0.5, np.zeros(flat)),
    )
    text = (
        f"least squares, x normal with the variances 1/j, θ*_j² = 1/j, j ≤ {dimensions}, and "
        f"{flat} flat directions; y = xᵀθ*{' + ε' if noise else ''}"
    )
    return least_squares(text, eigenvalues, solution, np.zeros(dimensions + flat), noise)


def classes(dimensions: int = 20, length: float = 2.0) -> Problem:
    """Logistic regression, likewise with variances 1/j."""
    j = np.arange(1, dimensions + 1)
    solution = np.random.default_rng(0).choice([-1.0, 1.0], dimensions) / j**0.5
    solution *= length / np.linalg.norm(solution)
    return logistic(1 / j, solution, np.zeros(dimensions))


class Case(NamedTuple):
    """A problem and the numbers of samples n with which it is looked at."""

    make: Callable[[], Problem]
    samples: tuple[int, ...]


PROBLEMS = {
    "least squares": Case(partial(hard, 1.0), (200, 800, 3_200)),
    "least squares without noise": Case(partial(hard, 0.0), (200, 800, 3_200)),
    "logistic regression": Case(classes, (100, 200, 800)),
}


def measure(case: Case, data_sets: int, steps: int) -> dict[str, Any]:
    """Runs every α, n and kT.

    Args:
      case: the problem.
      data_sets: how many, each with draws of its own.
      steps: the largest kT.

    Returns:
      `text`, the problem; `cells`, the errors over `alphas` of each n and kT; and `fits`.
    """
    problem = case.make()
    lengths = [K * round(fraction * steps / K) for fraction in FRACTIONS]
    cells, errors = [], []
    for n in case.samples:
        data = runs.draw(problem, data_sets, n, lengths[-1])
        for length in lengths:
            errors.append(run(problem, data, length))
            cells.append({"n": n, "steps": length} | summary(errors[-1]))
    return {
        "text": problem.text,
        "alphas": ALPHAS,
        "cells": cells,
        "fits": [*of_best(cells, errors), *of_errors(cells, errors), *of_sgd(errors)],
    }


def run(problem: Problem, data: runs.DataSets, length: int) -> dict[str, np.ndarray]:
    """Returns the errors after so many steps, each of shape (α, data sets).

    Those of Lookahead by their names; and `sgd`, the excess risk of SGD with the learning rates
    α η, which is Lookahead with α = 1.
    """
    ones = np.ones_like(ALPHAS)
    settings = {
        "alpha": np.append(ALPHAS, ones)[:, None],
        "rate": SCALE / length**0.5 * np.append(ones, ALPHAS)[:, None],
    }
    weights = runs.weights(problem, constant, settings, data, [length])
    found = runs.errors(problem, data, weights)
    mine, sgd = np.split(found.excess[:, 0], 2)
    return {
        "optimisation": found.optimisation[: len(ALPHAS), 0],
        "generalisation": found.generalisation[: len(ALPHAS), 0],
        "excess": mine,
        "sgd": sgd,
    }


def summary(errors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the means of the errors with their intervals, and the best α."""
    means = {name: fits.interval(np.asarray, values) for name, values in errors.items()}
    return means | {"best": fits.interval(best, errors["excess"])}


best = partial(fits.lowest, ALPHAS)


def of_best(cells: list[dict[str, Any]], errors: list[dict[str, np.ndarray]]) -> list[fits.Row]:
    """Fits the best α: where it is inside the range, and where it is at most ½ as well.

    The theorem has min(1, √(n/(kT))), so that towards 1 it bends.
    """
    found = []
    for highest in (ALPHAS[-1] - 1e-9, 0.5):
        used = [i for i, cell in enumerate(cells) if ALPHAS[0] < cell["best"]["value"] <= highest]
        ratio = np.array([cells[i]["n"] / cells[i]["steps"] for i in used])
        if len(set(ratio)) < 3:
            continue
        excess = np.stack([errors[i]["excess"] for i in used])
        estimate = fits.interval(partial(of_curves, ratio), excess)
        where = "inside (0, 1)" if highest > 0.5 else "at most ½"
        what = f"best α against n/(kT), {where} ({len(used)} of {len(cells)})"
        found += fits.rows([what], [0.5], estimate)
    return found


def of_curves(ratio: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """Returns the exponent over n/(kT) of the α at which curves are lowest."""
    return fits.exponents([ratio], np.array([best(curve) for curve in curves]))


def of_errors(cells: list[dict[str, Any]], errors: list[dict[str, np.ndarray]]) -> list[fits.Row]:
    """Fits both errors against α, kT and n together."""
    alpha, steps, n = np.array(
        [(alpha, cell["steps"], cell["n"]) for cell in cells for alpha in ALPHAS]
    ).T
    time = SCALE * alpha * steps**0.5
    used = (TIMES[0] <= time) & (time <= TIMES[1])
    factors = [alpha[used], steps[used], n[used]]
    found = []
    for name, predicted in (("optimisation", (-1, -0.5, 0)), ("generalisation", (1, 0.5, -1))):
        values = np.concatenate([of_cell[name] for of_cell in errors])[used]
        what = [f"{name} error against {factor}" for factor in ("α", "kT", "n")]
        fit = fits.interval(partial(fits.exponents, factors), values)
        found += fits.rows(what, predicted, fit)
    return found


def of_sgd(errors: list[dict[str, np.ndarray]]) -> list[fits.Row]:
    """Compares the lowest excess risk over α with SGD's over as many learning rates α η."""
    both = np.stack([[of_cell["excess"], of_cell["sgd"]] for of_cell in errors])

    def difference(mean: np.ndarray) -> float:
        return np.mean([sgd.min() / mine.min() - 1 for mine, sgd in mean])

    what = ["lowest excess risk of SGD with learning rate α η, over that of Lookahead, minus 1"]
    return fits.rows(what, [0], fits.interval(lambda mean: [difference(mean)], both))


def draw(part: dict[str, Any], title: str, path: Path) -> None:
    """Draws the excess risk over α, the best α over n/(kT), and both errors over α η kT."""
    alphas, cells = np.array(part["alphas"]), part["cells"]
    lengths, samples = (sorted({cell[name] for cell in cells}) for name in ("steps", "n"))
    looks = {n: look for n, (_, look) in zip(samples, figures.styles(samples), strict=True)}
    with figures.picture(path, (13, 4.6), title, dpi=80) as figure:
        curves, bests, errors = figure.subplots(1, 3)
        for cell in cells:
            color = looks[cell["n"]]["color"]
            look = {**looks[cell["n"]], "label": f"n = {cell['n']:,}"}
            if cell["steps"] == lengths[1]:
                plots.curve(curves, alphas, cell["excess"], **look)
                curves.plot(alphas, cell["sgd"]["value"], "x", color=color, ms=5)
            inside = alphas[0] < cell["best"]["value"] < alphas[-1]
            face = color if inside else "white"
            plots.point(bests, cell["n"] / cell["steps"], cell["best"], color=color, mfc=face)
            time = SCALE * alphas * cell["steps"] ** 0.5
            errors.plot(time, cell["optimisation"]["value"], ".-", ms=4, linewidth=1, color=color)
            errors.plot(
                time, cell["generalisation"]["value"], "x--", ms=4, linewidth=1, color=color
            )
        curves.set(xlabel="α", ylabel="excess risk", xscale="log")
        curves.set_title(f"kT = {lengths[1]:,}\n×: SGD with learning rate α η", fontsize=9)
        curves.legend(fontsize=8)
        ratios = np.array(sorted(cell["n"] / cell["steps"] for cell in cells))
        first = min(cells, key=lambda cell: cell["n"] / cell["steps"])
        plots.slope(bests, ratios, (ratios[0], first["best"]["value"]), 0.5)
        fitted = plots.fitted(part, "best α against n/(kT), at most ½") or ": none"
        bests.set(xlabel="n/(kT)", ylabel="best α", xscale="log", yscale="log")
        bests.set_ylim(alphas[0], 1.5 * alphas[-1])
        bests.set_title(f"Best α\nexponent, at most ½{fitted}", fontsize=9)
        many = next(cell for cell in cells if cell["n"] == samples[-1])
        middle = len(alphas) // 2
        time = SCALE * alphas[middle] * many["steps"] ** 0.5
        for name, exponent in (("optimisation", -1), ("generalisation", 1)):
            plots.slope(errors, TIMES, (time, many[name]["value"][middle]), exponent)
        title = "\n".join(
            f"{name.capitalize()} ({mark}): {plots.fitted(part, f'{name} error against ')}"
            for name, mark in (("optimisation", "–"), ("generalisation", "×"))
        )
        errors.set(xlabel="α η kT", xscale="log", yscale="log")
        errors.set_title(title, fontsize=8)
