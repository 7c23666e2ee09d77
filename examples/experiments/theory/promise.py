"""Theorem 4: what it promises at the end of every stage, at the averages and at the slow weights.

Prediction: after stage s the optimisation error is at most ε_s = ε_0 / 2^s. The proof is for the
average of the stage's iterates, those at which gradients were taken, if every stage begins at the
average of the one before.

Experiment: SLRLA with the stages of `theory_stages`, and stagewise SGD, which is that with α = 1
and β = 0. Every stage begins at the slow weights, as Algorithm 3 has it. At its end both are looked
at, the average and the slow weights.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import figures
from experiments.theory import fits, plots, runs, stages
from experiments.theory.stages import ALPHAS, PROBLEMS, SGD, Case
from slrla_jax import Stage, slow_params

__all__ = ["PREDICTION", "PROBLEMS", "TITLE", "draw", "measure"]

TITLE = "Theorem 4, the promise"
PREDICTION = "after stage s the optimisation error is at most ε_s = ε_0/2^s"
SLOW, AVERAGE = WEIGHTS = ("slow weights", "average")


class AveragedState(NamedTuple):
    """State of `averaged`.

    Attributes:
      inner_state: of the optimizer.
      mean: of the iterates of the stage so far.
      steps: that were taken, in all stages.
      count: of those, how many in this stage.
    """

    inner_state: Any
    mean: jax.Array
    steps: jax.Array
    count: jax.Array


def averaged(
    inner: optax.GradientTransformation, starts: Sequence[int]
) -> optax.GradientTransformation:
    """Returns the optimizer, with the mean of a stage's iterates in its state.

    Args:
      inner: the optimizer.
      starts: the steps with which the stages begin.
    """

    def init(params: jax.Array) -> AveragedState:
        return AveragedState(inner.init(params), params, jnp.array(0), jnp.array(0))

    def update(
        updates: jax.Array, state: AveragedState, params: jax.Array
    ) -> tuple[jax.Array, AveragedState]:
        begins = jnp.isin(state.steps, jnp.array(starts))
        count = jnp.where(begins, 1, state.count + 1)
        mean = state.mean + (params - state.mean) / count
        updates, inner_state = inner.update(updates, state.inner_state, params)
        return updates, AveragedState(inner_state, mean, state.steps + 1, count)

    return optax.GradientTransformation(init, update)


def read(state: AveragedState, params: jax.Array) -> dict[str, jax.Array]:
    """Returns the slow weights and the average."""
    return {SLOW: slow_params(state.inner_state, params), AVERAGE: state.mean}


def optimizer(schedule: Sequence[Stage], setting: Any) -> optax.GradientTransformation:
    """Returns SLRLA in these stages, with the averages of its iterates."""
    lengths = [stage.length for stage in schedule]
    return averaged(stages.optimizer(schedule, setting), np.cumsum([0, *lengths[:-1]]))


def run(setup: stages.Setup, schedule: Sequence[Stage]) -> dict[str, Any]:
    """Returns the last steps of the stages, `ends`, and the errors there of both weights.

    Each error is of shape (stages, data sets).
    """
    ends = np.cumsum([stage.length for stage in schedule])
    make, problem, data = partial(optimizer, schedule), setup.problem, setup.data
    found = runs.weights(problem, make, stages.NOTHING, data, ends, read)
    errors = {
        name: runs.errors(problem, data, weights).optimisation[0] for name, weights in found.items()
    }
    return {"ends": ends, "promised": setup.error / 2 ** np.arange(1.0, len(ends) + 1)} | errors


def measure(case: Case, data_sets: int, steps: int) -> dict[str, Any]:
    """Runs SLRLA with every α, and stagewise SGD.

    Args:
      case: the problem.
      data_sets: how many, each with draws of its own.
      steps: a fifth of the gradients of a run.

    Returns:
      `text`, the problem; `runs`, of each method the `ends` of its stages, the ε_s that are
      `promised`, and both optimisation errors; and `fits`.
    """
    setup = stages.set_up(case.make(case.curvatures[0]), data_sets, 5 * steps)
    found = {f"SLRLA, α = {alpha:g}": run(setup, setup.schedule(alpha)) for alpha in ALPHAS}
    found[SGD] = run(setup, setup.schedule(1.0, beta=0.0))
    rows = []
    for name, of_run in found.items():
        rows += [*of_promise(name, of_run), *of_average(name, of_run)]
    at_end = {name: of_run[AVERAGE][-1] for name, of_run in found.items()}
    of_sgd = at_end.pop(SGD)
    for name, errors in at_end.items():
        what = f"error of the average over that of stagewise SGD, last stage, {name}"
        rows += ratio(what, errors, of_sgd)
    what = "error of SGD with η = 1/(λt) over that of stagewise SGD's average, in the end"
    rows += ratio(what, setup.lookahead(1.0)[-1], of_sgd)
    return {
        "text": stages.text_of(setup),
        "runs": {name: summary(of_run) for name, of_run in found.items()},
        "fits": rows,
    }


def of_promise(name: str, of_run: dict[str, Any]) -> list[fits.Row]:
    """Compares the errors with the promise, where they are highest beside it."""
    return [
        row
        for weights in WEIGHTS
        for row in fits.rows(
            [f"highest error over ε_s, {weights}, {name}"],
            [1],
            fits.interval(lambda mean: (mean / of_run["promised"]).max(), of_run[weights]),
        )
    ]


def of_average(name: str, of_run: dict[str, Any]) -> list[fits.Row]:
    """Compares the average with the slow weights, after the first stage and after the last."""
    return [
        row
        for stage, n in (("first", 0), ("last", -1))
        for row in ratio(
            f"error of the average over that of the slow weights, {stage} stage, {name}",
            of_run[AVERAGE][n],
            of_run[SLOW][n],
        )
    ]


def ratio(what: str, mine: np.ndarray, other: np.ndarray) -> list[fits.Row]:
    """Compares errors of which no ratio is predicted; each of shape (data sets,)."""
    estimate = fits.interval(lambda mean: mean[0] / mean[1], np.stack([mine, other]))
    return fits.rows([what], [None], estimate)


def summary(of_run: dict[str, Any]) -> dict[str, Any]:
    """Returns what was found, with means of the errors and their intervals."""
    return of_run | {name: fits.interval(np.asarray, of_run[name]) for name in WEIGHTS}


def draw(part: dict[str, Any], title: str, path: Path) -> None:
    """Draws the errors at the ends of the stages, beside the promise."""
    with figures.picture(path, (14, 4.4), title, dpi=75) as figure:
        panels = figure.subplots(1, len(part["runs"]), sharex=True, sharey=True)
        for axes, (name, of_run) in zip(panels, part["runs"].items(), strict=True):
            for weights, look in figures.styles(WEIGHTS):
                plots.curve(axes, of_run["ends"], of_run[weights], marker="o", ms=4, **look)
            axes.plot(of_run["ends"], of_run["promised"], ":", color="0.2", label="ε_s, promised")
            axes.set(title=name, xlabel="gradients", xscale="log", yscale="log")
        panels[0].set(ylabel="optimisation error")
        panels[0].legend(fontsize=8)
