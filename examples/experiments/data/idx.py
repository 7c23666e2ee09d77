"""Folders of IDX files, the format in which MNIST and Fashion-MNIST are published."""

import gzip
from pathlib import Path

import numpy as np

from .access import errors_as, names_in
from .dataset import DataError

PREFIXES = {"train": "train", "test": "t10k"}
DIMENSIONS = {"images": 3, "labels": 1}
PUBLISHED = tuple(
    f"{prefix}-{kind}-idx{dimensions}-ubyte.gz"
    for prefix in PREFIXES.values()
    for kind, dimensions in DIMENSIONS.items()
)


def has_idx(folder: Path) -> bool:
    """Whether the folder has any IDX file.

    Raises:
      DataError: if it may not be read.
    """
    return any(name.endswith(("-ubyte", "-ubyte.gz")) for name in names_in(folder))


def read_idx_folder(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of both splits, from four IDX files, gzipped or not.

    Returns:
      For `train` and for `test` uint8 images of shape (examples, height, width, 1), and
      labels of shape (examples,) from 0 to 9.

    Raises:
      DataError: if a file is missing, damaged, or not what its name says.
    """
    parts = {}
    for split in PREFIXES:
        images, labels = (
            read_idx(_place(folder, split, kind), dimensions)
            for kind, dimensions in DIMENSIONS.items()
        )
        if len(images) != len(labels):
            raise DataError(
                f"{folder} has {len(images)} images but {len(labels)} labels to {split} on"
            )
        if len(images) == 0 or labels.max() > 9:
            raise DataError(f"{folder} should have labels from 0 to 9 to {split} on")
        parts[split] = images[..., None], labels
    if parts["train"][0].shape[1:] != parts["test"][0].shape[1:]:
        raise DataError(f"{folder} has training and test images of different sizes")
    return parts


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array in an IDX file of unsigned bytes.

    Two zero bytes, the type (8 for unsigned bytes) and the number of dimensions; then
    each dimension as a big-endian 32-bit number; then the bytes, in row-major order.

    Raises:
      DataError: if it cannot be read, or is not such a file.
    """
    with (
        errors_as(f"{path} cannot be read"),
        gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file,
    ):
        content = file.read()
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


def _place(folder: Path, split: str, kind: str) -> Path:
    """Path of one of the files, gzipped or not; some tools unpack them with a dot before idx."""
    names = [f"{PREFIXES[split]}-{kind}{mark}idx{DIMENSIONS[kind]}-ubyte" for mark in ("-", ".")]
    there = names_in(folder)
    for name in names:
        for file in (f"{name}.gz", name):
            if file in there:
                return folder / file
    raise DataError(f"{folder} has no {' or '.join(names)}, gzipped or not")
