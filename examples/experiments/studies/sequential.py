"""Learning one task after the other, and what is forgotten of the first ones.

    tasks = split_classes(dataset, classes_per_task=2)
    matrix, weights = learn(tasks, weights, train, accuracy)
    average_accuracy(matrix), forgetting(matrix)

The training comes as a function, so any optimizer and any loop will do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

Weights = TypeVar("Weights")


@dataclass(frozen=True)
class Task:
    """Some of a data set's classes.

    Attributes:
      dataset: the examples of these classes, with the labels and the number of classes of
        the whole set.
      classes: their labels. Whoever is told the task may choose among them only.
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


def learn(
    tasks: Sequence[Task],
    weights: Weights,
    train: Callable[[Weights, Task], Weights],
    accuracy: Callable[[Weights, Task], float],
) -> tuple[np.ndarray, Weights]:
    """Trains on one task after the other, and tests on all after each.

    Args:
      tasks: the tasks, in the order in which they are learnt.
      weights: what the training starts from.
      train: takes what the last task has left, and a task; returns what this one leaves.
      accuracy: of such weights on a task's test examples.

    Returns:
      The matrix R of accuracies, R[i, j] after task i on task j; and the last weights.
    """
    matrix = np.empty((len(tasks), len(tasks)))
    for i, learnt in enumerate(tasks):
        weights = train(weights, learnt)
        matrix[i] = [accuracy(weights, task) for task in tasks]
    return matrix, weights


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
