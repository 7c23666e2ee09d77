"""Runs on a problem: all settings and data sets in one compiled program, one sample a gradient.

The three errors of a run that ends at θ, of which the theorems bound the expectations:

    optimisation error    F_S(θ) − F_S(θ*_S)
    generalisation error  F(θ) − F_S(θ)
    excess risk           their sum
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.theory.problems import Problem, Samples
from slrla_jax import slow_params

# A setting's numbers by their names, such as α; each of shape (settings, data sets).
Settings = Mapping[str, Any]


class DataSets(NamedTuple):
    """Data sets of a problem, along the first axis of everything.

    Attributes:
      samples: of shape (data sets, n, …).
      draws: which sample each step takes, of shape (data sets, steps).
      minimisers: θ*_S.
      curvatures: λ or μ of each, of shape (data sets,).
    """

    samples: Samples
    draws: np.ndarray
    minimisers: np.ndarray
    curvatures: np.ndarray


def draw(problem: Problem, count: int, n: int, steps: int) -> DataSets:
    """Draws data sets of n samples, and with replacement the sample of each step."""
    samples, draws = [], []
    for number in range(count):
        rng = np.random.default_rng((number, n))
        samples.append(problem.draw(rng, n))
        draws.append(rng.integers(n, size=steps, dtype=np.int32))
    minimisers = np.stack([problem.solve(of_set) for of_set in samples])
    curvatures = np.array([problem.curvature(of_set) for of_set in samples])
    stacked = tuple(map(np.stack, zip(*samples, strict=True)))
    return DataSets(stacked, np.stack(draws), minimisers, curvatures)


def weights(
    problem: Problem,
    make: Callable[[dict[str, jax.Array]], optax.GradientTransformation],
    settings: Settings,
    data: DataSets,
    steps: Sequence[int],
    read: Callable[[Any, jax.Array], Any] = slow_params,
) -> Any:
    """Runs every setting on every data set, from `problem.start`.

    Args:
      problem: the problem.
      make: returns the optimizer of a setting, a Lookahead.
      settings: of each run; arrays that broadcast to (settings, data sets).
      data: of the problem.
      steps: after which to look, in rising order.
      read: returns what is looked at, from the optimizer's state and the fast weights.

    Returns:
      What is read then, by default the slow weights, of shape (settings, steps, data sets, …).
    """
    count = max(len(values) for values in settings.values())
    numbers = {
        name: np.broadcast_to(values, (count, len(data.draws))) for name, values in settings.items()
    }
    ends = np.array(steps, np.int32)
    return _weights(problem, make, read, numbers, data.samples, data.draws, ends)


@partial(jax.jit, static_argnames=("problem", "make", "read"))
def _weights(
    problem: Problem,
    make: Callable[[dict[str, jax.Array]], optax.GradientTransformation],
    read: Callable[[Any, jax.Array], Any],
    settings: dict[str, jax.Array],
    samples: Any,
    draws: jax.Array,
    ends: jax.Array,
) -> Any:
    start = jnp.asarray(problem.start)

    def run(setting: dict[str, jax.Array], samples: Any, draws: jax.Array) -> Any:
        tx = make(setting)

        def step(t: jax.Array, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            params, state = carry
            sample = jax.tree.map(lambda values: values[draws[t]], samples)
            gradient = jax.grad(problem.loss)(params, sample)
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        def until(carry: tuple, interval: jax.Array) -> tuple[tuple, Any]:
            params, state = jax.lax.fori_loop(*interval, step, carry)
            return (params, state), read(state, params)

        intervals = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]]), ends
        return jax.lax.scan(until, (start, tx.init(start)), intervals)[1]

    of_data_sets = jax.vmap(run, in_axes=(0, 0, 0), out_axes=1)
    return jax.vmap(of_data_sets, in_axes=(0, None, None))(settings, samples, draws)


class Errors(NamedTuple):
    """The errors of runs, each of shape (settings, steps, data sets)."""

    optimisation: np.ndarray
    generalisation: np.ndarray

    @property
    def excess(self) -> np.ndarray:
        """The excess risk."""
        return self.optimisation + self.generalisation


def errors(problem: Problem, data: DataSets, params: jax.Array) -> Errors:
    """Returns the errors of weights of shape (settings, steps, data sets, …).

    Weights that do not depend on S have the generalisation error 0 in expectation. That of the mean
    of the same runs on the other data sets is subtracted, which leaves the expectation as it is and
    takes most of the variance away.
    """
    return Errors(*map(np.asarray, _errors(problem, data.samples, data.minimisers, params)))


@partial(jax.jit, static_argnames="problem")
def _errors(
    problem: Problem, samples: Any, minimisers: jax.Array, params: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def of_data_set(one: tuple) -> tuple[jax.Array, jax.Array]:
        samples, minimiser, mine, others = one
        empirical = jax.vmap(jax.vmap(partial(problem.empirical, samples)))
        risk = jax.vmap(jax.vmap(problem.risk))
        optimisation = empirical(mine) - problem.empirical(samples, minimiser)
        chance = risk(others) - empirical(others)
        return optimisation, risk(mine) - empirical(mine) - chance

    count = len(minimisers)
    others = (params.sum(2, keepdims=True) - params) / (count - 1)
    by_set = (jnp.moveaxis(weights, 2, 0) for weights in (params, others))
    found = jax.lax.map(of_data_set, (samples, minimisers, *by_set))
    return tuple(jnp.moveaxis(values, 0, 2) for values in found)
