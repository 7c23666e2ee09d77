"""The recipes of `reproduce.py`: a small file for each entry of the paper's Table 3, and of ours.

Other programs have recipes here as well: `adaloss`, `lookbehind`, `language_model` and
`image_classifier`.

A file opens with paper, command, expected time and accuracy, and ends with `CONFIGS`, a
configuration for each row of the table. A recipe is called by its file's name; a column of the
table, all recipes of a data set, by the data set's.
"""

import importlib

from experiments.config import Config
from experiments.configs.table3 import ROWS, SOURCES, published, rows, sources
from experiments.data import ALIASES, DATASETS
from experiments.names import find as find_name

__all__ = ["RECIPES", "ROWS", "SOURCES", "configs", "find", "published", "rows", "sources"]

RECIPES = (
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


def configs(recipe: str) -> dict[str, Config]:
    """Returns the configurations of a recipe, by the rows of the table."""
    return importlib.import_module(f"experiments.configs.{recipe}").CONFIGS


def find(name: str) -> tuple[str, ...]:
    """Returns the recipes of that name: one, or all of a data set.

    Raises:
      ValueError: if there is no such recipe and no such data set.
    """
    if name in RECIPES:
        return (name,)
    try:
        dataset = find_name(name, DATASETS, ALIASES)
    except ValueError:
        dataset = None
    found = tuple(r for r in RECIPES if configs(r)["SGD"].dataset == dataset)
    if not found:
        raise ValueError(
            f"must be one of {', '.join(RECIPES)}, or a data set for all its recipes, got {name!r}"
        )
    return found
