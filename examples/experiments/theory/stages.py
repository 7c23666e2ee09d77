"""Theorem 4: gradients that Lookahead and SLRLA need to reach an optimisation error ε.

Prediction, λ-strongly convex: Lookahead with η_t = 1/(λ t) needs (1/ε)^max(1/(2α), 1) gradients,
SLRLA with stages whose learning rate halves and whose length doubles 1/(λ α ε), whatever α is.
Under the μ-PL condition they need (1/ε)^(1/α) and 1/(μ α ε).

Experiment: Lookahead as in Theorems 2 and 3; SLRLA with the stages of `theory_stages`, at the slow
weights, whereas the proof is for averages of the iterates, at which promise.py looks; and stagewise
SGD, which is that with α = 1 and β = 0. G² is the mean square of the gradients at the start, and
ε_0 the optimisation error there.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from experiments import figures
from experiments.theory import fits, plots, runs
from experiments.theory.lookaheads import K, decaying
from experiments.theory.problems import Problem, mean, sine
from experiments.theory.strongly_convex import ridge
from slrla_jax import Stage, slrla, theory_stages

TITLE = "Theorem 4, gradients to reach ε"
PREDICTION = (
    "SLRLA's stages need 1/(λαε) gradients; Lookahead with 1/(λt) needs (1/ε)^max(1/(2α), 1), or "
    "(1/ε)^(1/α) under the μ-PL condition"
)
ALPHAS = (0.25, 0.5, 1.0)
SAMPLES = 300
LEVELS = 12  # ε at which gradients are counted.
MARGIN = 1.1  # The lowest ε, over the error at the end.
SGD = "Stagewise SGD"
NOTHING = {"none": np.zeros((1, 1))}  # A single setting.
POINTS = 60  # Of a curve.
START = 10  # Gradients before which no curve is seen.


class Case(NamedTuple):
    """A problem for every λ or μ.

    Attributes:
      make: returns the problem of a λ.
      curvatures: values of λ, of which the first is looked at.
      predicted: Lookahead's exponent of 1/ε, a function of α.
    """

    make: Callable[[float], Problem]
    curvatures: tuple[float, ...]
    predicted: Callable[[float], float]


def strongly_convex(alpha: float) -> float:
    """Returns Lookahead's exponent of 1/ε."""
    return max(1 / (2 * alpha), 1)


PROBLEMS = {
    "mean": Case(partial(mean, dimensions=10, distance=3.0, noise=0.5), (1.0,), strongly_convex),
    "ridge": Case(partial(ridge, dimensions=30), (0.4, 0.2, 0.1), strongly_convex),
    "sine": Case(
        lambda mu: sine(1 - mu**0.5, np.pi, np.pi + 2, 2, 0.3), (0.25,), lambda alpha: 1 / alpha
    ),
}


class Setup(NamedTuple):
    """A problem with its data sets, and when to look.

    Attributes:
      problem: the problem.
      data: its data sets.
      seen: the steps after which to look.
      curvature: λ or μ.
      error: ε_0.
      square: G².
    """

    problem: Problem
    data: runs.DataSets
    seen: np.ndarray
    curvature: float
    error: float
    square: float

    def lookahead(self, alpha: float) -> np.ndarray:
        """Returns Lookahead's optimisation error, of shape (steps seen, data sets)."""
        settings = {
            "alpha": np.full((1, 1), alpha),
            "curvature": self.data.curvatures[None],
            "smoothness": np.full((1, 1), self.problem.smoothness),
        }
        return self.run(decaying, settings)

    def slrla(self, alpha: float, **changes: float) -> np.ndarray:
        """Returns SLRLA's, with changes to every stage."""
        return self.run(partial(optimizer, self.schedule(alpha, **changes)), NOTHING)

    def schedule(self, alpha: float, **changes: float) -> list[Stage]:
        """Returns the theorem's stages, with changes to every one."""
        bound, steps = self.square**0.5, int(self.seen[-1])
        stages = theory_stages(steps, self.curvature, bound, alpha, K, self.error)
        return [replace(stage, **changes) for stage in stages]

    def run(self, make: Any, settings: runs.Settings) -> np.ndarray:
        """Returns the optimisation error of the only setting."""
        weights = runs.weights(self.problem, make, settings, self.data, self.seen)
        return runs.errors(self.problem, self.data, weights).optimisation[0]


