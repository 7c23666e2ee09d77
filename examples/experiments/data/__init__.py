"""The data sets of the examples, by name: in memory, or as a stream.

`load` returns a `Dataset`, whose images are in memory as they were taken, or for
ImageNet a `Stream`, which decodes them in worker processes. Both say how their pixels are
standardised, which is part of the compiled step, as is the augmentation of small images
(`data.augment`). What only some data sets need is imported when one of them is asked for.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .batches import batches
from .dataset import Data, DataError, Dataset
from .small import cifar, digits, mnist
from .stream import Stream, imagenet

__all__ = ["DATASETS", "Data", "DataError", "Dataset", "Stream", "batches", "find", "load"]

DATASETS: dict[str, Callable[[Path | None], Data]] = {
    "digits": digits,
    "mnist": partial(mnist, "mnist"),
    "fashion_mnist": partial(mnist, "fashion_mnist"),
    "cifar10": partial(cifar, "cifar10"),
    "cifar100": partial(cifar, "cifar100"),
    "imagenet2012": imagenet,
}


def find(name: str) -> str:
    """A data set's name as it is in `DATASETS`, for `CIFAR-10`, `FashionMNIST` or `ImageNet`.

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
      folder: where its files are: IDX files, or the folder in which TensorFlow Datasets
        keeps what it prepared (by default the one it has in the home folder). The digits
        take none.

    Raises:
      DataError: if it is not there, or is not what it should be.
    """
    return DATASETS[find(name)](folder)


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
