"""Training: the loss, the steps, and the loop over seeds and epochs.

A network is taken apart once (`nnx.split`). From then on params, running statistics and
optimizer state are plain trees, donated from step to step.

The weights that are evaluated are the slow ones where an optimizer has any. The running
statistics of batch normalisation are taken as they are, which is as the fast weights
left them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from data import Dataset
from flax import nnx
from optimizers import Optimizer, Recipe

Tree = Any
Record = dict[str, Any]

EVAL_BATCH = 2_000


class Diverged(Exception):
    """A loss that is no longer a number."""


@dataclass(frozen=True, eq=False)  # Told apart by identity, which is quick to compare.
class Network:
    """A network without its weights.

    Attributes:
      make: the constructor, from the random generators of a seed.
    """

    make: Callable[[nnx.Rngs], nnx.Module]

    @cached_property
    def graph(self) -> nnx.GraphDef:
        """What `nnx.merge` needs besides the weights."""
        return nnx.split(nnx.eval_shape(lambda: self.make(nnx.Rngs(0))))[0]


class State(NamedTuple):
    """What a training step takes and returns.

    Attributes:
      params: the weights that are trained; of a lookahead the fast ones.
      stats: all else in the network: means and variances of batch normalisation.
      opt_state: the optimizer's state, with the slow weights if there are any.
    """

    params: Tree
    stats: Tree
    opt_state: optax.OptState


def init_weights(network: Network, seed: int) -> tuple[Tree, Tree]:
    """Params and statistics at the beginning, a function of the seed alone."""
    # Of JAX's generators the one that compiles in a few seconds less.
    rngs = nnx.Rngs(jax.random.key(seed, impl="rbg"))
    _, params, stats = nnx.split(network.make(rngs), nnx.Param, ...)
    return nnx.as_pure(params), nnx.as_pure(stats)


def loss_fn(
    params: Tree, stats: Tree, network: Network, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Tree]:
    """Mean cross-entropy of a batch, and the statistics as the batch moves them."""
    model = nnx.merge(network.graph, params, stats, copy=True)
    logits = model(images, train=True)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))


def train_step(
    network: Network,
    tx: optax.GradientTransformation,
    state: State,
    images: jax.Array,
    labels: jax.Array,
) -> State:
    """One evaluation of the gradient, one update."""
    gradients, stats = jax.grad(loss_fn, has_aux=True)(
        state.params, state.stats, network, images, labels
    )
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), stats, opt_state)


def eval_step(
    network: Network, params: Tree, stats: Tree, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The sum of the cross-entropy over a batch, and of the correct answers."""
    logits = nnx.merge(network.graph, params, stats, copy=True)(images, train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return loss.sum(), (logits.argmax(-1) == labels).sum()


class Steps(NamedTuple):
    """Compiled steps, of one seed or, with a leading axis, of several together."""

    train: Callable[..., State]
    eval: Callable[..., tuple[jax.Array, jax.Array]]


ONE_SEED = Steps(
    train=jax.jit(train_step, static_argnums=(0, 1), donate_argnums=2),
    eval=jax.jit(eval_step, static_argnums=0),
)
SEEDS_TOGETHER = Steps(
    train=jax.jit(
        jax.vmap(train_step, in_axes=(None, None, 0, 0, 0)),
        static_argnums=(0, 1),
        donate_argnums=2,
    ),
    eval=jax.jit(jax.vmap(eval_step, in_axes=(None, 0, 0, None, None)), static_argnums=0),
)
_init_weights = jax.jit(init_weights, static_argnums=0)


def seeds_together() -> bool:
    """Whether several seeds are trained faster together than one after the other.

    On GPU and TPU they share the overhead of a step. On CPU `vmap` makes of each
    convolution a grouped one, and the seeds together take twice as long.
    """
    return jax.default_backend() != "cpu"


def train(
    network: Network,
    dataset: Dataset,
    optimizer: Optimizer,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    epochs: int,
    batch_size: int,
    together: bool,
) -> Iterator[Record]:
    """Trains with one optimizer from every seed, and yields a record per seed and epoch.

    Weights, batches and therefore results depend on the seed, not on the optimizer or on
    the other seeds. Epoch 0 is before the first step; the last epoch goes on until the
    steps of the recipe are done.
    """
    tx = optimizer.make(recipe)
    run = SEEDS_TOGETHER if together else ONE_SEED
    per_epoch = len(dataset.train_images) // batch_size

    def join(trees: Sequence[Tree]) -> Tree:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees) if together else trees[0]

    def start(seed: int) -> State:
        params, stats = _init_weights(network, seed)
        return State(params, stats, tx.init(params))

    for group in [seeds] if together else [[seed] for seed in seeds]:
        state = join([start(seed) for seed in group])
        streams = [batches(seed, len(dataset.train_images), batch_size) for seed in group]
        done = 0
        for epoch in range(epochs + 1):
            end = recipe.steps if epoch == epochs else epoch * per_epoch
            for _ in range(done, end):
                batch = join([next(stream) for stream in streams])
                state = run.train(
                    network, tx, state, dataset.train_images[batch], dataset.train_labels[batch]
                )
            done = end
            measured = evaluate(network, dataset, optimizer, run, state)
            for n, seed in enumerate(group):
                values = {name: float(np.ravel(value)[n]) for name, value in measured.items()}
                if not np.isfinite(values["train_loss"]):
                    raise Diverged(f"{optimizer.label} diverged, from seed {seed} in epoch {epoch}")
                yield {"seed": seed, "epoch": epoch, "gradients": done, **values}


def batches(seed: int, examples: int, batch_size: int) -> Iterator[np.ndarray]:
    """Indices of one batch after the other, in a new order for each pass over the data.

    The few examples at the end of a pass that do not fill a batch are left out of it.
    """
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(examples)
        for start in range(0, examples - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def evaluate(
    network: Network, dataset: Dataset, optimizer: Optimizer, run: Steps, state: State
) -> dict[str, np.ndarray]:
    """Losses and accuracies, each with a leading axis if the seeds are trained together.

    The training loss is that of at most as many images as there are to test on, so that
    on a large data set evaluation does not take longer than training.
    """

    def means(params: Tree, images: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
        sums = [
            run.eval(
                network,
                params,
                state.stats,
                images[i : i + EVAL_BATCH],
                labels[i : i + EVAL_BATCH],
            )
            for i in range(0, len(images), EVAL_BATCH)
        ]
        return [np.sum(np.asarray(part), axis=0) / len(images) for part in zip(*sums, strict=True)]

    params = state.params
    if optimizer.slow_params is not None:
        params = jax.jit(optimizer.slow_params)(state.opt_state, state.params)
    size = len(dataset.test_images)
    train_loss, _ = means(params, dataset.train_images[:size], dataset.train_labels[:size])
    test_loss, test_accuracy = means(params, dataset.test_images, dataset.test_labels)
    measured = {"train_loss": train_loss, "test_loss": test_loss, "test_accuracy": test_accuracy}
    if optimizer.slow_params is not None:
        _, measured["fast_test_accuracy"] = means(
            state.params, dataset.test_images, dataset.test_labels
        )
    return measured
