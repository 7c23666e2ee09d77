"""Data sets through TensorFlow Datasets: prepared once with TensorFlow, read without it.

What is prepared are array_record files, one record an example. Where there is no network,
the archive that would be downloaded is taken from `downloads/manual` in the same folder.
"""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .dataset import DataError

TO_READ = "pip install -e '.[tfds]'"
TO_PREPARE = "pip install -e '.[prepare]'"
READ_BATCH = 500
# What has to be fetched by hand, network or not: its owners ask who wants it.
BY_HAND_ONLY = {"imagenet2012": ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"]}
NETWORK_SECONDS = 10


def read(name: str, folder: Path | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of `train` and `test`, whole and in memory."""
    splits = sources(name, folder)
    with _errors_as(f"{name} cannot be read"):
        return {split: _in_memory(source) for split, source in splits.items()}


def sources(
    name: str,
    folder: Path | None,
    splits: Sequence[str] = ("train", "test"),
    decoded: bool = True,
) -> dict[str, Sequence[dict[str, Any]]]:
    """The splits of a data set, which is prepared first where it has not been.

    Args:
      name: of the data set.
      folder: in which prepared data sets are kept, each in a folder of its own; None for
        TensorFlow Datasets' default.
      splits: which.
      decoded: whether `image` is an array, or the bytes of the image file.

    Returns:
      For each split its examples, to be had by index: `image`, `label` and more.

    Raises:
      DataError: if it cannot be prepared or read; the message says what is missing.
    """
    tfds = _tensorflow_datasets(name)
    if folder is not None and not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    with _errors_as(f"{name} cannot be read"):
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    if not builder.is_prepared():
        _prepare(builder)
    decoders = None if decoded else {"image": tfds.decode.SkipDecoding()}
    with _errors_as(f"{builder.data_path} cannot be read"):
        return {split: builder.as_data_source(split, decoders=decoders) for split in splits}


def _tensorflow_datasets(name: str) -> ModuleType:
    try:
        # Both TensorFlow Datasets and Grain take seconds to import.
        import array_record  # noqa: F401
        import grain  # noqa: F401
        import importlib_resources  # noqa: F401
        import tensorflow_datasets as tfds
        from absl import logging
    except ImportError as error:
        raise DataError(f"{name} is read with {error.name}: {TO_READ}") from error
    logging.set_verbosity(logging.ERROR)
    return tfds


def _prepare(builder: Any) -> None:
    """Downloads a data set, or takes its archive from where it was put, and converts it."""
    name, root = builder.name, builder.data_path.parents[1]
    by_hand = root / "downloads" / "manual"
    if importlib.util.find_spec("tensorflow") is None:
        raise DataError(f"{name} is not in {root}, and preparing it takes TensorFlow: {TO_PREPARE}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    downloads = {info.filename: url for url, info in builder.url_infos.items()}
    needed = BY_HAND_ONLY.get(name, list(downloads))
    missing = [file for file in needed if not (by_hand / file).exists()]
    if name in BY_HAND_ONLY and missing:
        raise DataError(f"{name} cannot be downloaded: put {_list(missing)} into {by_hand}")
    if missing and not _reachable(downloads[missing[0]]):
        raise DataError(f"there is no network for {name}: put {_list(missing)} into {by_hand}")
    where = f"{_list(needed)}, which may be put into {by_hand}"
    with _errors_as(f"{name} could not be prepared from {where}"):
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


def _list(files: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(files[:-1]), files[-1]]))


@contextmanager
def _errors_as(what: str) -> Iterator[None]:
    """Turns an error of any type, as TensorFlow Datasets and Grain raise them, into one line."""
    try:
        yield
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{what}: {line}") from error
