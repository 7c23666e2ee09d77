"""The minimum of an empirical risk, to machine precision."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

# What the gradient's norm must be at most, where the minimum has no closed form.
TOLERANCE = 1e-10
LIMIT = 1_000  # Iterations of L-BFGS.


def least_squares_solution(
    samples: tuple[np.ndarray, np.ndarray], ridge: float, start: np.ndarray
) -> np.ndarray:
    """Returns the minimiser of ‖Xθ − y‖² / (2n) + λ/2 ‖θ‖².

    Without a regulariser it may not be the only one; it is the nearest to the start, to which
    gradients lead.
    """
    x, y = samples
    if not ridge:
        return start + np.linalg.lstsq(x, y - x @ start, rcond=None)[0]
    n, dimensions = x.shape
    return np.linalg.solve(x.T @ x / n + ridge * np.eye(dimensions), x.T @ y / n)


def minimiser(
    loss: Callable[[jax.Array, tuple[jax.Array, ...]], jax.Array],
    start: np.ndarray,
    samples: tuple[np.ndarray, ...],
) -> np.ndarray:
    """Returns the minimiser of the mean of a convex loss over samples, by L-BFGS.

    Raises:
      ValueError: if the gradient's norm is above `TOLERANCE` in the end, as where classes can be
        separated and there is no regulariser.
    """
    with jax.enable_x64(True):
        params, norm = _lbfgs(loss, jnp.asarray(start), samples, LIMIT)
    if not norm <= TOLERANCE:
        raise ValueError(f"no minimum found: the gradient's norm is {norm:.1e} after L-BFGS")
    return np.asarray(params)


@partial(jax.jit, static_argnames="loss")
def _lbfgs(
    loss: Callable[..., jax.Array], start: jax.Array, samples: tuple[jax.Array, ...], limit: int
) -> tuple[jax.Array, jax.Array]:
    def risk(params: jax.Array) -> jax.Array:
        return jax.vmap(loss, (None, 0))(params, samples).mean()

    tx = optax.lbfgs()

    def step(carry: tuple) -> tuple:
        params, state, value, gradient, count = carry
        updates, state = tx.update(
            gradient, state, params, value=value, grad=gradient, value_fn=risk
        )
        params = optax.apply_updates(params, updates)
        return params, state, *jax.value_and_grad(risk)(params), count + 1

    def goes_on(carry: tuple) -> jax.Array:
        return (jnp.linalg.norm(carry[3]) > TOLERANCE) & (carry[4] < limit)

    begin = start, tx.init(start), *jax.value_and_grad(risk)(start), 0
    params, _, _, gradient, _ = jax.lax.while_loop(goes_on, step, begin)
    return params, jnp.linalg.norm(gradient)
