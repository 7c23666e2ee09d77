"""Text in windows of characters, of which each is predicted from those before it."""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .access import errors_as, names_in
from .dataset import DataError, Dataset

# Characters in a window.
WINDOW = 64
# One window in so many, the last ones of a text, are for testing.
TEST_SHARE = 32


@dataclass(frozen=True, eq=False, kw_only=True)
class Text(Dataset):
    """A text as a data set whose "images" are windows, and whose "labels" are the next characters.

    Both have the shape (windows, characters), and are indices into the alphabet: the character
    after `images[i, t]` is `labels[i, t]`. Windows do not overlap; every character is a label once.

    Attributes:
      alphabet: the characters of the whole text, in order.
    """

    alphabet: str
    unit: str = "windows"

    def standardise(self, images: Any, input_norm: bool = True) -> Any:
        """Characters as they are: a network embeds them."""
        del input_norm
        return images

    def with_image_size(self, size: int) -> "Text":
        """Not supported.

        Raises:
          DataError: always.
        """
        raise DataError(f"{self.name} is text, which has no images of {size} pixels")

    def choice(self, n: int) -> np.ndarray:
        """Indices of the first n training windows.

        Raises:
          DataError: if there are fewer.
        """
        if not 0 < n <= self.train_size:
            raise DataError(
                f"cannot train on {n} windows of {self.name}: there are {self.train_size:,}"
            )
        return np.arange(n)


def python_reference(folder: Path | None) -> Text:
    """The reference of the Python language, as `help()` prints it: English that comes with Python.

    Raises:
      DataError: if a folder is given, or this Python comes without it.
    """
    if folder is not None:
        raise DataError("the reference comes with Python and takes no data folder")
    with errors_as("this Python comes without its reference"):
        from pydoc_data.topics import topics
    return in_windows("python_reference", "\n".join(topics[name] for name in sorted(topics)))


def text_files(folder: Path | None) -> Text:
    """All files of a folder that end in `.txt` or `.txt.gz`, one after the other, in UTF-8.

    Raises:
      DataError: if there are none, or one cannot be read.
    """
    if folder is None:
        raise DataError("text needs the folder of its files")
    names = sorted(n for n in names_in(folder) if n.endswith((".txt", ".txt.gz")))
    if not names:
        raise DataError(f"there is no .txt and no .txt.gz in {folder}")
    return in_windows("text", "\n".join(_read(folder / name) for name in names))


def in_windows(name: str, text: str) -> Text:
    """Cuts a text into windows; what is left at its end is not used.

    Raises:
      DataError: if there are too few of them to train and to test on.
    """
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    found, characters = np.unique(points, return_inverse=True)
    count = (len(characters) - 1) // WINDOW
    if count < TEST_SHARE:
        raise DataError(
            f"{name} must have {TEST_SHARE} windows of {WINDOW} characters, got {len(text)} "
            "characters"
        )
    inputs, labels = (
        np.int32(characters[start : start + count * WINDOW]).reshape(count, WINDOW)
        for start in (0, 1)
    )
    train, test = np.split(np.arange(count), [count - count // TEST_SHARE])
    return Text(
        name=name,
        classes=len(found),
        mean=np.zeros(1, np.float32),
        std=np.ones(1, np.float32),
        train_images=inputs[train],
        train_labels=labels[train],
        test_images=inputs[test],
        test_labels=labels[test],
        alphabet="".join(map(chr, found)),
    )


def _read(path: Path) -> str:
    with errors_as(f"{path} cannot be read"):
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
