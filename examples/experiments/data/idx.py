"""Folders of IDX files, the format in which MNIST and Fashion-MNIST are published."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from .dataset import DataError

PREFIXES = {"train": "train", "test": "t10k"}
DIMENSIONS = {"images": 3, "labels": 1}


def has_idx(folder: Path) -> bool:
    """Whether the folder has any IDX file."""
    return any(folder.glob("*-ubyte")) or any(folder.glob("*-ubyte.gz"))


def read_folder(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of both splits, from four IDX files, gzipped or not.

    Returns:
      For `train` and for `test` uint8 images of shape (examples, height, width, 1), and
      labels of shape (examples,) from 0 to 9.
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


def _place(folder: Path, split: str, kind: str) -> Path:
    """Where one of the files is, gzipped or not; some tools unpack them with a dot before idx."""
    names = [f"{PREFIXES[split]}-{kind}{mark}idx{DIMENSIONS[kind]}-ubyte" for mark in ("-", ".")]
    for name in names:
        for path in (folder / f"{name}.gz", folder / name):
            if path.exists():
                return path
    raise DataError(f"{folder} has no {' or '.join(names)}, gzipped or not")
