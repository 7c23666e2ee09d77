"""Softmax regression with SGD, Lookahead, SLA and SLRLA, each tuned on the same grid.

All settings of a method are one compiled program. Each seed draws its own samples and batches; all
start from zero.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from experiments.config import Config
from experiments.data import Dataset, batches
from experiments.schedules import Stages, stages_of, with_milestones_that_fit
from slrla_jax import Stage, slow_params, slrla

# The paper's softmax regression: momentum, k, and in stages half the learning rate of the last.
MOMENTUM, K, DECAY, MILESTONES = 0.9, 5, 0.5, (0.3, 0.6, 0.8)

RATES = tuple(0.0004 * 2**n for n in range(9))
ALPHAS = (0.1, 0.3, 0.8)
# SGD has α times these learning rates as well, so that Lookahead gains nothing by smaller steps.
SGD_RATES = tuple(sorted({round(a * rate, 12) for a in (*ALPHAS, 1.0) for rate in RATES}))
# Weight decays and strengths of the regulariser, in multiples of 1 / samples.
DECAYS, BETAS = (0, 6, 20, 60, 200), (0, 30, 200, 1200)

SIDE_BY_SIDE = len(RATES) * len(DECAYS)  # More at a time do not fit into the cache.
SCORED_AT_ONCE = 1_000
TUNING_SEED = 1_000_000
HELD_OUT = 6  # Tuning is decided by one in six of the training images.

# What settings are chosen by.
MEASURES = ("loss", "error")

Params = dict[str, jax.Array]
Pool = tuple[np.ndarray, np.ndarray]


class Setting(NamedTuple):
    """What is tuned; numbers, or arrays of those that are trained side by side.

    Attributes:
      rate: the learning rate of the first stage, or c where it is c / t in epoch t.
      decay: weight decay.
      alpha: slow step size.
      beta: strength of the regulariser in the paper's convention.
    """

    rate: ArrayLike
    decay: ArrayLike
    alpha: ArrayLike
    beta: ArrayLike


class Problem(NamedTuple):
    """What is learnt: from so many samples of a data set, in so many steps."""

    dataset: Dataset
    samples: int
    steps: int
    batch_size: int

    @property
    def epoch(self) -> int:
        """Steps of an epoch."""
        return self.samples // self.batch_size


def in_stages(setting: Setting, problem: Problem) -> list[Stage]:
    """Returns the stages of SLA and SLRLA."""
    return [
        Stage(length // K, setting.rate * DECAY**q, setting.beta, K, setting.alpha)
        for q, length in enumerate(stages_in(problem.steps).lengths)
    ]


def by_epoch(setting: Setting, problem: Problem) -> list[Stage]:
    """Returns a single stage, in which the learning rate is c / t in epoch t, from 1."""
    cycles = stages_in(problem.steps).steps // K
    return [
        Stage(
            cycles,
            lambda count: setting.rate / (1 + count // problem.epoch),
            setting.beta,
            K,
            setting.alpha,
        )
    ]


class Method(NamedTuple):
    """How a method is trained, and what is tuned of it besides learning rate and weight decay."""

    stages: Callable[[Setting, Problem], list[Stage]]
    rates: Sequence[float] = RATES
    alphas: Sequence[float] = ALPHAS
    betas: Sequence[float] = (0,)

    @property
    def axes(self) -> dict[str, Sequence[float]]:
        """What the grid is made of; weight decays and β in multiples of 1 / samples."""
        return {"alpha": self.alphas, "beta": self.betas, "rate": self.rates, "decay": DECAYS}

    def grid(self, samples: int) -> list[Setting]:
        """Returns all settings that are tried in tuning."""
        return [
            Setting(rate, decay / samples, alpha, beta / samples)
            for alpha, beta, rate, decay in itertools.product(*self.axes.values())
        ]


METHODS = {
    "SGD": Method(in_stages, rates=SGD_RATES, alphas=(1.0,)),
    "LA": Method(by_epoch, rates=tuple(4 * rate for rate in RATES), alphas=(*ALPHAS, 1.0)),
    "SLA": Method(in_stages),
    "SLRLA": Method(in_stages, betas=BETAS),
}


def optimizer(setting: Setting, stages: Sequence[Stage]) -> optax.GradientTransformation:
    """Returns Algorithm 3 around SGD with momentum and weight decay."""
    return slrla(
        lambda schedule: optax.chain(
            optax.add_decayed_weights(setting.decay), optax.sgd(schedule, momentum=MOMENTUM)
        ),
        stages,
    )


def losses_of(params: Params, inputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns loss and error (0 or 1) of each image: inputs (images, pixels), labels (images,)."""
    logits = inputs @ params["kernel"] + params["bias"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, jnp.float32(logits.argmax(-1) != labels)


def train(
    problem: Problem, method: Method, setting: Setting, pool: Pool, order: jax.Array
) -> Params:
    """Returns the slow weights after the last step.

    Args:
      problem: knows the images' shape, and how to standardise them.
      method: makes the stages.
      setting: of the method.
      pool: the images and labels that `order` refers to.
      order: indices of training images, of shape (steps, batch).
    """
    dataset, (images, labels) = problem.dataset, pool
    tx = optimizer(setting, method.stages(setting, problem))
    pixels = int(np.prod(dataset.image_shape))
    params = {"kernel": jnp.zeros((pixels, dataset.classes)), "bias": jnp.zeros(dataset.classes)}

    def step(
        carry: tuple[Params, optax.OptState], batch: jax.Array
    ) -> tuple[tuple[Params, optax.OptState], None]:
        params, state = carry
        inputs = dataset.standardise(images[batch]).reshape(len(batch), -1)
        gradients = jax.grad(lambda p: losses_of(p, inputs, labels[batch])[0].mean())(params)
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), order)
    return slow_params(state, params)


