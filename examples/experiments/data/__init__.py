"""The data sets of the examples, by name: in memory, or as a stream.

`load` returns a `Dataset`, whose raw images are in memory, or for ImageNet a `Stream`, which
decodes them in worker processes; a text is a `Text`, a `Dataset` of characters, and names of
people are `Names`. Standardising pixels is part of the compiled step, as is the augmentation of
small images (`data.augment`). Optional packages are imported on use.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from experiments import names

from . import small, text
from .batches import batches
from .dataset import Data, DataError, Dataset
from .person_names import Names, person_names
from .stream import Stream, imagenet
from .text import Text

__all__ = [
    "ALIASES",
    "DATASETS",
    "Data",
    "DataError",
    "Dataset",
    "Names",
    "Stream",
    "Text",
    "batches",
    "load",
]

DATASETS: dict[str, Callable[[Path | None], Data]] = {
    "digits": small.digits,
    "mnist": partial(small.mnist, "mnist"),
    "fashion_mnist": partial(small.mnist, "fashion_mnist"),
    "cifar10": partial(small.cifar, "cifar10"),
    "cifar100": partial(small.cifar, "cifar100"),
    "imagenet2012": imagenet,
    "names": person_names,
    "python_reference": text.python_reference,
    "text": text.text_files,
}

# Names beside these; upper and lower case, hyphens and underscores make no difference in either.
ALIASES = {"imagenet": "imagenet2012"}


def load(name: str, folder: Path | None = None) -> Data:
    """Loads the data set of that name, in any spelling.

    Args:
      name: of the data set.
      folder: with IDX files, with CIFAR's archives, with files of text, or with what
        TensorFlow Datasets prepared, by default `~/tensorflow_datasets`. The digits, the
        names and the reference of Python take no folder.

    Raises:
      DataError: if there is no such data set, or it is missing, unreadable or invalid.
    """
    try:
        key = names.find(name, DATASETS, ALIASES)
    except ValueError as error:
        raise DataError(str(error)) from error
    return DATASETS[key](folder)
