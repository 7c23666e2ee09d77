"""How sharp a minimum is: the Hessian's largest eigenvalue, and the worst loss nearby.

    loss = lambda params: loss_fn(params, stats, network, images, labels)[0]
    largest_eigenvalue(loss, params, key)
    worst_loss(loss, params, 0.05, key) - loss(params)

The loss is a mean over some fixed examples, a thousand or so. Each gradient is compiled
once for a loss function (the object, so define it once) and the shapes of the params.
With BatchNorm, whether the loss uses the batch's statistics or the running ones
decides what is measured: with the batch's, scaling a layer's weights changes no loss, yet
it changes both measures. Compare networks of one kind only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

Tree = Any
Loss = Callable[[Tree], jax.Array]


class Eigenpair(NamedTuple):
    """An eigenvalue, how nearly it is one, and its eigenvector.

    Attributes:
      value: λ.
      residual: ‖Hv − λv‖. The Hessian H has an eigenvalue this near to λ.
      vector: v, a tree like the params, of norm 1.
    """

    value: float
    residual: float
    vector: Tree


def largest_eigenvalue(
    loss_fn: Loss, params: Tree, key: jax.Array, iterations: int = 30
) -> Eigenpair:
    """The largest eigenvalue of the loss's Hessian, by the method of Lanczos.

    Each iteration takes a product of the Hessian with a vector, which costs about two
    gradients. The value comes from below. A small residual says that it has come to an
    eigenvalue, in all likelihood to the largest. The basis is kept, `iterations` copies of
    the params in float64, and each new vector made orthogonal to all of it, without which
    rounding would find eigenvalues twice.

    Args:
      loss_fn: the loss of the params, a scalar.
      params: where the Hessian is taken, a tree of real arrays.
      key: random key of the first vector.
      iterations: at most as many products; fewer if the basis is complete before.
    """
    flat, unravel = ravel_pytree(params)

    def times_hessian(vector: np.ndarray) -> np.ndarray:
        product = _hessian_product(loss_fn, params, unravel(jnp.asarray(vector, flat.dtype)))
        return np.asarray(ravel_pytree(product)[0], np.float64)

    vector = np.asarray(jax.random.normal(key, flat.shape), np.float64)
    basis = [vector / np.linalg.norm(vector)]
    diagonal, beside = [], []
    while True:
        product = times_hessian(basis[-1])
        size = np.linalg.norm(product)
        diagonal.append(basis[-1] @ product)
        for _ in range(2):  # Once leaves rounding errors that grow from vector to vector.
            product -= np.array(basis).T @ (np.array(basis) @ product)
        rest = np.linalg.norm(product)
        # Where the basis holds the whole product, what is left of it is rounding.
        whole = rest <= 10 * jnp.finfo(flat.dtype).eps * size
        if whole or len(basis) == min(iterations, flat.size):
            break
        beside.append(rest)
        basis.append(product / rest)
    # The Hessian in this basis: one diagonal, and one beside it on either side.
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    vector = vectors[:, -1] @ np.array(basis)
    residual = np.linalg.norm(times_hessian(vector) - values[-1] * vector)
    return Eigenpair(float(values[-1]), float(residual), unravel(jnp.asarray(vector, flat.dtype)))


def worst_loss(
    loss_fn: Loss, params: Tree, rho: float, key: jax.Array, steps: int = 20, starts: int = 4
) -> float:
    """The largest loss that was found within the distance ρ of the params.

    Ascent along the normalised gradient, projected back to the ball ‖δ‖ ≤ ρ after each
    step, from the params themselves (whose first step is that of SAM) and from random
    points on the sphere. Steps shrink from ρ towards 0. It is a lower bound of the true
    maximum, which more steps and starts come nearer to.

    Args:
      loss_fn: the loss of the params, a scalar.
      params: the middle of the ball, a tree of real arrays.
      rho: ρ, the radius of the ball, over all leaves together.
      key: random key of the starting points.
      steps: steps from each start.
      starts: number of starts.
    """
    if not rho >= 0:
        raise ValueError(f"`rho` must be 0 or more, got {rho}.")
    flat, unravel = ravel_pytree(params)
    worst = -np.inf
    for n in range(starts):
        if n == 0:
            delta = jnp.zeros_like(flat)
        else:
            delta = jax.random.normal(jax.random.fold_in(key, n), flat.shape, flat.dtype)
            delta *= rho / jnp.linalg.norm(delta)
        delta = unravel(delta)
        # The last step goes nowhere: it is there for the loss where the ascent has ended.
        for size in rho * np.append(1 - np.arange(steps) / steps, 0.0):
            loss, delta = _ascent_step(loss_fn, params, delta, float(size), rho)
            worst = np.maximum(worst, loss)  # NaN, if a loss is.
    return float(worst)


@partial(jax.jit, static_argnums=0)
def _hessian_product(loss_fn: Loss, params: Tree, vector: Tree) -> Tree:
    return jax.jvp(jax.grad(loss_fn), (params,), (vector,))[1]


@partial(jax.jit, static_argnums=0)
def _ascent_step(
    loss_fn: Loss, params: Tree, delta: Tree, size: float, rho: float
) -> tuple[jax.Array, Tree]:
    """The loss at params + δ, and the next δ."""
    loss, gradient = jax.value_and_grad(loss_fn)(jax.tree.map(jnp.add, params, delta))
    delta, unravel = ravel_pytree(delta)
    gradient, _ = ravel_pytree(gradient)
    norm = jnp.linalg.norm(gradient)
    delta += jnp.where(norm > 0, size / jnp.where(norm > 0, norm, 1.0), 0.0) * gradient
    norm = jnp.linalg.norm(delta)
    return loss, unravel(delta * jnp.where(norm > rho, rho / jnp.where(norm > 0, norm, 1.0), 1.0))