def score(dataset: Dataset, params: Params, pool: Pool, indices: jax.Array) -> list[jax.Array]:
    """Returns mean loss and error on some images."""
    images, labels = pool

    def one(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        inputs = dataset.standardise(images[index[None]]).reshape(1, -1)
        return losses_of(params, inputs, labels[index[None]])

    measured = jax.lax.map(one, indices, batch_size=SCORED_AT_ONCE)
    return [values.mean() for values in measured]


def compare(problem: Problem, name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Tunes a method, and measures the best settings from fresh seeds.

    Returns:
      `axes` of the grid; `tried`, what its settings achieve on the held-out images; and `runs`: for
      each α, and each measure that a setting may be chosen by, the best setting, those of its
      values that lie at an edge of the grid, and what it achieves, seed by seed.
    """
    method = METHODS[name]
    grid = method.grid(problem.samples)
    tuned = measure(problem, method, grid, [TUNING_SEED], tuning=True)
    tried = {by: np.nan_to_num(tuned[by][0], nan=np.inf) for by in MEASURES}  # Diverged is worst.
    best = [
        (by, min((n for n, s in enumerate(grid) if s.alpha == alpha), key=lambda n: tried[by][n]))
        for by, alpha in itertools.product(MEASURES, method.alphas)
    ]
    measured = measure(problem, method, [grid[n] for _, n in best], seeds)
    return {
        "axes": method.axes,
        "tried": {by: rounded(values) for by, values in tried.items()},
        "runs": [
            {
                "by": by,
                "setting": grid[n]._asdict(),
                "validation": rounded(tried[by][n]),
                "at_edge": edges(grid[n], grid),
                **{name: rounded(values[:, row]) for name, values in measured.items()},
            }
            for row, (by, n) in enumerate(best)
        ],
    }


def edges(setting: Setting, grid: Sequence[Setting]) -> list[str]:
    """Returns which values are the lowest or highest of the grid.

    0 is no edge, since no weight decay or β is below it; nor is the highest α, above which there
    is only 1, which is SGD.
    """
    at_edge = []
    for name, values in zip(Setting._fields, zip(*grid, strict=True), strict=True):
        value, lowest, highest = getattr(setting, name), min(values), max(values)
        highest = np.inf if name == "alpha" else highest
        if value in (lowest, highest) and value != 0 and len(set(values)) > 1:
            at_edge.append(name)
    return at_edge


def rounded(values: ArrayLike) -> Any:
    """Returns a number, or numbers in lists, as JSON has them."""
    return np.round(np.float64(values), 6).tolist()


def measure(
    problem: Problem,
    method: Method,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    *,
    tuning: bool = False,
) -> dict[str, np.ndarray]:
    """Trains with every setting from every seed, each seed on samples of its own.

    Args:
      problem: what is learnt.
      method: what it is learnt with.
      settings: of the method.
      seeds: of samples and batches.
      tuning: whether to train on a part of the training images and to measure on the others,
        instead of the test images.

    Returns:
      `train_loss` on the samples; `loss` and `error`, a fraction, on images that were not trained
      on; each of shape (seeds, settings).
    """
    dataset = problem.dataset
    seen, unseen = split(dataset) if tuning else whole(dataset)

    @jax.jit
    def run(seen: Pool, unseen: Pool, chosen: jax.Array, order: jax.Array) -> dict[str, jax.Array]:
        def one(setting: Setting) -> dict[str, jax.Array]:
            params = train(problem, method, setting, seen, order)
            train_loss, _ = score(dataset, params, seen, chosen)
            loss, error = score(dataset, params, unseen, jnp.arange(len(unseen[1])))
            return {"train_loss": train_loss, "loss": loss, "error": error}

        side_by_side = Setting(*map(jnp.float32, zip(*settings, strict=True)))
        return jax.lax.map(one, side_by_side, batch_size=SIDE_BY_SIDE)

    by_seed = []
    for seed in seeds:
        chosen = np.random.default_rng(seed).permutation(len(seen[1]))[: problem.samples]
        indices = batches(seed, len(chosen), problem.batch_size)
        order = chosen[list(itertools.islice(indices, stages_in(problem.steps).steps))]
        by_seed.append(jax.device_get(run(seen, unseen, np.int32(chosen), np.int32(order))))
    return {name: np.stack([one[name] for one in by_seed]) for name in by_seed[0]}


def whole(dataset: Dataset) -> tuple[Pool, Pool]:
    """Returns the training images and the test images, with their labels."""
    return (
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
    )


def split(dataset: Dataset) -> tuple[Pool, Pool]:
    """Returns most of the training images, and those that tuning is decided by."""
    order = np.random.default_rng(TUNING_SEED).permutation(dataset.train_size)
    held_out, others = np.split(order, [dataset.train_size // HELD_OUT])
    images, labels = dataset.train_images, dataset.train_labels
    return (images[others], labels[others]), (images[held_out], labels[held_out])


@functools.cache
def stages_in(steps: int) -> Stages:
    """Returns the stages of a run of so many steps, in whole cycles of K."""
    config = Config(milestones=MILESTONES, stages_in="steps", whole_cycles=True, sync_period=K)
    return stages_of(with_milestones_that_fit(config, steps, 1), steps, 1)
