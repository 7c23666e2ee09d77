"""CIFAR-10 and CIFAR-100 as published: Python or binary archives, packed or unpacked."""

import io
import pickle
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .access import errors_as, names_in
from .dataset import DataError

SIZE = 32
PIXELS = 3 * SIZE * SIZE
CHUNK = 2**20

# Whatever else a pickle asks for could run code.
ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


@dataclass(frozen=True)
class Archive:
    """Names within one of the archives.

    Attributes:
      file: the archive's own name.
      folder: the folder in it.
      train: the files to train on, in order.
      test: the file to test on.
      labels: the labels' name in a pickle, or how many bytes of labels a binary record
        begins with, of which the last counts.
    """

    file: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: str | int


_FIVE = tuple(f"data_batch_{i}" for i in range(1, 6))
_FIVE_BINARY = tuple(f"{name}.bin" for name in _FIVE)
ARCHIVES = {
    "cifar10": (
        Archive("cifar-10-python.tar.gz", "cifar-10-batches-py", _FIVE, "test_batch", "labels"),
        Archive(
            "cifar-10-binary.tar.gz", "cifar-10-batches-bin", _FIVE_BINARY, "test_batch.bin", 1
        ),
    ),
    "cifar100": (
        Archive("cifar-100-python.tar.gz", "cifar-100-python", ("train",), "test", "fine_labels"),
        Archive("cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin",), "test.bin", 2),
    ),
}


def read_cifar(
    name: str, root: Path, classes: int
) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Images and labels of `train` and `test`, or None if there is no archive.

    Args:
      name: `cifar10` or `cifar100`, whose labels are the fine ones.
      root: the folder with an archive or with an unpacked one, or an unpacked one itself.
      classes: number of classes.

    Returns:
      uint8 images of shape (examples, 32, 32, 3), and labels of shape (examples,) from 0.

    Raises:
      DataError: if a file is missing, damaged, or not what its name says.
    """
    for archive in ARCHIVES[name]:
        place = _place(archive, root)
        if place is not None:
            files = _contents(place, {*archive.train, archive.test})
            return {
                split: _parsed(place, [(file, files[file]) for file in names], archive, classes)
                for split, names in (("train", archive.train), ("test", (archive.test,)))
            }
    return None


def _place(archive: Archive, root: Path) -> Path | None:
    there = names_in(root)
    with errors_as(f"{root} cannot be read"):
        if any((root / file).is_file() for file in (*archive.train, archive.test)):
            return root
    return next((root / name for name in (archive.folder, archive.file) if name in there), None)


def _contents(place: Path, wanted: set[str]) -> dict[str, bytes]:
    """The content of files in a folder or in an archive."""
    files = {}
    if place.is_dir():
        for file in wanted & names_in(place):
            with errors_as(f"{place / file} cannot be read"):
                files[file] = (place / file).read_bytes()
    else:
        with errors_as(f"{place} cannot be read"), tarfile.open(place) as tar:
            for member in tar:
                file = PurePosixPath(member.name).name
                if file in wanted and member.isfile():
                    files[file] = tar.extractfile(member).read()
            while tar.fileobj.read(CHUNK):  # To the checksum, which is at the end.
                pass
    if missing := wanted - set(files):
        raise DataError(f"{place} has no {' and no '.join(sorted(missing))}")
    return files


def _parsed(
    place: Path, files: list[tuple[str, bytes]], archive: Archive, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of some files, one file after the other."""
    parts = []
    for file, content in files:
        with errors_as(f"{place / file} cannot be read"):
            pixels, labels = (
                _from_records(content, archive.labels)
                if isinstance(archive.labels, int)
                else _from_pickle(content, archive.labels)
            )
        if not 0 <= min(labels, default=-1) <= max(labels, default=-1) < classes:
            raise DataError(f"{place / file} should have labels from 0 to {classes - 1}")
        parts.append((pixels, labels))
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    images = pixels.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels


def _from_records(content: bytes, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of a binary file: for each image its labels, then its pixels."""
    size = label_bytes + PIXELS
    if len(content) % size:
        raise ValueError(f"it is not made of records of {size:,} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def _from_pickle(content: bytes, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of a pickle: a dictionary with `data` and the labels' name."""
    batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    if not isinstance(batch, dict) or not {"data", key} <= set(batch):
        raise ValueError(f"it has no data with {key}")
    pixels, labels = np.asarray(batch["data"]), np.asarray(batch[key])
    if pixels.shape != (labels.size, PIXELS) or pixels.dtype != np.uint8:
        raise ValueError(f"it does not hold {PIXELS:,} bytes for each label")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"{key} should be integers")
    return pixels, labels


class _ArraysOnly(pickle.Unpickler):
    """Loads built-in types and NumPy's arrays, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle asks for by name, if that is admitted."""
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not admitted")
        return super().find_class(module, name)