def optimizer(stages: Sequence[Stage], _: Any) -> optax.GradientTransformation:
    """Returns SLRLA around SGD in these stages, the same in every setting."""
    return slrla(optax.sgd, stages)


def set_up(problem: Problem, data_sets: int, steps: int) -> Setup:
    """Draws data sets, and looks at the start."""
    data = runs.draw(problem, data_sets, SAMPLES, steps)
    seen = K * np.unique(np.rint(np.geomspace(START, steps, POINTS) / K).astype(int))
    return Setup(problem, data, seen, data.curvatures.mean(), *at_start(problem, data))


def measure(case: Case, data_sets: int, steps: int) -> dict[str, Any]:
    """Runs both methods with every α, and with α = 1 for every λ.

    Args:
      case: the problem, and what is predicted.
      data_sets: how many, each with draws of its own.
      steps: a fifth of the gradients of a run.

    Returns:
      `text`, the problem; `curves`, the optimisation error over `steps` of each method; and `fits`.
    """
    setups = [set_up(case.make(c), data_sets, 5 * steps) for c in case.curvatures]
    setup = setups[0]
    curves = {f"Lookahead, α = {alpha:g}": setup.lookahead(alpha) for alpha in ALPHAS}
    exponents = [*map(case.predicted, ALPHAS), *(1 for _ in ALPHAS), 1]
    curves |= {f"SLRLA, α = {alpha:g}": setup.slrla(alpha) for alpha in ALPHAS}
    curves[SGD] = setup.slrla(1.0, beta=0.0)
    rows = []
    for name, exponent in zip(curves, exponents, strict=True):
        rows += of_gradients(name, exponent, setup.seen, curves[name])
    for alpha in ALPHAS:
        rows += of_ratio(f"SLRLA, α = {alpha:g}", 1 / alpha, setup.seen, curves)
    rows += of_ratio("Lookahead, α = 1", None, setup.seen, curves)
    for alpha in ALPHAS:
        rows += of_proof(setup, alpha, curves[f"SLRLA, α = {alpha:g}"])
    if len(setups) > 1:
        for name, predicted in (("lookahead", -2), ("slrla", -1)):
            rows += of_curvature(name, predicted, setups)
    return {
        "text": text_of(setup),
        "steps": setup.seen,
        "curves": {name: fits.interval(np.asarray, values) for name, values in curves.items()},
        "fits": rows,
    }


def text_of(setup: Setup) -> str:
    """Returns what the problem is, with the numbers of its start."""
    start = f"G² = {setup.square:.3g}, ε_0 = {setup.error:.3g}"
    return f"{setup.problem.text}; n = {SAMPLES}, {start}"


def at_start(problem: Problem, data: runs.DataSets) -> tuple[float, float]:
    """Returns ε_0 and G²: means over the data sets at the start."""
    start = np.asarray(problem.start)

    def of_data_set(samples: Any, minimiser: jax.Array) -> tuple[jax.Array, jax.Array]:
        gradients = jax.vmap(jax.grad(problem.loss), (None, 0))(start, samples)
        error = problem.empirical(samples, start) - problem.empirical(samples, minimiser)
        return error, (gradients**2).sum() / len(gradients)

    found = jax.jit(jax.vmap(of_data_set))(data.samples, data.minimisers)
    return tuple(float(values.mean()) for values in found)


def of_gradients(
    name: str, predicted: float, steps: np.ndarray, errors: np.ndarray
) -> list[fits.Row]:
    """Fits the gradients to reach ε against 1/ε, from a twentieth of the gradients on."""
    curve = errors.mean(-1)
    levels = np.geomspace(np.interp(steps[-1] / 20, steps, curve), MARGIN * curve[-1], LEVELS)

    def fit(mean: np.ndarray) -> float:
        gradients = needed(steps, mean, levels)
        there = np.isfinite(gradients)
        return fits.exponents([1 / levels[there]], gradients[there])[0]

    what = f"gradients against 1/ε, {name}"
    return fits.rows([what], [predicted], fits.interval(fit, errors))


