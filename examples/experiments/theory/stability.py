"""Uniform stability, on which the theorems' generalisation errors rest.

Two data sets differ in one sample, and the same draws are made from both: how far apart do the two
runs end? The generalisation error is at most the largest difference of their losses on any sample.

Prediction: in convex problems with η ∝ 1/√(kT) the distance is O(α √(kT) / n) (Theorem 1), in
λ-strongly convex ones with η = 1/(λ t) it is O(((Tk + 1)^α − 1) / (nλ ((T + 1)k + 2)^α)), about
1/(nλ) in a long run (Theorem 2).

Experiment: Lookahead on pairs of data sets of which the first sample differs, with every α, kT, n
and, of `ridge`, λ.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import figures
from experiments.theory import convex, fits, lookaheads, plots, runs, strongly_convex
from experiments.theory.lookaheads import K
from experiments.theory.problems import Problem

TITLE = "Uniform stability"
PREDICTION = "distance α√(kT)/n in convex problems, 1/(nλ) in λ-strongly convex ones"
ALPHAS = np.array([0.1, 0.2, 0.4, 0.7, 1.0])
SAMPLES = (100, 400, 1_600)
FRACTIONS = (1 / 32, 1 / 8, 1 / 2)  # Of the steps asked for.
FRESH = 1_000  # Samples on which losses are compared.


class Kind(NamedTuple):
    """Problems and what is predicted for them.

    Attributes:
      make: returns the problem of a λ.
      curvatures: values of λ; one for problems that are not strongly convex.
      predicted: the exponents of α, kT, n and, if there are several, λ.
    """

    make: Callable[[float], Problem]
    curvatures: tuple[float, ...]
    predicted: tuple[float, ...]


PROBLEMS = {
    "least squares": Kind(lambda _: convex.hard(1.0), (0.0,), (1, 0.5, -1)),
    "logistic regression": Kind(lambda _: convex.classes(), (0.0,), (1, 0.5, -1)),
    "ridge": Kind(strongly_convex.ridge, (0.1, 0.2, 0.4), (0, 0, -1, -1)),
}


def measure(kind: Kind, data_sets: int, steps: int) -> dict[str, Any]:
    """Runs every α, kT, n and λ on pairs of data sets.

    Args:
      kind: the problems.
      data_sets: how many pairs.
      steps: twice the largest kT.

    Returns:
      `text`, the problem; `points`, each with α, kT, n, λ, `distance` and `difference`; and `fits`.
    """
    lengths = [K * round(fraction * steps / K) for fraction in FRACTIONS]
    where, distances, differences = [], [], []
    for curvature in kind.curvatures:
        problem = kind.make(curvature)
        for n in SAMPLES:
            pair = pairs(problem, data_sets, n, lengths[-1])
            for length in lengths:
                weights = [run(problem, data, length) for data in pair]
                distance, difference = apart(problem, fresh(problem), *weights)
                distances += list(np.asarray(distance))
                differences += list(np.asarray(difference))
                where += [(alpha, length, n, curvature) for alpha in ALPHAS]
    factors = np.array(where).T[: len(kind.predicted)]
    names = ("α", "kT", "n", "λ")[: len(factors)]
    found = []
    for what, values in (("distance", distances), ("largest difference of losses", differences)):
        fit = fits.interval(partial(fits.exponents, factors), np.stack(values))
        found += fits.rows([f"{what} against {name}" for name in names], kind.predicted, fit)
    means = (fits.interval(np.asarray, np.stack(values)) for values in (distances, differences))
    points = dict(zip(("distance", "difference"), means, strict=True))
    text = kind.make(kind.curvatures[0]).text
    return {"text": text, "where": where, **points, "fits": found}


def pairs(problem: Problem, count: int, n: int, steps: int) -> tuple[runs.DataSets, runs.DataSets]:
    """Returns data sets, and the same with another first sample in each."""
    data = runs.draw(problem, count, n, steps)
    others = [problem.draw(np.random.default_rng((seed, n, 1)), 1) for seed in range(count)]
    changed = tuple(
        np.concatenate([np.stack(other), mine[:, 1:]], axis=1)
        for other, mine in zip(zip(*others, strict=True), data.samples, strict=True)
    )
    return data, data._replace(samples=changed)


def run(problem: Problem, data: runs.DataSets, length: int) -> jax.Array:
    """Returns the slow weights of every α after so many steps, of shape (α, data sets, …)."""
    settings = {"alpha": ALPHAS[:, None]}
    if data.curvatures.any():
        make = lookaheads.decaying
        settings["curvature"] = data.curvatures[None]
        settings["smoothness"] = np.full((1, 1), problem.smoothness)
    else:
        make = lookaheads.constant
        settings["rate"] = np.full((1, 1), convex.SCALE / length**0.5)
    return runs.weights(problem, make, settings, data, [length])[:, 0]


def fresh(problem: Problem) -> runs.Samples:
    """Returns samples that no data set has."""
    return problem.draw(np.random.default_rng((0, 0, 2)), FRESH)


@partial(jax.jit, static_argnames="problem")
def apart(
    problem: Problem, samples: Any, one: jax.Array, other: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns distances and largest differences of losses, each of shape (α, data sets)."""

    def difference(one: jax.Array, other: jax.Array) -> jax.Array:
        losses = jax.vmap(problem.loss, (None, 0))
        return jnp.abs(losses(one, samples) - losses(other, samples)).max()

    distance = jnp.sqrt(jnp.sum((one - other) ** 2, axis=tuple(range(2, one.ndim))))
    return distance, jax.vmap(jax.vmap(difference))(one, other)


def draw(part: dict[str, Any], title: str, path: Path) -> None:
    """Draws distance and difference over kT, for each n and the lowest and highest α."""
    alpha, steps, n, curvature = np.array(part["where"]).T
    with figures.picture(path, (12, 4.6), title, dpi=80) as figure:
        panels = figure.subplots(1, 2)
        for axes, name in zip(panels, ("distance", "difference"), strict=True):
            values = {bound: np.array(of) for bound, of in part[name].items()}
            samples = np.unique(n).astype(int)
            for of_n, (label, look) in zip(
                samples, figures.styles([f"n = {of_n:,}" for of_n in samples]), strict=True
            ):
                for of_alpha, dashes in ((alpha.min(), ":"), (alpha.max(), "-")):
                    here = (n == of_n) & (alpha == of_alpha) & (curvature == curvature.min())
                    mine = {bound: of[here] for bound, of in values.items()}
                    shown = look | {"linestyle": dashes, "label": f"{label}, α = {of_alpha:g}"}
                    plots.curve(axes, steps[here], mine, **shown)
            axes.set(xlabel="kT", xscale="log", yscale="log")
            plots.ticks(axes, np.unique(steps))
        distance, difference = panels
        for axes, what in ((distance, "distance"), (difference, "largest difference of losses")):
            exponents = plots.fitted(part, f"{what} against ")
            axes.set_title(f"{what.capitalize()}\n{exponents}", fontsize=9)
        figure.legend(*distance.get_legend_handles_labels(), fontsize=8, loc="outside right center")
