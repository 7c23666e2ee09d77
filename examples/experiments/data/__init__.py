"""The data sets of the examples, by name: in memory, or as a stream.

`load` returns a `Dataset`, whose raw images are in memory, or for ImageNet a `Stream`, which
decodes them in worker processes. Standardising pixels is part of the compiled step, as is the
augmentation of small images (`data.augment`). Optional packages are imported on use.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import small
from .batches import batches
from .dataset import Data, DataError, Dataset
from .stream import Stream, imagenet

__all__ = ["DATASETS", "Data", "DataError", "Dataset", "Stream", "batches", "find", "load"]

DATASETS: dict[str, Callable[[Path | None], Data]] = {
    "digits": small.digits,
    "mnist": partial(small.mnist, "mnist"),
    "fashion_mnist": partial(small.mnist, "fashion_mnist"),
    "cifar10": partial(small.cifar, "cifar10"),
    "cifar100": partial(small.cifar, "cifar100"),
    "imagenet2012": imagenet,
}


def find(name: str) -> str:
    """The key in `DATASETS` of a name in any spelling: `CIFAR-10`, `FashionMNIST`, `ImageNet`.

    Raises:
      DataError: if there is no such data set.
    """
    known = {_letters(key): key for key in DATASETS} | {"imagenet": "imagenet2012"}
    if _letters(name) not in known:
        raise DataError(f"must be one of {', '.join(DATASETS)}, got {name!r}")
    return known[_letters(name)]


def load(name: str, folder: Path | None = None) -> Data:
    """The data set of that name, in any spelling that `find` knows.

    Args:
      name: of the data set.
      folder: with IDX files, with CIFAR's archives, or with what TensorFlow Datasets
        prepared; by default `~/tensorflow_datasets`. The digits take no folder.

    Raises:
      DataError: if there is no such data set, or it is missing, unreadable or invalid.
    """
    return DATASETS[find(name)](folder)


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
