"""The recipes of `reproduce.py`: a small file for each cell of the paper's Table 3, and of ours.

A file opens with paper, command, expected time and accuracy, and ends with a `Recipe`. Cells
are called by their file's name, columns by their data set's.
"""

import importlib

from experiments import data
from experiments.configs.common import OPTIMIZERS, SOURCES, Recipe, published
from experiments.data import DataError

__all__ = ["CELLS", "OPTIMIZERS", "SOURCES", "Recipe", "find", "published", "recipe"]

CELLS = (
    "cifar10_resnet18",
    "cifar10_vgg16",
    "cifar10_wrn16_10",
    "cifar100_resnet18",
    "cifar100_vgg16",
    "cifar100_wrn16_10",
    "imagenet_resnet18",
    "fashion_mnist_resnet",
    "fashion_mnist_vgg",
    "digits_softmax",
)


def recipe(cell: str) -> Recipe:
    """The recipe of a cell."""
    return importlib.import_module(f"experiments.configs.{cell}").RECIPE


def find(name: str) -> tuple[str, ...]:
    """The cells of that name: one, or all of a column, which has the name of its data set.

    Raises:
      ValueError: if there is no such cell and no such column.
    """
    if name in CELLS:
        return (name,)
    try:
        column = data.find(name)
    except DataError:
        column = None
    cells = tuple(cell for cell in CELLS if recipe(cell).dataset == column)
    if not cells:
        raise ValueError(
            f"must be one of {', '.join(CELLS)}, or a data set's name for all its cells, "
            f"got {name!r}"
        )
    return cells
