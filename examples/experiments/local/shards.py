"""How the training examples are divided among the workers."""

from collections.abc import Callable, Iterator

import numpy as np

from experiments.config import SettingError
from experiments.data import Dataset, batches


def even(dataset: Dataset, order: np.ndarray) -> np.ndarray:
    """Returns examples in any order, so that all parts are alike."""
    del dataset
    return order


def by_class(dataset: Dataset, order: np.ndarray) -> np.ndarray:
    """Returns examples class by class, so that each part has only some of the classes.

    Raises:
      SettingError: if an example has no single class, as a window of text.
    """
    labels = dataset.train_labels
    if labels.ndim > 1:
        raise SettingError("split", f"{dataset.name} has no classes to split by")
    return order[np.argsort(labels[order], kind="stable")]


# From a data set and a random order of its training examples: the order that is cut into parts.
SPLITS: dict[str, Callable[[Dataset, np.ndarray], np.ndarray]] = {
    "even": even,
    "class": by_class,
}


def shards(dataset: Dataset, split: str, workers: int, seed: int) -> np.ndarray:
    """Returns the indices of each worker's training examples, of shape (workers, examples).

    A seed has an order of its own. The last examples, of which not every worker can have one, are
    left out.
    """
    order = np.random.default_rng((seed, workers)).permutation(dataset.train_size)
    order = SPLITS[split](dataset, order)
    return order[: len(order) // workers * workers].reshape(workers, -1)


def shard_batches(
    parts: np.ndarray, seed: int, size: int, start: int, index: int, count: int
) -> Iterator[np.ndarray]:
    """Batches of examples of all workers of a process, one worker after the other; without end.

    Args:
      parts: as `shards` returns them.
      seed: of the orders.
      size: of a batch, over all workers.
      start: number of batches to skip.
      index: of the process, which has this part of the workers.
      count: number of processes.
    """
    workers, examples = parts.shape
    each = size // workers
    own = range(index * workers // count, (index + 1) * workers // count)
    streams = [batches((seed, worker), examples, each, start) for worker in own]
    for chosen in zip(*streams, strict=True):
        yield np.concatenate(
            [parts[worker][some] for worker, some in zip(own, chosen, strict=True)]
        )
