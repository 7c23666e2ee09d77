"""How several players step: one after the other, or with the gradients of a step ahead.

Both are transformations of one tree of params, with an entry for each player, and ask for further
gradients by `grad_fn`, so that a Lookahead around them is around all players. What games were
played with before is here as well: the average of all weights that the players have had.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Weights = dict[str, Any]
GradFn = Callable[..., Weights]


def alternating(
    inner: optax.GradientTransformation, order: Sequence[str]
) -> optax.GradientTransformationExtraArgs:
    """Players that step one after the other, each against the others as they are by then.

    Of two players x and y with the gradients v_x and v_y:

        x ← x + A(v_x(x, y));  y ← y + A(v_y(x, y))

    A Lookahead around it steps back when all have stepped, so that none ever meets the slow
    weights of another in mid-cycle.

    Args:
      inner: A; each player has a state of its own.
      order: the keys of the params, in the order in which the players step.

    Returns:
      A transformation with `update(updates, state, params, *, grad_fn)`, where
      `grad_fn(params, n)` returns the gradients before the n-th further player steps; each needs
      only its own, and a compiled program computes no more.
    """

    def init(params: Weights) -> Weights:
        return {player: inner.init(params[player]) for player in order}

    def update(
        updates: Weights, state: Weights, params: Weights, *, grad_fn: GradFn, **_: Any
    ) -> tuple[Weights, Weights]:
        moved, steps, after = dict(params), {}, {}
        for n, player in enumerate(order):
            gradients = updates if n == 0 else grad_fn(moved, n)
            steps[player], after[player] = inner.update(
                gradients[player], state[player], params[player]
            )
            moved[player] = optax.apply_updates(params[player], steps[player])
        return steps, after

    return optax.GradientTransformationExtraArgs(init, update)


def extragradient(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A step with the gradient at where a step would lead; it takes two gradients.

        w' = w + A(v(w));  w ← w + A(v(w'))

    Korpelevich, The extragradient method for finding saddle points and other problems, 1976.
    """

    def update(
        updates: Weights, state: Any, params: Weights, *, grad_fn: GradFn, **_: Any
    ) -> tuple[Weights, Any]:
        ahead, _ = inner.update(updates, state, params)
        return inner.update(grad_fn(optax.apply_updates(params, ahead), 1), state, params)

    return optax.GradientTransformationExtraArgs(inner.init, update)


class AverageState(NamedTuple):
    """State of the steps, the average of the weights after each, and their number."""

    inner_state: optax.OptState
    average: Weights
    count: jax.Array


def averaging(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """The steps of `inner`, and beside them the mean of the weights after each.

        w ← A(w);  a ← a + (w − a) / t  in step t = 1, 2, …

    Bruck, On the weak convergence of an ergodic iteration for the solution of variational
    inequalities for monotone operators in Hilbert space, 1977.
    """

    def init(params: Weights) -> AverageState:
        return AverageState(inner.init(params), params, jnp.zeros((), jnp.int32))

    def update(
        updates: Weights, state: AverageState, params: Weights | None = None
    ) -> tuple[Weights, AverageState]:
        updates, inner_state = inner.update(updates, state.inner_state, params)
        count = state.count + 1
        moved = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, w: a + (w - a) / count, state.average, moved)
        return updates, AverageState(inner_state, average, count)

    return optax.GradientTransformation(init, update)
