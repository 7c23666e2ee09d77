"""Problems whose population risk and empirical minimum are known.

A problem has a loss ℓ(θ; z) of one sample z. Its empirical risk F_S(θ) is the mean of ℓ over the n
samples of a data set S, its population risk F(θ) the mean over the distribution, and θ*_S minimises
F_S. A regulariser, where there is one, is part of ℓ.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.theory.solve import least_squares_solution

# Samples along the first axis, inputs and targets; or one of them.
Samples = tuple[np.ndarray, ...]
Traced = tuple[jax.Array, ...]


@dataclass(frozen=True, eq=False)
class Problem:
    """A problem, without the samples that are drawn for it.

    Attributes:
      text: what it is, with its parameters.
      start: θ_0, where every run begins.
      draw: draws n samples.
      loss: ℓ, a function of θ and of one sample.
      risk: F, a function of θ.
      solve: returns θ*_S of a data set.
      curvature: returns λ, or μ of the PL condition, of a data set's F_S; 0 where there is neither.
      smoothness: L, about the largest curvature of ℓ: steps of 1/L are stable.
    """

    text: str
    start: np.ndarray
    draw: Callable[[np.random.Generator, int], Samples]
    loss: Callable[[jax.Array, Traced], jax.Array]
    risk: Callable[[jax.Array], jax.Array]
    solve: Callable[[Samples], np.ndarray]
    curvature: Callable[[Samples], float] = lambda samples: 0.0
    smoothness: float = 1.0

    def empirical(self, samples: Traced, params: jax.Array) -> jax.Array:
        """Returns F_S(θ)."""
        return jax.vmap(self.loss, (None, 0))(params, samples).mean()


def least_squares(
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
    smoothness = 2 * eigenvalues.sum() + ridge
    return Problem(text, start, draw, loss, risk, solve, lambda samples: ridge, smoothness)


def interpolation(dimensions: int, noise: float) -> Problem:
    """Least squares with x of N(0, I / d) and more directions d than samples: F_S(θ*_S) = 0.

    F_S is flat in d − n directions, and in the span of the samples its least curvature is that of
    XXᵀ/n. It satisfies the PL condition with this μ.

    Args:
      dimensions: d.
      noise: σ.
    """
    solution = np.random.default_rng(0).normal(size=dimensions)
    text = (
        f"least squares, x normal in {dimensions} dimensions with the variance 1/{dimensions}, "
        f"θ* normal, y = xᵀθ* + {noise:g} ε"
    )
    eigenvalues = np.full(dimensions, 1 / dimensions)
    problem = least_squares(text, eigenvalues, solution, np.zeros(dimensions), noise)

    def curvature(samples: Samples) -> float:
        x, _ = samples
        return float(np.linalg.eigvalsh(x @ x.T / len(x))[0])

    return replace(problem, curvature=curvature)


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
        text=f"ℓ = λ/2 ‖θ − z‖², z normal in {dimensions} dimensions with σ = {noise:g}, "
        f"λ = {curvature:g}, started at a distance of {distance:g}",
        start=start,
        draw=lambda rng, n: (noise * rng.normal(size=(n, dimensions)),),
        loss=lambda params, sample: 0.5 * curvature * jnp.sum((params - sample[0]) ** 2),
        risk=lambda params: 0.5 * curvature * (params @ params + noise**2 * dimensions),
        solve=lambda samples: samples[0].mean(0),
        curvature=lambda samples: curvature,
        smoothness=5 * curvature,
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
        text=f"ℓ = ½ ‖φ(θ) − z‖², φ(u) = u + {bend:g} sin u, μ = {(1 - bend) ** 2:g}, z normal in "
        f"{dimensions} dimensions with σ = {noise:g}, φ⁻¹ of its mean at {target:.3g}, started at "
        f"{start:.3g}",
        start=np.full(dimensions, start),
        draw=lambda rng, n: (centre + noise * rng.normal(size=(n, dimensions)),),
        loss=lambda params, sample: 0.5 * jnp.sum((phi(params) - sample[0]) ** 2),
        risk=lambda params: 0.5 * (jnp.sum((phi(params) - centre) ** 2) + noise**2 * dimensions),
        solve=solve,
        curvature=lambda samples: (1 - bend) ** 2,
        smoothness=2 * (1 + bend) ** 2,
    )
