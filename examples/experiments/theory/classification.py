"""Problems of classification: logistic regression, and softmax regression with a regulariser."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.theory.problems import Problem, Samples, Traced
from experiments.theory.solve import minimiser

# Of Gauss–Hermite quadrature: the mean of f(u) over a normal u is about WEIGHTS @ f(NODES).
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def logistic(eigenvalues: np.ndarray, solution: np.ndarray, start: np.ndarray) -> Problem:
    """ℓ = log(1 + exp(xᵀθ)) − y xᵀθ, where y is 1 with probability 1 / (1 + exp(−xᵀθ*)), else 0.

    xᵀθ and xᵀθ* are normal together, with variances v and v* and covariance c. By Stein's lemma
    E[y xᵀθ] = c E[σ′(xᵀθ*)], so that F(θ) has integrals over one normal variable each, which
    Gauss–Hermite quadrature gives.

    Args:
      eigenvalues: the diagonal of Σ, of which x is N(0, Σ); of shape (d,).
      solution: θ*, of shape (d,).
      start: θ_0, of shape (d,).
    """

    def draw(rng: np.random.Generator, n: int) -> Samples:
        x = rng.normal(size=(n, len(eigenvalues))) * np.sqrt(eigenvalues)
        return x, (rng.random(n) < 1 / (1 + np.exp(-x @ solution))).astype(float)

    def loss(params: jax.Array, sample: Traced) -> jax.Array:
        x, y = sample
        return jax.nn.softplus(x @ params) - y * (x @ params)

    probabilities = 1 / (1 + np.exp(-np.sqrt(eigenvalues @ solution**2) * NODES))
    slope = WEIGHTS @ (probabilities * (1 - probabilities))

    def risk(params: jax.Array) -> jax.Array:
        deviation = jnp.sqrt(eigenvalues @ params**2)
        return WEIGHTS @ jax.nn.softplus(deviation * NODES) - slope * (
            eigenvalues * solution @ params
        )

    text = (
        f"logistic regression in {len(eigenvalues)} dimensions, x normal with the variances 1/j, "
        f"‖θ*‖ = {np.linalg.norm(solution):.3g}"
    )
    solve = partial(minimiser, loss, start)
    return Problem(text, start, draw, loss, risk, solve)


def softmax(classes: int, dimensions: int, ridge: float, shift: float, fresh: int) -> Problem:
    """ℓ is the cross-entropy of the logits θᵀx, plus λ/2 ‖θ‖²; F is its mean over a fresh sample.

    Adding one vector to the weights of every class changes no probability: in these directions the
    curvature is λ. θ_0 has such a vector, of length `shift`.

    Args:
      classes: how many.
      dimensions: of x, which is N(0, I / dimensions).
      ridge: λ.
      shift: see above.
      fresh: size of the fresh sample.
    """
    rng = np.random.default_rng(0)
    solution = 2 * rng.normal(size=(dimensions, classes))

    def draw(rng: np.random.Generator, n: int) -> Samples:
        x = rng.normal(size=(n, dimensions)) / np.sqrt(dimensions)
        return x, (x @ solution + rng.gumbel(size=(n, classes))).argmax(-1)

    def loss(params: jax.Array, sample: Traced) -> jax.Array:
        x, y = sample
        logits = x @ params
        cross_entropy = jax.nn.logsumexp(logits) - logits[y]
        return cross_entropy + 0.5 * ridge * jnp.sum(params**2)

    seen = draw(rng, fresh)

    def risk(params: jax.Array) -> jax.Array:
        return jax.vmap(loss, (None, 0))(params, seen).mean()

    start = np.full((dimensions, classes), shift / np.sqrt(dimensions * classes))
    text = (
        f"softmax regression with {classes} classes in {dimensions} dimensions, λ = {ridge:g}, "
        f"started with a common shift of {shift:g} of all classes; F from {fresh:,} fresh samples"
    )
    solve = partial(minimiser, loss, 0 * start)
    return Problem(text, start, draw, loss, risk, solve, lambda samples: ridge, 1 + ridge)
