"""What a data set is: raw images, labels, and how to standardise pixels."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .batches import batches

# Largest number of images that are evaluated at a time, before rounding up to the devices.
EVAL_BATCH = 2_000
# The same of images that are given another size, as of those of a stream.
LARGE_EVAL_BATCH = 200

# Indices of images in memory, or images with their labels.
Batch = Any


class DataError(Exception):
    """A data set that is missing, unreadable or invalid; the message is one line."""


@dataclass(frozen=True, eq=False, kw_only=True)  # Compared by identity: it holds arrays.
class Data(ABC):
    """A data set, in memory (`Dataset`) or not (`Stream`).

    Both have `image_shape`, `train_size`, `test_size`, `pool`, `train_batches` and
    `eval_batches`, which is all that training needs. Their splits are `train`, `test` and, where
    images are set apart for it, `validation`.

    Attributes:
      name: its key in `data.DATASETS`.
      classes: number of classes.
      mean: float32 of shape (channels,) or (1,), in units of the raw pixels.
      std: like `mean`, the standard deviation.
      white: the largest possible value of a raw pixel.
      augmented: whether training images are cropped and flipped at random in the compiled step.
      unit: what its examples are called in messages and tables.
      image_size: height and width that images are given in the compiled step; None for their own.
    """

    name: str
    classes: int
    mean: np.ndarray
    std: np.ndarray
    white: float = 255.0
    augmented: bool = False
    unit: str = "images"
    image_size: int | None = None

    @property
    def validation_size(self) -> int:
        """Number of images that choose the best epoch; 0 if the test images do."""
        return 0

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return ("train", "test", "validation")[: 3 if self.validation_size else 2]

    @abstractmethod
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits by which a resumed run notices that its data have changed."""

    def standardise(self, images: Any, input_norm: bool = True) -> Any:
        """Raw images as float32 inputs of a network.

        Args:
          images: a JAX array, traced or not, or a NumPy array, of shape
            (..., height, width, channels). The result is of the same kind.
          input_norm: whether to subtract the mean and divide by the standard deviation;
            otherwise pixels are only scaled to between 0 and 1.
        """
        pixels = images.astype(np.float32)
        return (pixels - self.mean) / self.std if input_norm else pixels / np.float32(self.white)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset(Data):
    """Training and test images in memory, with their labels.

    Attributes:
      train_images: raw images of shape (examples, height, width, channels): uint8, or
        float32 from 0 to 16 for the digits.
      train_labels: int32 of shape (examples,), with classes from 0.
      test_images: like `train_images`.
      test_labels: like `train_labels`.
      validation_images: like `train_images`; None for none.
      validation_labels: like `train_labels`; None for none.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    validation_images: np.ndarray | None = None
    validation_labels: np.ndarray | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image, as a network sees it."""
        shape = self.train_images.shape[1:]
        return shape if self.image_size is None else (self.image_size, self.image_size, shape[-1])

    @property
    def train_size(self) -> int:
        """Number of images to train on."""
        return len(self.train_images)

    @property
    def test_size(self) -> int:
        """Number of images to test on."""
        return len(self.test_images)

    @property
    def validation_size(self) -> int:
        """Number of images that choose the best epoch; 0 if the test images do."""
        return 0 if self.validation_images is None else len(self.validation_images)

    def pool(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of a split, into which batches are indices."""
        return getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")

    def train_batches(
        self,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Batches of indices, without end; see `batches`.

        Args:
          seed: of the orders.
          batch_size: number of images per batch and process.
          start_step: number of batches to skip.
          process_index: index of this process, which has this part of each batch.
          process_count: number of processes, which share batches as one process has them.
        """
        own = slice(process_index * batch_size, (process_index + 1) * batch_size)
        for whole in batches(seed, self.train_size, process_count * batch_size, start_step):
            yield whole[own]

    def eval_batches(
        self,
        split: str,
        size: int,
        devices: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """The first images of a split, in batches of equal size, a multiple of the devices.

        Args:
          split: name of the split.
          size: number of images.
          devices: number of devices, those of all processes together.
          process_index: as in `train_batches`.
          process_count: as in `train_batches`.

        Yields:
          Indices, and a mask of those that count: the last batch may be padded.
        """
        del split  # Indices are the same in all.
        largest = EVAL_BATCH if self.image_size is None else LARGE_EVAL_BATCH
        batch_size = -(-min(largest, size) // devices) * devices
        share = batch_size // process_count
        for start in range(process_index * share, size + process_index * share, batch_size):
            indices = np.arange(start, start + share, dtype=np.int32)
            yield np.minimum(indices, size - 1), indices < size

    def fingerprint(self) -> str:
        """Digest of all images and labels, mean and standard deviation; computed once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        arrays = (array for split in self.splits for array in self.pool(split))
        for array in (*arrays, self.mean, self.std):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return digest.hexdigest()

    def with_training_images(self, n: int) -> "Dataset":
        """The same data set with n of the training images, stratified by class.

        The choice is fixed, and every smaller choice is a subset of every larger one. Mean
        and standard deviation remain those of the whole data set.

        Raises:
          DataError: if there are fewer than n, or if a class would have none.
        """
        return self._with_only(self.choice(n))

    def with_held_out(self, n: int) -> "Dataset":
        """The same data set with n of the training images in place of its test images.

        They are those that `with_training_images` would leave out.

        Raises:
          DataError: if too few training images are left for each class to have one.
        """
        return self._with_apart(n, "test")

    def with_validation(self, n: int) -> "Dataset":
        """The same data set with n of the training images as a split of their own.

        They are those that `with_training_images` would leave out.

        Raises:
          DataError: if too few training images are left for each class to have one.
        """
        return self._with_apart(n, "validation")

    def with_image_size(self, size: int) -> "Dataset":
        """The same data set with images that are given another size in the compiled step."""
        return replace(self, image_size=size)

    def _with_apart(self, n: int, split: str) -> "Dataset":
        if not 0 < n < self.train_size:
            raise DataError(
                f"cannot hold out {n} of the {self.train_size:,} training {self.unit} of "
                f"{self.name}"
            )
        chosen = self.choice(self.train_size - n)
        others = np.setdiff1d(np.arange(self.train_size), chosen)
        apart = {
            f"{split}_images": self.train_images[others],
            f"{split}_labels": self.train_labels[others],
        }
        return replace(self._with_only(chosen), **apart)

    def _with_only(self, chosen: np.ndarray) -> "Dataset":
        return replace(
            self,
            train_images=self.train_images[chosen],
            train_labels=self.train_labels[chosen],
        )

    def choice(self, n: int) -> np.ndarray:
        """Indices of n training images, in their order, each class with its share.

        Raises:
          DataError: if there are fewer than n, or if a class would have none.
        """
        labels = self.train_labels
        by_class = np.argsort(labels, kind="stable")
        sizes = np.bincount(labels, minlength=self.classes)
        # An image's place within its class, as a fraction of the class.
        place = np.empty(len(labels))
        place[by_class] = np.concatenate([(np.arange(size) + 0.5) / size for size in sizes])
        chosen = np.sort(np.argsort(place, kind="stable")[: max(n, 0)])
        if len(chosen) != n or set(labels[chosen]) != set(labels):
            raise DataError(
                f"cannot train on {n} images of {self.name}: there are {len(labels):,}, "
                f"in {np.count_nonzero(sizes)} classes that all must have a share"
            )
        return chosen
