"""The order in which images in memory are trained on."""

from collections.abc import Iterator, Sequence

import numpy as np


def batches(
    seed: int | Sequence[int], examples: int, batch_size: int, start: int = 0
) -> Iterator[np.ndarray]:
    """Batches of indices without end, in a new order in every epoch.

    The last examples of an epoch, which do not fill a batch, are left out.

    Args:
      seed: of the orders.
      examples: number of examples.
      batch_size: number of examples per batch.
      start: number of batches to skip, so that a run can be resumed. Skipping an epoch
        takes about a millisecond.

    Raises:
      ValueError: if the examples do not fill a batch.
    """
    if not 0 < batch_size <= examples:
        raise ValueError(f"batch_size must be from 1 to {examples}, got {batch_size}")
    rng = np.random.default_rng(seed)
    epochs, first = divmod(start, examples // batch_size)
    for _ in range(epochs):
        rng.permutation(examples)
    while True:
        order = rng.permutation(examples)
        for i in range(first * batch_size, examples - batch_size + 1, batch_size):
            yield order[i : i + batch_size]
        first = 0