def of_ratio(
    name: str, predicted: float | None, steps: np.ndarray, curves: dict[str, np.ndarray]
) -> list[fits.Row]:
    """Compares the gradients to reach ε with those of stagewise SGD, where ε is near the end."""
    both = np.stack([curves[name], curves[SGD]])
    lowest = MARGIN * both.mean(-1)[:, -1].max()
    levels = np.geomspace(4 * lowest, lowest, LEVELS)

    def ratio(mean: np.ndarray) -> float:
        mine, sgd = (needed(steps, curve, levels) for curve in mean)
        return np.exp(np.nanmean(np.log(mine / sgd)))

    what = f"gradients to reach ε, {name}, over those of stagewise SGD"
    return fits.rows([what], [predicted], fits.interval(ratio, both))


def of_proof(setup: Setup, alpha: float, errors: np.ndarray) -> list[fits.Row]:
    """Compares the gradients 36 G² / (λ α ε) with which ε is proved with those of the run."""
    factor = 36 * setup.square / (setup.curvature * alpha * setup.seen[-1])
    what = f"36 G²/(λαε) over the gradients measured, SLRLA, α = {alpha:g}"
    return fits.rows([what], [None], fits.interval(lambda curve: factor / curve[-1], errors))


def of_curvature(method: str, predicted: float, setups: Sequence[Setup]) -> list[fits.Row]:
    """Fits the gradients to reach ε against λ, with α = 1."""
    curves = np.stack([getattr(setup, method)(1.0) for setup in setups])
    lowest = MARGIN * curves.mean(-1)[:, -1].max()
    levels = np.geomspace(4 * lowest, lowest, LEVELS)
    values = np.array([setup.curvature for setup in setups])

    def fit(mean: np.ndarray) -> float:
        gradients = [needed(setups[0].seen, curve, levels) for curve in mean]
        return fits.exponents([values], np.exp(np.nanmean(np.log(gradients), axis=1)))[0]

    what = {"lookahead": "Lookahead", "slrla": "SLRLA"}[method]
    return fits.rows(
        [f"gradients to reach ε against λ, {what}, α = 1"], [predicted], fits.interval(fit, curves)
    )


def needed(steps: np.ndarray, curve: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Returns the gradients to reach each level; NaN for those that are not reached."""
    return np.array([fits.reached(steps, curve, level) for level in levels])


def draw(part: dict[str, Any], title: str, path: Path) -> None:
    """Draws the optimisation error over the gradients, of both methods."""
    steps = np.array(part["steps"])
    with figures.picture(path, (11, 4.8), title, dpi=80) as figure:
        lookahead, staged = figure.subplots(1, 2, sharey=True)
        for axes, chosen in ((lookahead, True), (staged, False)):
            mine = [name for name in part["curves"] if name.startswith("Lookahead") is chosen]
            for name, look in figures.styles(mine):
                row = next(
                    row for row in part["fits"] if row["what"] == f"gradients against 1/ε, {name}"
                )
                label = (
                    f"{name}: {plots.number(row['predicted'], '.2g')}, {plots.number(row['value'])}"
                )
                plots.curve(axes, steps, part["curves"][name], **look | {"label": label})
                end = steps[-1], part["curves"][name]["value"][-1]
                plots.slope(axes, steps[-1] / np.array([20, 1]), end, -1 / row["predicted"])
            axes.set(xlabel="gradients", xscale="log", yscale="log")
            axes.legend(fontsize=8, title="exponent of 1/ε: predicted, fitted", title_fontsize=8)
        lookahead.set(title="Lookahead, η = 1/(λ t)", ylabel="optimisation error")
        staged.set(title="SLRLA in the theorem's stages")
