"""The steps of training and evaluation: pure functions of plain trees.

A network is taken apart once (`nnx.split`). From then on params, running statistics and
optimizer state are plain trees, donated from step to step. Images come raw, as indices into
the training images on the device or as themselves, and are augmented and standardised
inside the compiled step.
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
from experiments.data.augment import crop_and_flip

Tree = Any
# Indices into a pool, or images with their labels; and the images and labels of that pool,
# empty where batches bring their own.
Batch = Any
Pool = tuple[jax.Array, ...]


@dataclass(frozen=True, eq=False)  # Told apart by identity, which is quick to compare.
class Model:
    """A network without its weights, and what becomes of an image before it sees it.

    Attributes:
      make: the network's constructor, with all but `rngs` given.
      dataset: knows how to standardise its images.
      input_norm: whether images are standardised channel by channel, or only scaled to [0, 1].
    """

    make: Callable[..., nnx.Module]
    dataset: Data
    input_norm: bool = True

    @functools.cached_property
    def graph(self) -> nnx.GraphDef:
        """What `nnx.merge` needs besides the weights."""
        return nnx.split(self._abstract())[0]

    @functools.cached_property
    def forgetful_graph(self) -> nnx.GraphDef:
        """The same with running statistics that are those of the last batch alone."""
        model = self._abstract()
        for _, module in nnx.iter_graph(model):
            if isinstance(module, nnx.BatchNorm):
                module.momentum = 0.0
        return nnx.split(model)[0]

    def take(
        self, pool: Pool, batch: Batch, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """What the network gets of a batch, and its labels.

        Args:
          pool: images and labels that a batch names, or empty.
          batch: indices into the pool, or images and labels.
          key: what the images of a pool are augmented by, if they are; None for them as they are.
        """
        if not pool:
            images, labels = batch
        else:
            images, labels = pool[0], pool[1][batch]
            augmented = self.dataset.augmented and key is not None
            images = crop_and_flip(key, images, batch) if augmented else images[batch]
        return self.dataset.standardise(images, self.input_norm), labels

    def _abstract(self) -> nnx.Module:
        return nnx.eval_shape(lambda: self.make(rngs=nnx.Rngs(0)))


class State(NamedTuple):
    """What a training step takes and returns; all of a run that changes.

    Attributes:
      params: the weights that are trained; of a lookahead the fast ones.
      stats: all else in the network: means and variances of batch normalisation, and the
        random streams of dropout.
      opt_state: the optimizer's state, with the slow weights if there are any.
      key: random key of the run, from which each step takes its own.
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
    """Params and statistics at the beginning, a function of the seed alone."""
    # Of JAX's generators the one that compiles in a few seconds less.
    rngs = nnx.Rngs(jax.random.key(seed, impl="rbg"))
    _, params, stats = nnx.split(model.make(rngs=rngs), nnx.Param, ...)
    return nnx.as_pure(params), nnx.as_pure(stats)


_init_weights = jax.jit(init_weights, static_argnums=0)


def init_state(model: Model, tx: optax.GradientTransformation, seed: int) -> State:
    """The state before the first step."""
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
    """Mean cross-entropy of a batch; the statistics as it moves them, and the accuracy."""
    network = nnx.merge(model.graph, params, stats, copy=True)
    logits = network(inputs, train=True)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    accuracy = jnp.mean(logits.argmax(-1) == labels)
    return loss, (nnx.as_pure(nnx.state(network, nnx.Not(nnx.Param))), accuracy)


def train_step(
    model: Model, tx: optax.GradientTransformation, pool: Pool, state: State, batch: Batch
) -> tuple[State, jax.Array]:
    """One batch, one update; returns the loss beside the new state.

    The optimizer may ask for the loss (`value=`, as AdaLoss does) and for further gradients on
    the same batch (`grad_fn=`, as SAM and Lookbehind do). Those leave the statistics alone.
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


def train_steps(
    model: Model, tx: optax.GradientTransformation, pool: Pool, state: State, batches: Batch
) -> tuple[State, jax.Array]:
    """One step for each of the batches, which have a leading axis; returns all losses."""
    step = functools.partial(train_step, model, tx, pool)
    if len(jax.tree.leaves(batches)[0]) == 1:
        # No loop around a single step: XLA's convolutions on CPU are slow inside one.
        state, loss = step(state, jax.tree.map(lambda x: x[0], batches))
        return state, loss[None]
    return jax.lax.scan(step, state, batches)


def eval_step(
    model: Model, pool: Pool, params: Tree, stats: Tree, batch: Batch, counted: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The sums of the cross-entropy and of the correct answers, over those that count."""
    inputs, labels = model.take(pool, batch)
    logits = nnx.merge(model.graph, params, stats, copy=True)(inputs, train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = logits.argmax(-1) == labels
    return jnp.sum(jnp.where(counted, loss, 0)), jnp.sum(counted & correct)


def statistics_step(
    model: Model, pool: Pool, params: Tree, stats: Tree, batch: Batch, number: jax.Array
) -> Tree:
    """What a training batch alone would have batch normalisation remember."""
    inputs, _ = model.take(pool, batch, jax.random.key(number))
    network = nnx.merge(model.forgetful_graph, params, stats, copy=True)
    network(inputs, train=True)
    return nnx.as_pure(nnx.state(network, nnx.Not(nnx.Param)))


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
