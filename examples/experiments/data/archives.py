"""Data sets through TensorFlow Datasets: prepared once with TensorFlow, read without it.

They are prepared as array_record files, one record for each example. Where there is no
network, the archive that would be downloaded is taken from the subfolder `downloads/manual`.
"""

import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from . import cifar, idx
from .access import errors_as, imports, names_in
from .dataset import DataError

# What TensorFlow Datasets prepares, and what is read without it.
ARCHIVES = {
    "mnist": idx.PUBLISHED,
    "fashion_mnist": idx.PUBLISHED,
    "cifar10": ("cifar-10-binary.tar.gz",),
    "cifar100": ("cifar-100-binary.tar.gz",),
    "imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
}
AS_IS = {
    **dict.fromkeys(("mnist", "fashion_mnist"), ", ".join(idx.PUBLISHED)),
    **{
        name: " or ".join(archive.file for archive in archives)
        for name, archives in cifar.ARCHIVES.items()
    },
}
BY_HAND_ONLY = {"imagenet2012"}  # Its owners require a registration.
# Packages of the extra `tfds`, and what the extra `prepare` adds.
TO_READ = ("absl", "array_record", "grain", "importlib_resources", "PIL", "tensorflow_datasets")
TO_PREPARE = (*TO_READ, "tensorflow")
READ_BATCH = 500
NETWORK_SECONDS = 10


def read(name: str, root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of `train` and `test`, whole and in memory.

    Raises:
      DataError: as `sources` does.
    """
    splits = sources(name, root)
    with errors_as(f"{name} cannot be read"):
        return {split: _in_memory(source) for split, source in splits.items()}


def sources(
    name: str,
    root: Path,
    splits: Sequence[str] = ("train", "test"),
    decoded: bool = True,
) -> dict[str, Sequence[dict[str, Any]]]:
    """The splits of a data set, which is prepared first where it has not been.

    Args:
      name: of the data set.
      root: the folder with prepared data sets, each in a folder of its own.
      splits: which.
      decoded: whether `image` is an array, or the bytes of the image file.

    Returns:
      For each split its examples, by index: `image`, `label` and more.

    Raises:
      DataError: if the data set is absent, or cannot be prepared or read.
    """
    prepared = any(
        "dataset_info.json" in names_in(root / name / version) for version in names_in(root / name)
    )
    if not (prepared or _can_prepare()):
        raise absent(name, root)
    tfds = _tensorflow_datasets(name)
    with errors_as(f"{name} cannot be read"):
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
    if not builder.is_prepared():
        _prepare(builder, root)
    decoders = None if decoded else {"image": tfds.decode.SkipDecoding()}
    with errors_as(f"{builder.data_path} cannot be read"):
        return {split: builder.as_data_source(split, decoders=decoders) for split in splits}


def absent(name: str, root: Path) -> DataError:
    """The error for a data set that is not there: one line with every way to provide it."""
    archives = " and ".join(ARCHIVES[name])
    if name in BY_HAND_ONLY:
        ways = f"put {archives} into downloads/manual there, and let TensorFlow Datasets prepare it"
    else:
        source = archives if len(ARCHIVES[name]) == 1 else "the same files"
        ways = (
            f"put {AS_IS[name]} there, to be read as is; or let TensorFlow Datasets prepare it "
            f"from the network or from {source} in downloads/manual there"
        )
    return DataError(
        f"{name} is not in {root}: {ways} (pip install -e '.[prepare]') "
        "and read it (pip install -e '.[tfds]')"
    )


def _can_prepare() -> bool:
    return all(importlib.util.find_spec(package) for package in TO_PREPARE)


def _tensorflow_datasets(name: str) -> ModuleType:
    with imports(name, "tfds"):
        # Both TensorFlow Datasets and Grain take seconds to import.
        for package in TO_READ:
            importlib.import_module(package)
        import tensorflow_datasets as tfds
        from absl import logging
    logging.set_verbosity(logging.ERROR)
    return tfds


def _prepare(builder: Any, root: Path) -> None:
    """Converts a data set from its archives, which are downloaded unless they were put there."""
    by_hand = root / "downloads" / "manual"
    missing = set(ARCHIVES[builder.name]) - names_in(by_hand)
    url = next(iter(builder.url_infos))
    downloadable = builder.name not in BY_HAND_ONLY
    if not _can_prepare() or (missing and not (downloadable and _reachable(url))):
        raise absent(builder.name, root)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    archives = " and ".join(ARCHIVES[builder.name])
    with errors_as(f"{builder.name} could not be prepared from {archives} ({by_hand})"):
        builder.download_and_prepare()


def _reachable(url: str) -> bool:
    """Whether a host answers; TensorFlow Datasets itself would try for minutes."""
    import requests

    try:
        requests.head(url, timeout=NETWORK_SECONDS)
    except requests.RequestException:
        return False
    return True


def _in_memory(source: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    import grain

    batches = (
        grain.MapDataset.source(source)
        .map(lambda example: (example["image"], example["label"]))
        .batch(READ_BATCH)
        .to_iter_dataset(grain.ReadOptions(num_threads=os.cpu_count(), prefetch_buffer_size=8))
    )
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)
