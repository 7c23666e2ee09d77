"""ImageNet, too large for memory: worker processes read, decode and crop its images."""

import hashlib
import io
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import archives
from .access import errors_as, imports, root_of
from .dataset import LARGE_EVAL_BATCH, Data, DataError

if TYPE_CHECKING:
    from types import ModuleType

    from PIL import Image

SIZE = 224
TEST_SHORTER_SIDE = 256
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Ranges of a random crop's share of the image's area and of its ratio of width to height.
AREAS = (0.08, 1.0)
RATIOS = (3 / 4, 4 / 3)
TRIES = 10

Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False, kw_only=True)
class Stream(Data):
    """Images that are decoded as they are needed, in worker processes.

    Attributes:
      train: the training examples by index: `image`, the bytes of an image file, and `label`.
      test: the test examples.
      workers: number of worker processes; with 0 the calling process does their work. A
        program with workers needs the usual `if __name__ == "__main__"`.
    """

    train: Sequence[dict[str, Any]]
    test: Sequence[dict[str, Any]]
    workers: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image in a batch."""
        return SIZE, SIZE, 3

    @property
    def train_size(self) -> int:
        """Number of images to train on."""
        return len(self.train)

    @property
    def test_size(self) -> int:
        """Number of images to test on."""
        return len(self.test)

    def pool(self, split: str) -> tuple[()]:
        """Nothing: batches bring their own images."""
        del split
        return ()

    def fingerprint(self) -> str:
        """Digest of the name, the numbers of examples, and each split's first and last example.

        It does not cover the other examples: reading all of ImageNet takes too long.

        Raises:
          DataError: if an example cannot be read.
        """
        digest = hashlib.blake2b(self.name.encode(), digest_size=8)
        for source in (self.train, self.test):
            digest.update(f" {len(source)}".encode())
            for i in (0, -1) if len(source) else ():
                with errors_as(f"{self.name} cannot be read"):
                    example = source[i % len(source)]
                digest.update(f" {example['label']} {len(example['image'])} ".encode())
                digest.update(example["image"])
        return digest.hexdigest()

    def with_training_images(self, n: int) -> "Stream":
        """Not supported.

        Raises:
          DataError: always.
        """
        raise DataError(f"{self.name} has no smaller part of {n} images")

    def with_held_out(self, n: int) -> "Stream":
        """Not supported.

        Raises:
          DataError: always.
        """
        raise DataError(f"{self.name} is a stream, of which no {n} images can be held out")

    with_validation = with_held_out

    def with_image_size(self, size: int) -> "Stream":
        """Not supported.

        Raises:
          DataError: always.
        """
        raise DataError(f"images of {self.name} have {SIZE} pixels a side, and cannot have {size}")

    def eval_batches(
        self,
        split: str,
        size: int,
        devices: int,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """The test images, in batches of equal size, a multiple of the number of devices.

        Args:
          split: name of the split.
          size: number of images.
          devices: number of devices, those of all processes together.
          process_index: as in `train_batches`.
          process_count: as in `train_batches`. All processes have equally many batches.

        Yields:
          Images and labels, and a mask of those that count: the last batches may be padded.
        """
        del split  # Only `test` is evaluated.
        share = -(-min(LARGE_EVAL_BATCH, size) // devices) * devices // process_count
        nothing = np.zeros((0, *self.image_shape), np.uint8), np.zeros(0, np.int32)
        own = itertools.chain(
            self.test_batches(share, process_index, process_count), itertools.repeat(nothing)
        )
        for images, labels in itertools.islice(own, -(-size // (share * process_count))):
            missing = share - len(labels)
            padded = tuple(
                np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in (images, labels)
            )
            yield padded, np.arange(share) < len(labels)

    def train_batches(
        self,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Batches without end: each image once per epoch, randomly cropped and flipped.

        The order, crops and flips depend only on the seed and on the position in the
        stream, whatever the number of workers, so a resumed run gets the batches of an
        uninterrupted one. A batch may span two epochs.

        Args:
          seed: of the order, crops and flips.
          batch_size: number of images per batch and process.
          start_step: number of batches to skip, at no cost.
          process_index: index of this process, which reads every `process_count`-th image,
            starting at this index.
          process_count: number of processes that train together.

        Yields:
          uint8 images of shape (batch_size, 224, 224, 3), and int32 labels.

        Raises:
          DataError: if Grain is not installed.
        """
        grain = _grain()
        # Processes with the same seed would crop their images alike.
        own_seed = int(np.random.SeedSequence([seed, process_index]).generate_state(1)[0])
        examples = (
            grain.MapDataset.source(self.train)[process_index::process_count]
            .seed(own_seed)
            .shuffle()
            .repeat()
            .random_map(random_crop)
            .batch(batch_size)
        )
        return self._decoded(examples[start_step:])

    def test_batches(
        self, batch_size: int, process_index: int = 0, process_count: int = 1
    ) -> Iterator[Batch]:
        """The centre crop of every test image of this process, once and in order.

        Args:
          batch_size: number of images per batch and process; the last batch may have fewer.
          process_index: as in `train_batches`.
          process_count: as in `train_batches`. If it does not divide the number of images,
            some processes have one more than others.

        Yields:
          uint8 images of shape (at most batch_size, 224, 224, 3), and int32 labels.

        Raises:
          DataError: if Grain is not installed.
        """
        grain = _grain()
        examples = grain.MapDataset.source(self.test)[process_index::process_count]
        return self._decoded(examples.map(centre_crop).batch(batch_size))

    def _decoded(self, batches: Any) -> Iterator[Batch]:
        from absl import flags  # Grain depends on it.

        grain = _grain()
        if self.workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Without it Grain's workers do not start.
        # Each worker makes whole batches, so the order is the same for any number of workers.
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        workers = grain.multiprocessing.MultiprocessingOptions(
            num_workers=self.workers, per_worker_buffer_size=2
        )
        return iter(batches.to_iter_dataset(reading).mp_prefetch(workers))


