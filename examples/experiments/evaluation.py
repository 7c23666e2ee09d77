"""Evaluation: of the slow weights where there are any, and of the fast ones beside them.

BatchNorm's running statistics are those of the fast weights, as in the code released with the
paper. Recalibrated statistics are those of the slow weights: means over some training batches.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import processes
from experiments.data import Data
from experiments.devices import Steps
from experiments.steps import Pool, State, Tree

RECALIBRATION_BATCHES = 20

Score = tuple[np.ndarray, np.ndarray]
SlowParams = Callable[[optax.OptState, optax.Params], optax.Params]


def evaluate(
    steps: Steps,
    pools: dict[str, Pool],
    dataset: Data,
    state: State,
    slow_params: SlowParams | None,
    recalibration: Callable[[], Iterator[Any]] | None = None,
) -> dict[str, np.ndarray]:
    """Returns losses and accuracies, each with an axis of seeds.

    Args:
      steps: the compiled steps.
      pools: images and labels on the devices, by the names of the splits; empty for a stream.
      dataset: the data to evaluate on.
      state: the state to evaluate, as `steps.train` has returned it.
      slow_params: reads the slow weights from optimizer state and params; None if the params
        themselves are the weights to evaluate.
      recalibration: makes an iterator over training batches for `steps.statistics`; None for no
        recalibration.

    Returns:
      `test_loss` and `test_accuracy`; `fast_test_accuracy` where there are slow weights, and
      `recalibrated_test_accuracy` where there is a `recalibration`; `validation_loss` and
      `validation_accuracy` where there are validation images; `train_loss` unless the data
      are a stream, of at most as many training images as there are to test on, so that on a
      large data set evaluation does not take longer than training.
    """
    params = state.params
    if slow_params is not None:
        params = jax.jit(slow_params)(state.opt_state, state.params)
    size = dataset.test_size
    measured = {}
    if pools["train"]:
        part = min(size, dataset.train_size)
        measured["train_loss"], _ = score(steps, pools, dataset, "train", part, params, state.stats)
    measured["test_loss"], measured["test_accuracy"] = score(
        steps, pools, dataset, "test", size, params, state.stats
    )
    if validation_size := dataset.validation_size:
        measured["validation_loss"], measured["validation_accuracy"] = score(
            steps, pools, dataset, "validation", validation_size, params, state.stats
        )
    if slow_params is not None:
        _, measured["fast_test_accuracy"] = score(
            steps, pools, dataset, "test", size, state.params, state.stats
        )
    if recalibration is not None:
        stats = recalibrated(steps, pools["train"], params, state.stats, recalibration())
        _, measured["recalibrated_test_accuracy"] = score(
            steps, pools, dataset, "test", size, params, stats
        )
    return measured


def score(
    steps: Steps,
    pools: dict[str, Pool],
    dataset: Data,
    split: str,
    size: int,
    params: Tree,
    stats: Tree,
) -> Score:
    """Returns mean loss and accuracy over the first `size` examples of a split."""
    sums = [
        steps.get_sums(
            steps.evaluate(
                pools[split], params, stats, steps.put_batch(batch), steps.put_batch(counted)
            )
        )
        for batch, counted in dataset.eval_batches(split, size, steps.count, *processes.share())
    ]
    loss, accuracy = (np.sum(part, axis=0) / size for part in zip(*sums, strict=True))
    return loss, accuracy


def recalibrated(
    steps: Steps, pool: Pool, params: Tree, stats: Tree, batches: Iterator[Any]
) -> Tree:
    """Returns BatchNorm statistics that are means over training batches."""
    mean, seen = stats, 0
    for batch in batches:
        new = steps.statistics(pool, params, stats, batch, seen)
        seen += 1
        mean = jax.tree.map(functools.partial(_running_mean, seen), mean, new)
    if seen == 0:
        raise ValueError("there are no batches to recalibrate on")
    return mean


def _running_mean(seen: int, mean: jax.Array, x: jax.Array) -> jax.Array:
    return mean + (x - mean) / seen if jnp.issubdtype(x.dtype, jnp.floating) else mean
