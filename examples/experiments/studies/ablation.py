"""Softmax regression with many α and β at once, in one compiled program.

Each seed draws its own samples and batches; all start from zero.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import Config
from experiments.data import Dataset, batches
from experiments.schedules import Stages, stages_of, with_milestones_that_fit
from slrla_jax import Stage, slow_params, slrla

ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BETAS = (0.0, 0.001, 0.01, 0.05, 0.2, 0.8, 2.0, 5.0, 20.0, 50.0)

# The paper's softmax regression: stagewise, each stage with half the learning rate of the last.
LEARNING_RATE, DECAY, MILESTONES = 0.05, 0.5, (0.3, 0.6, 0.8)
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4
K, ALPHA = 5, 0.8
SCORED_AT_ONCE = 1_000

Params = dict[str, jax.Array]
Pool = tuple[jax.Array, jax.Array]


class Grid(NamedTuple):
    """Settings that are trained side by side.

    Attributes:
      alphas: slow step sizes, float32 of shape (settings,).
      betas: strengths of the regulariser in the paper's convention, likewise.
      rates: learning rates of the first stage, likewise.
    """

    alphas: jax.Array
    betas: jax.Array
    rates: jax.Array


def grid() -> Grid:
    """Returns all α with β = 0, which is SLA; all β; and SGD with as many learning rates."""
    lookahead = [(alpha, 0.0, LEARNING_RATE) for alpha in ALPHAS]
    regularised = [(ALPHA, beta, LEARNING_RATE) for beta in BETAS]
    sgd = [(1.0, 0.0, c * LEARNING_RATE) for c in ALPHAS]
    return Grid(*map(jnp.array, zip(*lookahead, *regularised, *sgd, strict=True)))


def groups() -> dict[str, dict[str, Any]]:
    """Returns what is varied in `grid`, in its order, and where the method is switched off."""
    return {
        "α": {"settings": ALPHAS, "off": 1.0},
        "β": {"settings": BETAS, "off": 0.0},
        "c": {"settings": ALPHAS, "off": 1.0},
    }


def optimizer(
    alpha: jax.Array, beta: jax.Array, rate: jax.Array, cycles: Sequence[int]
) -> optax.GradientTransformation:
    """Returns Algorithm 3 around SGD with momentum, in stages of so many cycles."""
    return slrla(
        lambda schedule: optax.chain(
            optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(schedule, momentum=MOMENTUM)
        ),
        [
            Stage(t, rate * DECAY**q, beta=beta, sync_period=K, slow_step_size=alpha)
            for q, t in enumerate(cycles)
        ],
    )


def cross_entropy(params: Params, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean over a batch: inputs (batch, pixels), labels (batch,)."""
    logits = inputs @ params["kernel"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def train(
    dataset: Dataset, pool: Pool, cycles: Sequence[int], settings: Grid, order: jax.Array
) -> Params:
    """Returns the slow weights of each setting after its last step.

    Args:
      dataset: knows the images' shape, and how to standardise them.
      pool: the images and labels that `order` refers to.
      cycles: length of each stage, in cycles of K steps.
      settings: what is trained side by side, on the same batches.
      order: indices of training images, of shape (steps, batch).

    Returns:
      Weights with a leading axis of settings.
    """
    images, labels = pool

    def begin(*setting: jax.Array) -> tuple[Params, optax.OptState]:
        pixels = int(np.prod(dataset.image_shape))
        params = {
            "kernel": jnp.zeros((pixels, dataset.classes)),
            "bias": jnp.zeros(dataset.classes),
        }
        return params, optimizer(*setting, cycles).init(params)

    def step(batch: Any, setting: Grid, params: Params, state: Any) -> tuple[Params, Any]:
        gradients = jax.grad(cross_entropy)(params, *batch)
        updates, state = optimizer(*setting, cycles).update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def all_settings(
        carry: tuple[Params, Any], batch: jax.Array
    ) -> tuple[tuple[Params, Any], None]:
        inputs = dataset.standardise(images[batch]).reshape(len(batch), -1)
        one = functools.partial(step, (inputs, labels[batch]))
        return jax.vmap(one)(settings, *carry), None

    (params, state), _ = jax.lax.scan(all_settings, jax.vmap(begin)(*settings), order)
    return jax.vmap(slow_params)(state, params)


def score(
    dataset: Dataset, pool: Pool, params: Params, indices: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns mean loss and accuracy of each setting on some images, of shape (settings,)."""
    images, labels = pool

    def one(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = dataset.standardise(images[index]).reshape(-1)
        logits = inputs @ params["kernel"] + params["bias"]
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.broadcast_to(labels[index], logits.shape[:-1])
        )
        return losses, jnp.float32(logits.argmax(-1) == labels[index])

    losses, correct = jax.lax.map(one, indices, batch_size=SCORED_AT_ONCE)
    return losses.mean(0), correct.mean(0)


def ablate(
    dataset: Dataset, samples: int, steps: int, batch_size: int, seeds: int, settings: Grid
) -> dict[str, np.ndarray]:
    """Trains every setting from every seed, each seed on so many samples of its own.

    Returns:
      `train_loss` on those samples, `test_loss` and `test_accuracy` (a fraction) on all test
      images, and `gap`, test minus training loss; each of shape (seeds, settings).
    """
    cycles = [length // K for length in stages_in(steps).lengths]
    chosen = np.stack(
        [np.random.default_rng(s).permutation(dataset.train_size)[:samples] for s in range(seeds)]
    )
    order = np.stack(
        [
            own[list(itertools.islice(batches(s, samples, batch_size), K * sum(cycles)))]
            for s, own in enumerate(chosen)
        ]
    )

    pools = (
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
    )

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0))
    def run(pools: tuple[Pool, Pool], chosen: jax.Array, order: jax.Array) -> dict[str, jax.Array]:
        seen, unseen = pools
        params = train(dataset, seen, cycles, settings, order)
        train_loss, _ = score(dataset, seen, params, chosen)
        every = jnp.arange(dataset.test_size)
        test_loss, test_accuracy = score(dataset, unseen, params, every)
        return {
            "train_loss": train_loss,
            "test_loss": test_loss,
            "gap": test_loss - train_loss,
            "test_accuracy": test_accuracy,
        }

    return jax.device_get(run(pools, np.int32(chosen), np.int32(order)))


def stages_in(steps: int) -> Stages:
    """Returns the stages of a run of so many steps, in whole cycles of K."""
    config = Config(milestones=MILESTONES, stages_in="steps", whole_cycles=True, sync_period=K)
    return stages_of(with_milestones_that_fit(config, steps, 1), steps, 1)
