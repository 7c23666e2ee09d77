"""The data sets of the examples, as arrays in memory."""

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

DIGITS_TRAIN = 600
IDX_DIMENSIONS = {"images": 3, "labels": 1}


class DataError(Exception):
    """A data set that is not where it should be, or not what it should be."""


@dataclass(frozen=True)
class Dataset:
    """Images to train and to test on, and the labels of both.

    Attributes:
      train_images: float32 of shape (examples, height, width, channels), as the other
        images standardised with the mean and the deviation of the training pixels.
      train_labels: int32 of shape (examples,), classes counted from 0.
      test_images: like `train_images`.
      test_labels: like `train_labels`.
      classes: number of classes.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.train_images.shape[1:]


def digits(folder: Path | None) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels, which come with it.

    The split is the same in every run, with each digit's share alike in both parts. Only
    a third is for training, so that a comparison has errors to count.
    """
    if folder is not None:
        raise DataError("the digits come with scikit-learn and take no data folder")
    bunch = load_digits()
    train_images, test_images, train_labels, test_labels = train_test_split(
        bunch.images[..., None],
        bunch.target,
        train_size=DIGITS_TRAIN,
        stratify=bunch.target,
        random_state=0,
    )
    return _standardised(train_images, train_labels, test_images, test_labels, classes=10)


def idx_folder(folder: Path | None) -> Dataset:
    """MNIST, or a data set in its format: four IDX files, gzipped or not, in a folder."""
    if folder is None:
        raise DataError("mnist and fashion_mnist need the folder with their IDX files")
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    parts = {
        f"{split}_{kind}": read_idx(
            _either(folder, f"{prefix}-{kind}-idx{dimensions}-ubyte"), dimensions
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
        for kind, dimensions in IDX_DIMENSIONS.items()
    }
    for split in ("train", "test"):
        images, labels = parts[f"{split}_images"], parts[f"{split}_labels"]
        if len(images) != len(labels):
            raise DataError(
                f"{folder} has {len(images)} images but {len(labels)} labels to {split} on"
            )
        if len(images) == 0 or labels.max() > 9:
            raise DataError(f"{folder} should have labels from 0 to 9 to {split} on")
    if parts["train_images"].shape[1:] != parts["test_images"].shape[1:]:
        raise DataError(f"{folder} has training and test images of different sizes")
    return _standardised(
        parts["train_images"][..., None],
        parts["train_labels"],
        parts["test_images"][..., None],
        parts["test_labels"],
        classes=10,
    )


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array in an IDX file of unsigned bytes.

    Two zero bytes, the type (8 for unsigned bytes) and the number of dimensions; then
    each dimension as a big-endian 32-bit number; then the bytes, last dimension first.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        plural = "dimension" if dimensions == 1 else "dimensions"
        raise DataError(f"{path} is not an IDX file of bytes in {dimensions} {plural}")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", dimensions, offset=4))
    wanted = int(np.prod(shape, dtype=object))
    if len(content) - header != wanted:
        raise DataError(
            f"{path} should hold {wanted:,} bytes after its header, not {len(content) - header:,}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": digits,
    "mnist": idx_folder,
    "fashion_mnist": idx_folder,
}


def _either(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.exists():
            return path
    raise DataError(f"{folder} has neither {name}.gz nor {name}")


def _standardised(
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
) -> Dataset:
    train_images, test_images = np.float32(train_images), np.float32(test_images)
    mean, deviation = train_images.mean(), train_images.std()
    return Dataset(
        train_images=(train_images - mean) / deviation,
        train_labels=np.int32(train_labels),
        test_images=(test_images - mean) / deviation,
        test_labels=np.int32(test_labels),
        classes=classes,
    )
