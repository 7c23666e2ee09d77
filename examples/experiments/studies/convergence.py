"""Problems for which AdaLoss is proved to converge linearly, solved with many b0 from many seeds.

Linear regression whose equations have a solution, in full batches and in random ones, and
two-layer ReLU networks in the paper's scaling. The smallest loss is 0 in all of them, so that
AdaLoss's c = 0 is right. Each seed draws a problem of its own, and with all values of b0 they are
trained in one compiled program, in float64: in float32 small steps are lost in the weights of wide
networks while the error still falls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import Config
from experiments.optimizers import INNER

BASE = Config(momentum=0.0, weight_decay=0.0, learning_rate=1.0)
# Below this fraction of the first error nothing is measured.
FLOOR = 1e-12

# What was drawn for a problem, by name, in float64 or whole numbers.
Data = dict[str, np.ndarray]
Traced = dict[str, jax.Array]


@dataclass(frozen=True)
class Problem:
    """A problem, without the data that are drawn for it.

    Attributes:
      draw: draws the data, for a number of steps. Among them are `params`, where training starts;
        `batches`, the examples of each step, of shape (steps, batch size); and `smoothness`, the
        largest eigenvalue L of the loss's Hessian on all examples, of a network that of its
        Gauss–Newton part at the start.
      loss: the loss, a function of data, params and the indices of a batch.
      error: what converges to 0, a function of data, params and the loss there.
    """

    draw: Callable[[np.random.Generator, int], Data]
    loss: Callable[[Traced, jax.Array, jax.Array], jax.Array]
    error: Callable[[Traced, jax.Array, jax.Array], jax.Array]


def regression(examples: int, dimensions: int, batch_size: int) -> Problem:
    """Linear regression with f(θ) = ‖Xθ − y‖² / (2 · batch size) on a batch, and y = Xθ*.

    θ* has length 1 and is the solution that is nearest to the start, θ = 0. The error is the
    squared distance to it. X has normal entries of such a size that the largest eigenvalue of a
    batch's Hessian is about 1.
    """

    def draw(rng: np.random.Generator, steps: int) -> Data:
        size = 1 / (1 + (dimensions / batch_size) ** 0.5)
        x = rng.normal(size=(examples, dimensions)) * size
        solution = x.T @ rng.normal(size=examples)
        solution /= np.linalg.norm(solution)
        batches = [rng.permutation(examples)[:batch_size] for _ in range(steps)]
        return {
            "params": np.zeros(dimensions),
            "inputs": x,
            "targets": x @ solution,
            "solution": solution,
            "batches": np.array(batches),
            "smoothness": np.linalg.norm(x, ord=2) ** 2 / examples,
        }

    def loss(data: Traced, params: jax.Array, batch: jax.Array) -> jax.Array:
        residuals = data["inputs"][batch] @ params - data["targets"][batch]
        return 0.5 * jnp.mean(residuals**2)

    def error(data: Traced, params: jax.Array, loss: jax.Array) -> jax.Array:
        return jnp.sum((params - data["solution"]) ** 2)

    return Problem(draw, loss, error)


def network(examples: int, dimensions: int, width: int) -> Problem:
    """A network u(x) = Σ_r a_r max(0, w_r·x) / √width, in full batches of f = ‖u − y‖² / 2.

    The first layer is trained from normal weights, and the output weights a_r = ±1 stay as they
    are. Inputs have length 1, targets are normal. The error is the loss.
    """

    def draw(rng: np.random.Generator, steps: int) -> Data:
        x = rng.normal(size=(examples, dimensions))
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        weights = rng.normal(size=(width, dimensions))
        active = x @ weights.T > 0
        kernel = (active @ active.T.astype(float)) * (x @ x.T) / width
        return {
            "params": weights,
            "signs": rng.choice([-1.0, 1.0], width),
            "inputs": x,
            "targets": rng.normal(size=examples),
            "batches": np.broadcast_to(np.arange(examples), (steps, examples)),
            "smoothness": np.linalg.norm(kernel, ord=2),
        }

    def loss(data: Traced, params: jax.Array, batch: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(data["inputs"] @ params.T)
        residuals = hidden @ data["signs"] / width**0.5 - data["targets"]
        return 0.5 * jnp.sum(residuals**2)

    return Problem(draw, loss, lambda data, params, loss: loss)


def problems(widths: Sequence[int]) -> dict[str, Problem]:
    """Returns both regressions, and networks of these widths, by their titles."""
    return {
        "Linear regression, full batches": regression(60, 20, 60),
        "Linear regression, random batches": regression(50, 200, 10),
        **{f"Two-layer network, width {width:,}": network(20, 10, width) for width in widths},
    }


def drawn(problem: Problem, seeds: Sequence[int], steps: int) -> Data:
    """Returns the data of all seeds, along a first axis."""
    of_seeds = [problem.draw(np.random.default_rng(seed), steps) for seed in seeds]
    return jax.tree.map(lambda *values: np.stack(values), *of_seeds)


def errors(problem: Problem, method: str, data: Data, b0: np.ndarray) -> np.ndarray:
    """Trains with every b0 from every seed.

    Args:
      problem: the problem.
      method: a name in `optimizers.INNER`.
      data: of the problem, of all seeds.
      b0: of shape (values, seeds).

    Returns:
      The error before each step; of shape (values, seeds, steps).
    """
    with jax.enable_x64(True):
        return np.asarray(_errors(problem, method, data, b0))


@partial(jax.jit, static_argnames=("problem", "method"))
@partial(jax.vmap, in_axes=(None, None, None, 0))
@partial(jax.vmap, in_axes=(None, None, 0, 0))
def _errors(problem: Problem, method: str, data: Traced, b0: jax.Array) -> jax.Array:
    config = replace(BASE, b0=b0)
    tx = optax.with_extra_args_support(INNER[method](config.learning_rate, config))

    def step(
        carry: tuple[jax.Array, optax.OptState], batch: jax.Array
    ) -> tuple[tuple[jax.Array, optax.OptState], jax.Array]:
        params, state = carry
        loss, gradient = jax.value_and_grad(problem.loss, argnums=1)(data, params, batch)
        updates, state = tx.update(gradient, state, params, value=loss)
        error = problem.error(data, params, loss)
        return (optax.apply_updates(params, updates), state), error

    start = data["params"], tx.init(data["params"])
    return jax.lax.scan(step, start, data["batches"])[1]


# A path is the error before each step of a run.


def over_runs(measure: Callable[[np.ndarray], float], paths: np.ndarray) -> np.ndarray:
    """Returns a measure of each path, of shape (values, seeds); NaN of those that diverge."""
    flat = paths.reshape(-1, paths.shape[-1])
    return np.reshape([np.nan if diverges(p) else measure(p) for p in flat], paths.shape[:-1])


def diverges(path: np.ndarray) -> bool:
    """Says whether a path ends higher than it began, or nowhere."""
    return not path[-1] <= path[0]


def slope(path: np.ndarray, begin: float = 0.5, end: float = 1.0) -> float:
    """Returns the slope of log10 error a step, by least squares.

    Args:
      path: the error before each step.
      begin: where to begin, as a fraction of the steps until the error is `FLOOR` of its start.
      end: where to end, likewise; by default it is the second half.
    """
    below = np.flatnonzero(path <= FLOOR * path[0])
    last = below[0] if below.size else len(path)
    first = int(begin * last)
    steps = np.arange(first, max(int(end * last), first + 2))
    return float(np.polyfit(steps, np.log10(path[steps]), 1)[0])


def bend(path: np.ndarray) -> float:
    """Returns the slope of the last quarter over that of the second: 1 if convergence is linear.

    Of an error that falls like exp(−√t), as with steps that shrink like 1/√t, it is 0.65; of one
    that does not move, NaN.
    """
    before = slope(path, 0.25, 0.5)
    return slope(path, 0.75, 1.0) / before if before else float("nan")
