"""Theorem 4: gradients that Lookahead and SLRLA need to reach an optimisation error ε.

Prediction, λ-strongly convex: Lookahead with η_t = 1/(λ t) needs (1/ε)^max(1/(2α), 1) gradients,
SLRLA with stages whose learning rate halves and whose length doubles 1/(λ α ε), whatever α is.
Under the μ-PL condition they need (1/ε)^(1/α) and 1/(μ α ε).

Experiment: Lookahead as in Theorems 2 and 3; SLRLA with the stages of `theory_stages`, at the slow
weights, whereas the proof is for averages of the iterates; and stagewise SGD, which is that with
α = 1 and β = 0. G² is the mean square of the gradients at the start, and ε_0 the optimisation error
there.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

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

# Each with Lookahead's predicted exponent of 1/ε as a function of α.
PROBLEMS: dict[str, tuple[Callable[[], Problem], Callable[[float], float]]] = {
    "mean": (partial(mean, 1.0, 10, 3.0, 0.5), lambda alpha: max(1 / (2 * alpha), 1)),
    "ridge": (partial(ridge, 0.4, 30), lambda alpha: max(1 / (2 * alpha), 1)),
    "sine": (partial(sine, 0.5, np.pi, np.pi + 2, 2, 0.3), lambda alpha: 1 / alpha),
}


def measure(
    chosen: tuple[Callable[[], Problem], Callable[[float], float]], data_sets: int, steps: int
) -> dict[str, Any]:
    """Runs both methods with every α.

    Args:
      chosen: the problem, and Lookahead's predicted exponent.
      data_sets: how many, each with draws of its own.
      steps: a fifth of the gradients of a run.

    Returns:
      `text`, the problem; `curves`, the optimisation error over `steps` of each method; and `fits`.
    """
    make, predicted = chosen
    problem = make()
    data = runs.draw(problem, data_sets, SAMPLES, 5 * steps)
    error, square = at_start(problem, data)
    seen = K * np.unique(np.rint(np.geomspace(START, 5 * steps, POINTS) / K).astype(int))
    curvature = data.curvatures.mean()
    exponents: dict[str, float] = {}
    curves: dict[str, np.ndarray] = {}

    def run(name: str, exponent: float, make: Any, settings: runs.Settings) -> None:
        weights = runs.weights(problem, make, settings, data, seen)
        exponents[name] = exponent
        curves[name] = runs.errors(problem, data, weights).optimisation[0]

    for alpha in ALPHAS:
        settings = {
            "alpha": np.full((1, 1), alpha),
            "curvature": data.curvatures[None],
            "smoothness": np.full((1, 1), problem.smoothness),
        }
        run(f"Lookahead, α = {alpha:g}", predicted(alpha), decaying, settings)
    for alpha in ALPHAS:
        stages = theory_stages(5 * steps, curvature, square**0.5, alpha, K, error)
        run(f"SLRLA, α = {alpha:g}", 1, partial(optimizer, stages), NOTHING)
    run(SGD, 1, partial(optimizer, [replace(stage, beta=0.0) for stage in stages]), NOTHING)
    return {
        "text": f"{problem.text}; n = {SAMPLES}, G² = {square:.3g}, ε_0 = {error:.3g}",
        "steps": seen,
        "curves": {name: fits.interval(np.asarray, values) for name, values in curves.items()},
        "fits": [
            *(row for name in curves for row in of_gradients(name, exponents, seen, curves)),
            *(
                row
                for alpha in ALPHAS
                for row in of_ratio(f"SLRLA, α = {alpha:g}", 1 / alpha, seen, curves)
            ),
            *of_ratio(f"Lookahead, α = {ALPHAS[-1]:g}", None, seen, curves),
            *(
                row
                for alpha in ALPHAS
                for row in of_proof(alpha, 36 * square / (curvature * alpha), seen, curves)
            ),
        ],
    }


def optimizer(stages: Sequence[Stage], _: Any) -> optax.GradientTransformation:
    """Returns SLRLA around SGD in these stages, the same in every setting."""
    return slrla(optax.sgd, stages)


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
    name: str, exponents: dict[str, float], steps: np.ndarray, curves: dict[str, np.ndarray]
) -> list[fits.Row]:
    """Fits the gradients to reach ε against 1/ε, from a twentieth of the gradients on."""
    curve = curves[name].mean(-1)
    levels = np.geomspace(np.interp(steps[-1] / 20, steps, curve), MARGIN * curve[-1], LEVELS)

    def fit(mean: np.ndarray) -> float:
        gradients = needed(steps, mean, levels)
        there = np.isfinite(gradients)
        return fits.exponents([1 / levels[there]], gradients[there])[0]

    what = f"gradients against 1/ε, {name}"
    return fits.rows([what], [exponents[name]], fits.interval(fit, curves[name]))


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


def of_proof(
    alpha: float, factor: float, steps: np.ndarray, curves: dict[str, np.ndarray]
) -> list[fits.Row]:
    """Compares the gradients 36 G² / (λ α ε) with which ε is proved with those of the run."""
    what = f"36 G²/(λαε) over the gradients measured, SLRLA, α = {alpha:g}"
    ratio = fits.interval(
        lambda curve: factor / (curve[-1] * steps[-1]), curves[f"SLRLA, α = {alpha:g}"]
    )
    return fits.rows([what], [None], ratio)


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
                row = next(row for row in part["fits"] if row["what"].endswith(name))
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
