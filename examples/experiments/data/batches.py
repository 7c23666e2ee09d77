"""The order in which images in memory are trained on."""

from collections.abc import Iterator

import numpy as np


def batches(seed: int, examples: int, batch_size: int, start: int = 0) -> Iterator[np.ndarray]:
    """Indices of one batch after the other, in a new order for each pass over the data.

    The few examples at the end of a pass that do not fill a batch are left out of it.

    Args:
      seed: of the orders.
      examples: how many there are.
      batch_size: how many make a batch.
      start: how many batches to pass over; the others are those that follow them, so that
        an interrupted run can go on. A pass over all data takes a millisecond.

    Raises:
      ValueError: if the examples do not fill a batch.
    """
    if not 0 < batch_size <= examples:
        raise ValueError(f"batch_size must be from 1 to {examples}, got {batch_size}")
    rng = np.random.default_rng(seed)
    passes, first = divmod(start, examples // batch_size)
    for _ in range(passes):
        rng.permutation(examples)
    while True:
        order = rng.permutation(examples)
        for i in range(first * batch_size, examples - batch_size + 1, batch_size):
            yield order[i : i + batch_size]
        first = 0
