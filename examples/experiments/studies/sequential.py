"""Tasks that are learnt one after the other, and what is forgotten of the first ones.

    tasks = split_classes(dataset, classes_per_task=2)
    average_accuracy(matrix), forgetting(matrix)

The matrix R has the accuracies: R[i, j] after task i on task j.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

NEVER = -1e9  # A logit of classes that are out of the question.


@dataclass(frozen=True)
class Task:
    """Some of a data set's classes.

    Attributes:
      dataset: the examples of these classes, with the labels and the number of classes of
        the whole set.
      classes: their labels. A network that is told the task chooses among these only.
    """

    dataset: Any
    classes: tuple[int, ...]


def split_classes(dataset: Any, classes_per_task: int = 2) -> list[Task]:
    """The classes of a data set in tasks of equally many, in the order of their labels.

    Digits or Fashion-MNIST make five tasks of two classes.

    Args:
      dataset: a dataclass with arrays `train_images`, `train_labels`, `test_images` and
        `test_labels`, and `classes`, their number.
      classes_per_task: a divisor of that number.
    """
    if classes_per_task < 1 or dataset.classes % classes_per_task:
        raise ValueError(
            f"`classes_per_task` must divide the {dataset.classes} classes, got {classes_per_task}."
        )
    tasks = []
    for first in range(0, dataset.classes, classes_per_task):
        classes = tuple(range(first, first + classes_per_task))
        train, test = (
            np.isin(labels, classes) for labels in (dataset.train_labels, dataset.test_labels)
        )
        part = replace(
            dataset,
            train_images=dataset.train_images[train],
            train_labels=dataset.train_labels[train],
            test_images=dataset.test_images[test],
            test_labels=dataset.test_labels[test],
        )
        tasks.append(Task(part, classes))
    return tasks


class Told(nnx.Module):
    """A network that is told among which classes to choose.

    Attributes:
      network: the network.
      among: is added to its logits: 0 for these classes, a large negative number for others. It
        is stored beside the params, and may change without another compilation.
    """

    def __init__(self, make: Callable[..., nnx.Module], classes: int, *, rngs: nnx.Rngs):
        self.network = make(rngs=rngs)
        self.among = nnx.Variable(jnp.zeros(classes))

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        return self.network(images, train=train) + self.among[...]


def among(chosen: Sequence[int], classes: int) -> jax.Array:
    """Returns what a network is told that is to choose among some of the classes."""
    return jnp.where(jnp.isin(jnp.arange(classes), jnp.asarray(chosen)), 0.0, NEVER)


def average_accuracy(matrix: np.ndarray) -> float:
    """The mean over all tasks of the accuracy after the last one.

    ACC of Lopez-Paz and Ranzato, Gradient Episodic Memory for Continual Learning,
    https://arxiv.org/abs/1706.08840, 2017.
    """
    return float(matrix[-1].mean())


def forgetting(matrix: np.ndarray) -> float:
    """How far tasks have fallen from their best: mean over all but the last task.

    For a task j < T it is the best accuracy after any of the tasks before the last, minus
    the accuracy after the last: max over i < T of R[i, j], minus R[T, j]. Negative where the
    last task has made the others better. The measure of Chaudhry, Dokania, Ajanthan and
    Torr, Riemannian Walk for Incremental Learning, https://arxiv.org/abs/1801.10112, 2018.
    """
    if len(matrix) < 2:
        raise ValueError(f"`matrix` must be of two or more tasks, got {len(matrix)}.")
    return float((matrix[:-1, :-1].max(axis=0) - matrix[-1, :-1]).mean())
