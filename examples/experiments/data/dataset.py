"""What a data set is: images as they were taken, labels, and how to standardise pixels."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .batches import batches

# So many images at a time are evaluated.
EVAL_BATCH = 2_000

# Indices of images in memory, or images with their labels.
Batch = Any


class DataError(Exception):
    """A data set that is not where it should be, or not what it should be."""


@dataclass(frozen=True, eq=False, kw_only=True)  # Told apart by identity, as arrays are in it.
class Data:
    """A data set, in memory (`Dataset`) or not (`Stream`).

    Either has `image_shape`, `train_size`, `test_size`, `pool`, `train_batches` and
    `eval_batches`, so that training asks for no more.

    Attributes:
      name: as in `data.DATASETS`.
      classes: number of classes.
      mean: float32 of shape (channels,) or (1,), in units of the raw pixels.
      std: like `mean`, the standard deviation.
      white: the largest value that a raw pixel can have.
      augmented: whether training images are cropped and flipped at random in the compiled step.
    """

    name: str
    classes: int
    mean: np.ndarray
    std: np.ndarray
    white: float = 255.0
    augmented: bool = False

    def standardise(self, images: Any, input_norm: bool = True) -> Any:
        """Raw images as a network takes them, in float32.

        Args:
          images: of shape (..., height, width, channels); a JAX array, traced or not, or
            one of NumPy. So is the result.
          input_norm: if true, the mean is subtracted and the result divided by the
            standard deviation; if false, pixels are only scaled to between 0 and 1.
        """
        pixels = images.astype(np.float32)
        return (pixels - self.mean) / self.std if input_norm else pixels / np.float32(self.white)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(Data):
    """Images to train and to test on in memory, and the labels of both.

    Attributes:
      train_images: of shape (examples, height, width, channels), as they were taken:
        uint8, or float32 from 0 to 16 for the digits.
      train_labels: int32 of shape (examples,), classes counted from 0.
      test_images: like `train_images`.
      test_labels: like `train_labels`.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.train_images.shape[1:]

    @property
    def train_size(self) -> int:
        """Number of images to train on."""
        return len(self.train_images)

    @property
    def test_size(self) -> int:
        """Number of images to test on."""
        return len(self.test_images)

    def pool(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of `train` or `test`, which batches name by index."""
        if split == "train":
            return self.train_images, self.train_labels
        return self.test_images, self.test_labels

    def train_batches(self, seed: int, batch_size: int, start_step: int = 0) -> Iterator[Batch]:
        """Indices of one batch after the other, without end; see `batches`."""
        return batches(seed, self.train_size, batch_size, start_step)

    def eval_batches(
        self, split: str, size: int, devices: int
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """The first images of a split, in batches of one size that so many devices can share.

        Yields:
          Indices, and which of them count: the last batch may be filled up.
        """
        del split  # Indices are the same in both.
        batch_size = -(-min(EVAL_BATCH, size) // devices) * devices
        for start in range(0, size, batch_size):
            indices = np.arange(start, start + batch_size, dtype=np.int32)
            yield np.minimum(indices, size - 1), indices < size

    def with_training_images(self, n: int) -> "Dataset":
        """The same with n of the training images, each class with its share of them.

        The choice is fixed, and a smaller one is part of every larger one. Mean and
        standard deviation stay those of the whole data set.

        Raises:
          DataError: if there are not so many, or if a class would be left without any.
        """
        labels = self.train_labels
        by_class = np.argsort(labels, kind="stable")
        sizes = np.bincount(labels, minlength=self.classes)
        # In which place an image comes within its class, as a fraction of the class.
        place = np.empty(len(labels))
        place[by_class] = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
        chosen = np.sort(np.argsort(place, kind="stable")[: max(n, 0)])
        if len(chosen) != n or set(labels[chosen]) != set(labels):
            raise DataError(
                f"cannot train on {n} images of {self.name}: there are {len(labels):,}, "
                f"in {np.count_nonzero(sizes)} classes that all must have a share"
            )
        return replace(self, train_images=self.train_images[chosen], train_labels=labels[chosen])