def imagenet(folder: Path | None) -> Stream:
    """ImageNet 2012 through TensorFlow Datasets, with its validation split as the test split.

    Raises:
      DataError: if it is not there, or cannot be read.
    """
    splits = archives.sources(
        "imagenet2012", root_of(folder), ("train", "validation"), decoded=False
    )
    return Stream(
        name="imagenet2012",
        classes=1000,
        mean=np.float32(MEAN) * np.float32(255),
        std=np.float32(STD) * np.float32(255),
        train=splits["train"],
        test=splits["validation"],
        workers=os.cpu_count() or 1,
    )


def random_crop(example: dict[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.int32]:
    """A random crop of the image, resized to 224×224, and flipped half of the time.

    Raises:
      DataError: if Pillow is not installed.
    """
    image = _opened(example["image"])
    image = _resized(image.crop(random_box(*image.size, rng)), (SIZE, SIZE))
    pixels = np.asarray(image)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels, np.int32(example["label"])


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop.

    The area and the logarithm of the ratio are drawn uniformly. After ten boxes that do not
    fit, it is the largest centred box with an allowed ratio.
    """
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREAS)
        ratio = math.exp(rng.uniform(*np.log(RATIOS)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return int(left), int(top), int(left) + w, int(top) + h
    w, h = min(width, round(height * RATIOS[1])), min(height, round(width / RATIOS[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def centre_crop(example: dict[str, Any]) -> tuple[np.ndarray, np.int32]:
    """The centre crop of the image, resized to 256 pixels on its shorter side.

    Raises:
      DataError: if Pillow is not installed.
    """
    image = _opened(example["image"])
    scale = TEST_SHORTER_SIDE / min(image.size)
    image = _resized(image, [round(scale * side) for side in image.size])
    left, top = ((side - SIZE) // 2 for side in image.size)
    image = image.crop((left, top, left + SIZE, top + SIZE))
    return np.asarray(image), np.int32(example["label"])


def _opened(content: bytes) -> "Image.Image":
    """The image in a file's content, converted from any colour mode to RGB."""
    return _pillow().open(io.BytesIO(content)).convert("RGB")


def _resized(image: "Image.Image", size: Sequence[int]) -> "Image.Image":
    return image.resize(size, _pillow().Resampling.BILINEAR)


def _pillow() -> "ModuleType":
    with imports("imagenet2012", "tfds"):
        from PIL import Image
    return Image


def _grain() -> "ModuleType":
    with imports("imagenet2012", "tfds"):
        import grain
    return grain
