"""The data sets that are small enough to be held in memory."""

from pathlib import Path

import numpy as np

from . import archives
from .access import imports, root_of
from .cifar import read_cifar
from .dataset import DataError, Dataset
from .idx import has_idx, read_idx_folder

DIGITS_TRAIN = 600
DIGITS_WHITE = 16.0

# Mean and deviation of the pixels of each channel, as fractions of white, and the number
# of classes: constants of the SLRLA paper's released code.
CIFAR = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), 10),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), 100),
}


def digits(folder: Path | None) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels, which come with it.

    The split is the same in every run, with each digit's share alike in both parts. Only
    a third is for training, so that a comparison has errors to count.

    Raises:
      DataError: if a folder is given, or scikit-learn is not installed.
    """
    if folder is not None:
        raise DataError("the digits come with scikit-learn and take no data folder")
    with imports("digits", "examples"):
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    bunch = load_digits()
    train_images, test_images, train_labels, test_labels = train_test_split(
        np.float32(bunch.images[..., None]),
        np.int32(bunch.target),
        train_size=DIGITS_TRAIN,
        stratify=bunch.target,
        random_state=0,
    )
    parts = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
    return _with_own_statistics("digits", parts, white=DIGITS_WHITE)


def mnist(name: str, folder: Path | None) -> Dataset:
    """MNIST or Fashion-MNIST: from a folder of IDX files, else through TensorFlow Datasets.

    Raises:
      DataError: if there is neither, or what is there cannot be read.
    """
    root = root_of(folder)
    parts = read_idx_folder(root) if has_idx(root) else archives.read(name, root)
    return _with_own_statistics(name, parts)


def cifar(name: str, folder: Path | None) -> Dataset:
    """CIFAR-10 or CIFAR-100: from its archive, else through TensorFlow Datasets.

    Raises:
      DataError: if there is neither, or what is there cannot be read.
    """
    root = root_of(folder)
    mean, std, classes = CIFAR[name]
    return Dataset(
        name=name,
        classes=classes,
        mean=np.float32(mean) * np.float32(255),
        std=np.float32(std) * np.float32(255),
        augmented=True,
        **_arrays(read_cifar(name, root, classes) or archives.read(name, root)),
    )


def _with_own_statistics(
    name: str, parts: dict[str, tuple[np.ndarray, np.ndarray]], white: float = 255.0
) -> Dataset:
    """Ten classes, standardised by the mean and standard deviation of all training pixels."""
    pixels = np.float32(parts["train"][0])
    return Dataset(
        name=name,
        classes=10,
        mean=pixels.mean(keepdims=True).reshape(1),
        std=pixels.std(keepdims=True).reshape(1),
        white=white,
        **_arrays(parts),
    )


def _arrays(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        "train_images": parts["train"][0],
        "train_labels": np.int32(parts["train"][1]),
        "test_images": parts["test"][0],
        "test_labels": np.int32(parts["test"][1]),
    }
