"""ImageNet: too large for memory, so read, decoded and cropped in worker processes."""

import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import archives
from .dataset import EVAL_BATCH, Data, DataError

SIZE = 224
TEST_SHORTER_SIDE = 256
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# A random crop has such a part of the image's area, and such a ratio of width to height.
AREAS = (0.08, 1.0)
RATIOS = (3 / 4, 4 / 3)
TRIES = 10

Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False, kw_only=True)
class Stream(Data):
    """Images that are decoded as they are needed, in worker processes.

    Attributes:
      train: the examples to train on, by index: `image`, the bytes of an image file, and
        `label`.
      test: those to test on.
      workers: number of worker processes; with 0 the calling process does their work. A
        program that has any needs the usual `if __name__ == "__main__"`.
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

    def with_training_images(self, n: int) -> "Stream":
        """Refused.

        Raises:
          DataError: always.
        """
        raise DataError(f"{self.name} has no smaller part of {n} images")

    def eval_batches(
        self, split: str, size: int, devices: int
    ) -> Iterator[tuple[Batch, np.ndarray]]:
        """The test images, in batches of one size that so many devices can share.

        Yields:
          Images and labels, and which of them count: the last batch may be filled up.
        """
        del split  # There is no other that is evaluated.
        batch_size = -(-min(EVAL_BATCH // 10, size) // devices) * devices
        for images, labels in self.test_batches(batch_size):
            missing = batch_size - len(labels)
            padded = tuple(
                np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in (images, labels)
            )
            yield padded, np.arange(batch_size) < len(labels)

    def train_batches(
        self,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Batches without end, each image once in every pass, randomly cropped and flipped.

        An image's order, crop and flip depend on the seed and on its position alone, so
        that the batches from `start_step` on are those of a run that was not interrupted,
        with any number of workers. A batch may begin in one pass and end in the next.

        Args:
          seed: of order, crops and flips.
          batch_size: images in a batch of this process.
          start_step: how many batches to pass over, at no cost.
          process_index: which of the processes this is; it has every `process_count`-th
            image from this one on for its own.
          process_count: how many processes train together.

        Yields:
          uint8 images of shape (batch_size, 224, 224, 3), and int32 labels.
        """
        import grain

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
        """Every test image of this process once, in order, its middle cut out.

        Args:
          batch_size: images in a batch of this process; the last may have fewer. There is
            no padding, and nothing is left out.
          process_index: as in `train_batches`.
          process_count: as in `train_batches`. Where it does not divide the number of
            images, some processes have one more than others.

        Yields:
          uint8 images of shape (at most batch_size, 224, 224, 3), and int32 labels.
        """
        import grain

        examples = grain.MapDataset.source(self.test)[process_index::process_count]
        return self._decoded(examples.map(centre_crop).batch(batch_size))

    def _decoded(self, batches: Any) -> Iterator[Batch]:
        import grain
        from absl import flags

        if self.workers and not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Without it Grain's workers do not start.
        # A worker makes whole batches, alone: the order is the same for any number of them.
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        workers = grain.multiprocessing.MultiprocessingOptions(
            num_workers=self.workers, per_worker_buffer_size=2
        )
        return iter(batches.to_iter_dataset(reading).mp_prefetch(workers))


def imagenet(folder: Path | None) -> Stream:
    """ImageNet's 1,000 classes of 2012, through TensorFlow Datasets; validated on to test."""
    splits = archives.sources("imagenet2012", folder, ("train", "validation"), decoded=False)
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
    """A random part of the image, brought to size, and half of the time flipped."""
    image = _opened(example["image"])
    image = image.crop(random_box(*image.size, rng)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels, np.int32(example["label"])


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop.

    Area and logarithm of the ratio are uniform. After ten boxes that do not fit it is the
    largest box in the middle with a ratio that is allowed.
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
    """The middle of the image, brought to 256 pixels on its shorter side."""
    image = _opened(example["image"])
    scale = TEST_SHORTER_SIDE / min(image.size)
    image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - SIZE) // 2 for side in image.size)
    image = image.crop((left, top, left + SIZE, top + SIZE))
    return np.asarray(image), np.int32(example["label"])


def _opened(content: bytes) -> Image.Image:
    """An image file's content, in red, green and blue whatever it is in."""
    return Image.open(io.BytesIO(content)).convert("RGB")
