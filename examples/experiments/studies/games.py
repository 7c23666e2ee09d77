"""A bilinear game of two players, and how fast they come to rest in it.

    min over x, max over y of  xᵀ A y + bᵀ x + cᵀ y

Both players follow v(w) = (∂/∂x, −∂/∂y) for w = (x, y) downhill. It is linear, v(w) = −J (w − w*)
about the equilibrium w*, so that every method here multiplies the distance to w* by a matrix from
cycle to cycle, and its rate is the spectral radius of that matrix.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.studies.players import alternating, extragradient
from slrla_jax import lookahead, multilayer_lookahead, slow_params

Weights = dict[str, Any]


class Bilinear(NamedTuple):
    """A bilinear game, or as many as there are leading axes.

    Attributes:
      a: A, of shape (..., size, size).
      b: of shape (..., size).
      c: of shape (..., size).
    """

    a: Any
    b: Any
    c: Any

    def payoff(self, w: Weights) -> jax.Array:
        """Returns what x pays to y."""
        return w["x"] @ self.a @ w["y"] + self.b @ w["x"] + self.c @ w["y"]

    def gradients(self, w: Weights, _: int = 0) -> Weights:
        """Returns v(w), in which the sign of the player who maximises is flipped."""
        gradients = jax.grad(self.payoff)(w)
        return {"x": gradients["x"], "y": -gradients["y"]}

    def mean(self) -> "Bilinear":
        """Returns the mean of the games along the first axis."""
        return Bilinear(*(part.mean(0) for part in self))

    def equilibrium(self) -> Weights:
        """Returns w*, where A y = −b and Aᵀ x = −c."""
        return {"x": -np.linalg.solve(self.a.T, self.c), "y": -np.linalg.solve(self.a, self.b)}


def samples_of_a_game(
    size: int, samples: int, noise: float, seed: int, lowest: float = 0.5
) -> Bilinear:
    """Draws games whose mean has singular values spaced evenly from `lowest` to 1.

    Args:
      size: of x and of y.
      samples: how many.
      noise: standard deviation of the entries of each A, b and c about their mean, times √size
        for b and c.
      seed: of the draws.
      lowest: the lowest singular value of the mean of A.

    Returns:
      The games, in float64, along a leading axis.
    """
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(size, size)))[0] for _ in range(2))
    mean = Bilinear(
        left @ np.diag(np.linspace(lowest, 1.0, size)) @ right,
        rng.normal(size=size) / np.sqrt(size),
        rng.normal(size=size) / np.sqrt(size),
    )
    deviations = (rng.normal(size=(samples, *part.shape)) for part in mean)
    return Bilinear(
        *(
            part + noise / np.sqrt(size) * (deviation - deviation.mean(0))
            for part, deviation in zip(mean, deviations, strict=True)
        )
    )


def start(seed: int, player: int, size: int) -> np.ndarray:
    """Returns where a player begins, relative to the equilibrium, at a distance of about 1."""
    return np.random.default_rng((seed, player)).normal(size=size) / np.sqrt(2 * size)


# The methods, as transformations and as matrices.


class Settings(NamedTuple):
    """Of the methods.

    Attributes:
      learning_rate: η.
      sync_periods: of the layers of nested Lookahead, the inner one first, in steps of the layer
        below; Lookahead has the inner one.
      slow_step_sizes: likewise.
    """

    learning_rate: float
    sync_periods: tuple[int, ...]
    slow_step_sizes: tuple[float, ...]


def skew(a: np.ndarray) -> np.ndarray:
    """Returns J of v(w) = −J (w − w*)."""
    zero = np.zeros_like(a)
    return np.block([[zero, -a], [a.T, zero]])


def simultaneous_matrix(a: np.ndarray, eta: float) -> np.ndarray:
    """Returns I + η J, the matrix of a step of gradient descent–ascent."""
    return np.eye(2 * len(a)) + eta * skew(a)


def alternating_matrix(a: np.ndarray, eta: float) -> np.ndarray:
    """Returns the matrix of a step of x followed by one of y."""
    one, zero = np.eye(len(a)), np.zeros_like(a)
    return np.block([[one, zero], [eta * a.T, one]]) @ np.block([[one, -eta * a], [zero, one]])


def extragradient_matrix(a: np.ndarray, eta: float) -> np.ndarray:
    """Returns I + η J (I + η J)."""
    return np.eye(2 * len(a)) + eta * skew(a) @ simultaneous_matrix(a, eta)


def optimistic_matrix(a: np.ndarray, eta: float) -> np.ndarray:
    """Returns the matrix of (w_t, w_{t−1}) under w_{t+1} = w_t + η J (2 w_t − w_{t−1})."""
    one, j = np.eye(2 * len(a)), skew(a)
    return np.block([[one + 2 * eta * j, -eta * j], [one, np.zeros_like(one)]])


def cycle_matrix(
    step: np.ndarray, sync_periods: Sequence[int], slow_step_sizes: Sequence[float]
) -> np.ndarray:
    """Returns the matrix of a cycle of the outermost layer: M ← (1 − α) I + α M^k for each."""
    for k, alpha in zip(sync_periods, slow_step_sizes, strict=True):
        cycle = np.linalg.matrix_power(step, k)
        step = (1 - alpha) * np.eye(len(step)) + alpha * cycle
    return step


def after_a_cycle(eigenvalues: np.ndarray, k: Any, alpha: Any) -> np.ndarray:
    """Returns the eigenvalues of a layer's cycle from those of the layer below."""
    return (1 - alpha) + alpha * eigenvalues**k


