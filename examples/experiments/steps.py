"""The training step and the evaluation step: pure functions of plain trees.

A network is split once (`nnx.split`). From then on params, running statistics and optimizer
state are plain trees, donated from step to step. A batch has raw images, or indices into those
on the device; they are augmented and standardised inside the compiled step.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from experiments.data import Data
from experiments.data.augment import crop_and_flip, resize_and_crop

Tree = Any
# A batch is indices into a pool of images and labels, or images and labels of its own, for which
# the pool is empty.
Batch = Any
Pool = tuple[jax.Array, ...]


@dataclass(frozen=True, eq=False)  # Compared by identity, as a static argument of jit.
class Model:
    """A network without its weights, and how images are prepared for it.

    Attributes:
      make: the network's constructor, with all arguments but `rngs` given.
      dataset: knows how to standardise its images.
      input_norm: whether images are standardised channel by channel, or only scaled to [0, 1].
      name: of the network.
    """

    make: Callable[..., nnx.Module]
    dataset: Data
    input_norm: bool = True
    name: str = ""

    @functools.cached_property
    def graph(self) -> nnx.GraphDef:
        """What `nnx.merge` needs besides the weights."""
        return nnx.split(self._abstract())[0]

    @functools.cached_property
    def forgetful_graph(self) -> nnx.GraphDef:
        """The same graph, but its running statistics are those of the last batch alone."""
        model = self._abstract()
        for _, module in nnx.iter_graph(model):
            if isinstance(module, nnx.BatchNorm):
                module.momentum = 0.0
        return nnx.split(model)[0]

    def check(self) -> None:
        """Raises ValueError if the network cannot have examples of this shape."""
        _ = self.graph

    @functools.cached_property
    def has_statistics(self) -> bool:
        """Whether there is a BatchNorm layer, whose running statistics go with the params."""
        return bool(jax.tree.leaves(nnx.state(self._abstract(), nnx.BatchStat)))

    @functools.cached_property
    def size(self) -> int:
        """Number of weights that are trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self._abstract(), nnx.Param)))

    def take(
        self, pool: Pool, batch: Batch, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the inputs of the network for a batch, and its labels.

        Args:
          pool: images and labels that a batch refers to by index, or empty.
          batch: indices into the pool, or images and labels.
          key: random key of the augmentation, if the data set is augmented; None for none.
        """
        key = key if self.dataset.augmented else None
        if not pool:
            images, labels = batch
        elif self.dataset.image_size is not None:
            images, labels = pool[0][batch], pool[1][batch]
            images = resize_and_crop(images, self.dataset.image_size, key)
        else:
            images, labels = pool[0], pool[1][batch]
            images = images[batch] if key is None else crop_and_flip(key, images, batch)
        return self.dataset.standardise(images, self.input_norm), labels

    def _abstract(self) -> nnx.Module:
        return nnx.eval_shape(lambda: self.make(rngs=nnx.Rngs(0)))


class State(NamedTuple):
    """What a training step takes and returns: everything in a run that changes.

    Attributes:
      params: the weights that are trained; with Lookahead the fast ones.
      stats: everything else in the network: BatchNorm's running statistics, and the random
        streams of dropout.
      opt_state: the optimizer's state, with the slow weights if there are any.
      key: random key of the run, from which each step derives its own.
      step: steps taken; int32 of shape ().
      loss: sum of the batches' losses in the epoch so far; float32 of shape ().
      correct: sum of the batches' accuracies in the epoch so far; float32 of shape ().
    """

    params: Tree
    stats: Tree
    opt_state: optax.OptState
    key: jax.Array
    step: jax.Array
    loss: jax.Array
    correct: jax.Array


def init_weights(model: Model, seed: int) -> tuple[Tree, Tree]:
    """Returns the initial params and statistics, a function of the seed alone."""
    # This one of JAX's generators compiles a few seconds faster.
    rngs = nnx.Rngs(jax.random.key(seed, impl="rbg"))
    _, params, stats = nnx.split(model.make(rngs=rngs), nnx.Param, ...)
    return nnx.as_pure(params), nnx.as_pure(stats)


_init_weights = jax.jit(init_weights, static_argnums=0)


def init_state(model: Model, tx: optax.GradientTransformation, seed: int) -> State:
    """Returns the state before the first step."""
    params, stats = _init_weights(model, seed)
    return State(
        params=params,
        stats=stats,
        opt_state=tx.init(params),
        key=jax.random.key(seed),
        step=jnp.zeros((), jnp.int32),
        loss=jnp.zeros(()),
        correct=jnp.zeros(()),
    )


def loss_fn(
    params: Tree, stats: Tree, model: Model, inputs: jax.Array, labels: jax.Array
) -> tuple[jax.Array, tuple[Tree, jax.Array]]:
    """Returns the mean cross-entropy of a batch; and the moved statistics and the accuracy."""
    network = nnx.merge(model.graph, params, stats, copy=True)
    logits = network(inputs, train=True)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    accuracy = jnp.mean(logits.argmax(-1) == labels)
    return loss, (nnx.as_pure(nnx.state(network, nnx.Not(nnx.Param))), accuracy)


def train_step(
    model: Model, tx: optax.GradientTransformation, pool: Pool, state: State, batch: Batch
) -> tuple[State, jax.Array]:
    """Takes one training step; returns the new state and the loss.

    The optimizer may use the loss (`value=`, as AdaLoss does) and further gradients on the same
    batch (`grad_fn=`, as SAM and Lookbehind do), which leave the running statistics alone.
    """
    key = jax.random.fold_in(state.key, state.step)
    inputs, labels = model.take(pool, batch, key)

    def loss_at(params: Tree) -> tuple[jax.Array, tuple[Tree, jax.Array]]:
        return loss_fn(params, state.stats, model, inputs, labels)

    def grad_fn(params: Tree, _: int | jax.Array = 0) -> Tree:
        return jax.grad(loss_at, has_aux=True)(params)[0]

    (loss, (moved, correct)), gradients = jax.value_and_grad(loss_at, has_aux=True)(state.params)
    updates, opt_state = optax.with_extra_args_support(tx).update(
        gradients, state.opt_state, state.params, value=loss, grad_fn=grad_fn
    )
    return State(
        params=optax.apply_updates(state.params, updates),
        stats=jax.tree.map(lambda old, new: old if _is_key(old) else new, state.stats, moved),
        opt_state=opt_state,
        key=state.key,
        step=state.step + 1,
        loss=state.loss + loss,
        correct=state.correct + correct,
    ), loss


def eval_step(
    model: Model, pool: Pool, params: Tree, stats: Tree, batch: Batch, counted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the sums of cross-entropy and of accuracy over the examples that count."""
    inputs, labels = model.take(pool, batch)
    logits = nnx.merge(model.graph, params, stats, copy=True)(inputs, train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = logits.argmax(-1) == labels
    # An example with several labels, as a window of text, counts with their mean.
    loss, correct = (x.reshape(len(x), -1).mean(axis=1) for x in (loss, correct))
    return jnp.sum(jnp.where(counted, loss, 0)), jnp.sum(jnp.where(counted, correct, 0))


def statistics_step(
    model: Model, pool: Pool, params: Tree, stats: Tree, batch: Batch, number: jax.Array
) -> Tree:
    """Returns the BatchNorm statistics of a single training batch."""
    inputs, _ = model.take(pool, batch, jax.random.key(number))
    network = nnx.merge(model.forgetful_graph, params, stats, copy=True)
    network(inputs, train=True)
    return nnx.as_pure(nnx.state(network, nnx.Not(nnx.Param)))


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
