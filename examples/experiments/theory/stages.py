"""Theorem 4: gradients that Lookahead and SLRLA need to reach an optimisation error ε.

Prediction, λ-strongly convex: Lookahead with η_t = 1/(λ t) needs (1/ε)^max(1/(2α), 1) gradients,
SLRLA with stages whose learning rate halves and whose length doubles 1/(λ α ε), whatever α is.
Under the μ-PL condition they need (1/ε)^(1/α) and 1/(μ α ε).

Experiment: Lookahead as in Theorems 2 and 3; SLRLA with the stages of the theorem's proof, in which
stage s halves the error to ε_s = ε_0 / 2^s with the learning rate ε_s / (3 G²), β = λ/6 and
18 G² / (λ α ε_s) gradients; and stagewise SGD, which is that with α = 1 and β = 0. G² is the mean
square of the gradients at the start, and ε_0 the optimisation error there.
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
from experiments.theory.lookaheads import K, decaying
from experiments.theory.problems import Problem, mean, sine
from experiments.theory.strongly_convex import ridge
from slrla_jax import Stage, slrla

TITLE = "Theorem 4, gradients to reach ε"
PREDICTION = (
    "1/ε gradients with SLRLA's stages; with Lookahead (1/ε)^max(1/(2α), 1) where strongly convex, "
    "(1/ε)^(1/α) under the μ-PL condition"
)
ALPHAS = (0.25, 0.5, 1.0)
SAMPLES = 300
LEVELS = 12  # ε at which slopes are fitted.
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
    methods: dict[str, tuple[float, np.ndarray]] = {}
    for alpha in ALPHAS:
        settings = {
            "alpha": np.full((1, 1), alpha),
            "curvature": data.curvatures[None],
            "smoothness": np.full((1, 1), problem.smoothness),
        }
        weights = runs.weights(problem, decaying, settings, data, seen)
        methods[f"Lookahead, α = {alpha:g}"] = predicted(alpha), weights
    for alpha, beta in [*((alpha, curvature / 6) for alpha in ALPHAS), (1.0, 0.0)]:
        make_stages = staged(curvature, error, square, alpha, beta, 5 * steps)
        weights = runs.weights(problem, make_stages, {"none": np.zeros((1, 1))}, data, seen)
        methods[f"SLRLA, α = {alpha:g}" if beta else "Stagewise SGD"] = 1.0, weights
    curves = {
        name: runs.errors(problem, data, weights).optimisation[0]
        for name, (_, weights) in methods.items()
    }
    return {
        "text": f"{problem.text}; n = {SAMPLES}, G² = {square:.3g}, ε_0 = {error:.3g}",
        "steps": seen,
        "curves": {name: fits.interval(np.asarray, values) for name, values in curves.items()},
        "fits": [
            *(
                row
                for name, (exponent, _) in methods.items()
                for row in of_gradients(name, exponent, seen, curves[name])
            ),
        ],
    }


def at_start(problem: Problem, data: runs.DataSets) -> tuple[float, float]:
    """Returns ε_0 and G²: means over the data sets at the start."""
    start = np.asarray(problem.start)

    def of_data_set(samples: Any, minimiser: jax.Array) -> tuple[jax.Array, jax.Array]:
        gradients = jax.vmap(jax.grad(problem.loss), (None, 0))(start, samples)
        error = problem.empirical(samples, start) - problem.empirical(samples, minimiser)
        return error, (gradients**2).sum() / len(gradients)

    found = jax.jit(jax.vmap(of_data_set))(data.samples, data.minimisers)
    return tuple(float(values.mean()) for values in found)


def staged(
    curvature: float, error: float, square: float, alpha: float, beta: float, steps: int
) -> Callable[[Any], optax.GradientTransformation]:
    """Returns what makes SLRLA with the theorem's stages, as many as begin within so many steps."""
    stages, begun = [], 0
    while begun < steps:
        error /= 2
        cycles = int(np.ceil(18 * square / (curvature * alpha * error) / K))
        stages.append(Stage(cycles, error / (3 * square), beta, K, alpha))
        begun += K * cycles
    return lambda _: slrla(optax.sgd, stages)


def of_gradients(name: str, predicted: float, steps: np.ndarray, curve: np.ndarray) -> list:
    """Fits the gradients to reach ε against 1/ε, from a twentieth of the gradients on."""
    falling = curve.mean(-1)
    low, high = falling[-1] * 1.1, np.interp(steps[-1] / 20, steps, falling)
    levels = np.geomspace(high, low, LEVELS)

    def fit(mean: np.ndarray) -> float:
        gradients = np.array([fits.reached(steps, mean, level) for level in levels])
        there = np.isfinite(gradients)
        return fits.exponents([1 / levels[there]], gradients[there])[0]

    return fits.rows([f"gradients against 1/ε, {name}"], [predicted], fits.interval(fit, curve))


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