def lookahead_rates(
    a: np.ndarray, eta: float, periods: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Returns the rate of Lookahead around simultaneous steps for each k and α.

    Args:
      a: A, with the singular values σ; a step has the eigenvalues 1 ± i η σ.
      eta: η.
      periods: values of k.
      sizes: values of α.

    Returns:
      The factor of the distance per step, of shape (sizes, periods).
    """
    step = 1 + 1j * eta * np.linalg.svd(a, compute_uv=False)
    cycle = after_a_cycle(step, periods[:, None], sizes[:, None, None])
    return np.abs(cycle).max(-1) ** (1 / periods)


def spectral_radius(matrix: np.ndarray) -> float:
    """Returns the largest absolute value of an eigenvalue."""
    return float(np.abs(np.linalg.eigvals(matrix)).max())


class Method(NamedTuple):
    """A way of playing.

    Attributes:
      label: its name in tables and plots.
      step: returns the transformation of a step, from the learning rate.
      matrix: returns the matrix of a step, from A and the learning rate.
      layers: of Lookahead around it; None for as many as the settings have.
      gradients: how many a step takes.
    """

    label: str
    step: Callable[[float], optax.GradientTransformation]
    matrix: Callable[[np.ndarray, float], np.ndarray]
    layers: int | None = 0
    gradients: int = 1

    def layers_of(self, settings: Settings) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """Returns the periods and the step sizes of the layers, the inner one first."""
        return settings.sync_periods[: self.layers], settings.slow_step_sizes[: self.layers]

    def make(self, settings: Settings) -> optax.GradientTransformation:
        """Returns the whole transformation."""
        tx = self.step(settings.learning_rate)
        periods, sizes = self.layers_of(settings)
        if len(periods) == 1:
            return lookahead(tx, periods[0], sizes[0])
        return multilayer_lookahead(tx, periods, sizes) if periods else tx

    def steps_per_cycle(self, settings: Settings) -> int:
        """Returns how many steps there are from one sync of the outermost layer to the next."""
        return int(np.prod(self.layers_of(settings)[0], dtype=int))

    def rate(self, a: np.ndarray, settings: Settings) -> float:
        """Returns the factor of the distance per step that the matrix of a cycle predicts."""
        step = self.matrix(a, settings.learning_rate)
        cycle = cycle_matrix(step, *self.layers_of(settings))
        return spectral_radius(cycle) ** (1 / self.steps_per_cycle(settings))


def in_turn(eta: float) -> optax.GradientTransformation:
    """Gradient descent of x, then ascent of y."""
    return alternating(optax.sgd(eta), ("x", "y"))


def ahead(eta: float) -> optax.GradientTransformation:
    """Extragradient around gradient descent–ascent."""
    return extragradient(optax.sgd(eta))


METHODS: Mapping[str, Method] = {
    "gda": Method("GDA", optax.sgd, simultaneous_matrix),
    "lookahead": Method("Lookahead", optax.sgd, simultaneous_matrix, layers=1),
    "nested_lookahead": Method("Nested Lookahead", optax.sgd, simultaneous_matrix, layers=None),
    "alternating": Method("Alternating GDA", in_turn, alternating_matrix),
    "alternating_lookahead": Method("Alternating Lookahead", in_turn, alternating_matrix, layers=1),
    "extragradient": Method("Extragradient", ahead, extragradient_matrix, gradients=2),
    "optimistic": Method("Optimistic GDA", optax.optimistic_gradient_descent, optimistic_matrix),
}


# Playing.


@functools.partial(jax.jit, static_argnames=("method", "settings", "steps", "batch_size"))
def distances(
    method: Method,
    settings: Settings,
    games: Bilinear,
    equilibrium: Weights,
    starts: Weights,
    keys: jax.Array,
    steps: int,
    batch_size: int | None,
) -> jax.Array:
    """Plays from every start at once.

    Args:
      method: how.
      settings: of the method.
      games: the samples, of whose mean the equilibrium is.
      equilibrium: w*.
      starts: the weights to begin with, with a leading axis of seeds.
      keys: random keys of the batches, likewise.
      steps: how many.
      batch_size: how many samples, drawn with replacement, a step sees the mean of; None for the
        mean of all.

    Returns:
      The distance ‖w − w*‖ of the slow weights, where there are any, before the first step and
      after each; of shape (seeds, steps + 1).
    """
    tx = method.make(settings)
    evaluated = slow_params if method.layers != 0 else lambda state, w: w

    def play(start: Weights, key: jax.Array) -> jax.Array:
        return path(tx, evaluated, games, equilibrium, start, key, steps, batch_size)

    return jax.vmap(play)(starts, keys)


def path(
    tx: optax.GradientTransformation,
    evaluated: Callable[[optax.OptState, Weights], Weights],
    games: Bilinear,
    equilibrium: Weights,
    start: Weights,
    key: jax.Array,
    steps: int,
    batch_size: int | None,
) -> jax.Array:
    """Plays once.

    Args:
      tx: steps of both players.
      evaluated: reads the weights whose distance counts from the state of `tx` and the weights.
      games: see `distances`, as for the other arguments.
      equilibrium: likewise.
      start: the weights to begin with.
      key: random key of the batches.
      steps: likewise.
      batch_size: likewise.

    Returns:
      The distance before the first step and after each; of shape (steps + 1,).
    """
    tx, whole = optax.with_extra_args_support(tx), games.mean()

    def distance(w: Weights) -> jax.Array:
        apart = [w[player] - equilibrium[player] for player in ("x", "y")]
        return jnp.linalg.norm(jnp.concatenate(apart))

    def step(carry: tuple[Weights, Any], key: jax.Array) -> tuple[tuple[Weights, Any], jax.Array]:
        w, state = carry
        game = whole
        if batch_size is not None:
            chosen = jax.random.randint(key, (batch_size,), 0, len(games.b))
            game = Bilinear(*(part[chosen] for part in games)).mean()
        updates, state = tx.update(game.gradients(w), state, w, grad_fn=game.gradients)
        w = optax.apply_updates(w, updates)
        return (w, state), distance(evaluated(state, w))

    _, after = jax.lax.scan(step, (start, tx.init(start)), jax.random.split(key, steps))
    return jnp.append(distance(start), after)


def measured_rate(distances: np.ndarray, cycle: int, floor: float = 1e-10) -> float:
    """Returns the factor of the distance per step, in the second half of a run.

    Both ends of that half are syncs, and nothing counts below `floor` times the distance at the
    start, where rounding is.

    Args:
      distances: before the first step and after each.
      cycle: steps from sync to sync.
      floor: see above.

    Raises:
      ValueError: if there are not two cycles above the floor.
    """
    at_syncs = distances[::cycle]
    at_syncs = at_syncs[np.isfinite(at_syncs)]
    (below,) = np.nonzero(at_syncs < floor * at_syncs[0])
    last = int(below[0]) if len(below) else len(at_syncs) - 1
    if last < 2:
        raise ValueError(f"`distances` must have two cycles of {cycle} steps, got {last}.")
    middle = last // 2
    return float((at_syncs[last] / at_syncs[middle]) ** (1 / (cycle * (last - middle))))
