"""Problems whose population risk and empirical minimum are known.

A problem has a loss ℓ(θ; z) of one sample z. Its empirical risk F_S(θ) is the mean of ℓ over the n
samples of a data set S, its population risk F(θ) the mean over the distribution, and θ*_S minimises
F_S. A regulariser, where there is one, is part of ℓ.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.theory.solve import least_squares_solution, minimiser

# Samples along the first axis, inputs and targets; or one of them.
Samples = tuple[np.ndarray, ...]
Traced = tuple[jax.Array, ...]

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True, eq=False)
class Problem:
    """A problem, without the samples that are drawn for it.

    Attributes:
      title: its name.
      text: what it is, with its parameters.
      start: θ_0, where every run begins.
      draw: draws n samples.
      loss: ℓ, a function of θ and of one sample.
      risk: F, a function of θ.
      solve: returns θ*_S of a data set.
    """

    title: str
    text: str
    start: np.ndarray
    draw: Callable[[np.random.Generator, int], Samples]
    loss: Callable[[jax.Array, Traced], jax.Array]
    risk: Callable[[jax.Array], jax.Array]
    solve: Callable[[Samples], np.ndarray]

    def empirical(self, samples: Traced, params: jax.Array) -> jax.Array:
        """Returns F_S(θ)."""
        return jax.vmap(self.loss, (None, 0))(params, samples).mean()


def least_squares(
    title: str,
    text: str,
    eigenvalues: np.ndarray,
    solution: np.ndarray,
    start: np.ndarray,
    noise: float,
    ridge: float = 0.0,
) -> Problem:
    """ℓ = ½ (xᵀθ − y)² + λ/2 ‖θ‖², where y = xᵀθ* + σ ε.

    F(θ) = ½ (θ − θ*)ᵀ Σ (θ − θ*) + σ²/2 + λ/2 ‖θ‖².

    Args:
      title: of the problem.
      text: of the problem.
      eigenvalues: the diagonal of Σ, of which x is N(0, Σ); 0 for a direction in which the data are
        flat. Of shape (d,).
      solution: θ*, of shape (d,).
      start: θ_0, of shape (d,).
      noise: σ.
      ridge: λ.
    """

    def draw(rng: np.random.Generator, n: int) -> Samples:
        x = rng.normal(size=(n, len(eigenvalues))) * np.sqrt(eigenvalues)
        return x, x @ solution + noise * rng.normal(size=n)

    def loss(params: jax.Array, sample: Traced) -> jax.Array:
        x, y = sample
        return 0.5 * (x @ params - y) ** 2 + 0.5 * ridge * params @ params

    def risk(params: jax.Array) -> jax.Array:
        fit = eigenvalues @ (params - solution) ** 2 + noise**2
        return 0.5 * fit + 0.5 * ridge * params @ params

    solve = partial(least_squares_solution, ridge=ridge, start=start)
    return Problem(title, text, start, draw, loss, risk, solve)


def mean(curvature: float, dimensions: int, distance: float, noise: float) -> Problem:
    """ℓ = λ/2 ‖θ − z‖², where z is N(0, σ² I): every direction has curvature λ, and noise.

    F(θ) = λ/2 (‖θ‖² + σ² d).

    Args:
      curvature: λ.
      dimensions: d.
      distance: of θ_0 from the mean of z.
      noise: σ.
    """
    start = np.full(dimensions, distance / np.sqrt(dimensions))
    return Problem(
        "Mean",
        f"ℓ = λ/2 ‖θ − z‖², z normal in {dimensions} dimensions with σ = {noise:g}, "
        f"λ = {curvature:g}, started at a distance of {distance:g}",
        start,
        lambda rng, n: (noise * rng.normal(size=(n, dimensions)),),
        lambda params, sample: 0.5 * curvature * jnp.sum((params - sample[0]) ** 2),
        lambda params: 0.5 * curvature * (params @ params + noise**2 * dimensions),
        lambda samples: samples[0].mean(0),
    )


def sine(bend: float, target: float, start: float, dimensions: int, noise: float) -> Problem:
    """ℓ = ½ ‖φ(θ) − z‖² with φ(u) = u + c sin u in each coordinate, which is not convex.

    φ rises with 1 − c at least, so that F_S satisfies the PL condition with μ = (1 − c)². It is
    tight where θ*_S is near π, which has the flattest slope. F_S(θ) = ½ ‖φ(θ) − z̄‖² + const., and
    F(θ) = ½ (‖φ(θ) − m‖² + σ² d).

    Args:
      bend: c in (0, 1).
      target: each coordinate of φ⁻¹(m), where m is the mean of z.
      start: each coordinate of θ_0.
      dimensions: d.
      noise: σ, the standard deviation of z in each coordinate.
    """

    def phi(u: jax.Array) -> jax.Array:
        return u + bend * jnp.sin(u)

    centre = target + bend * np.sin(target)

    def solve(samples: Samples) -> np.ndarray:
        low = samples[0].mean(0) - bend
        high = low + 2 * bend
        for _ in range(60):  # Bisection: φ rises.
            middle = (low + high) / 2
            too_low = middle + bend * np.sin(middle) < samples[0].mean(0)
            low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
        return (low + high) / 2

    return Problem(
        "Sine",
        f"ℓ = ½ ‖φ(θ) − z‖², φ(u) = u + {bend:g} sin u, μ = {(1 - bend) ** 2:g}, z normal in "
        f"{dimensions} dimensions with σ = {noise:g}, φ⁻¹ of its mean at {target:.3g}, started at "
        f"{start:g}",
        np.full(dimensions, start),
        lambda rng, n: (centre + noise * rng.normal(size=(n, dimensions)),),
        lambda params, sample: 0.5 * jnp.sum((phi(params) - sample[0]) ** 2),
        lambda params: 0.5 * (jnp.sum((phi(params) - centre) ** 2) + noise**2 * dimensions),
        solve,
    )


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
    return Problem("Logistic regression", text, start, draw, loss, risk, solve)


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
    return Problem("Softmax regression", text, start, draw, loss, risk, solve)
