"""Weights and images that NumPy alone can make again, for the logits in `fixtures/`.

`pytorch_logits.py` gives them to PyTorch, `test_networks.py` to the networks of the
examples. A weight is a function of its path and shape: a piece of one table of normal
numbers that begins where the path says, repeated as often as needed, which for the
134 million weights of VGG-16 takes a second. The table's length is a prime, so that the
rows of a matrix differ.
"""

import zlib
from functools import cache

import numpy as np

TABLE_LENGTH = 1_000_003


@cache
def table():
    return np.random.default_rng(2021).standard_normal(TABLE_LENGTH, dtype=np.float32)


def normal(path, shape, std=1.0):
    """Float32 numbers of mean 0; `path` is a string such as "blocks/0/conv1/kernel"."""
    begin = zlib.crc32(path.encode()) % TABLE_LENGTH
    return np.resize(np.roll(table(), -begin) * np.float32(std), shape)


def weight(path, shape):
    """A param or running statistic, channels last: kernels are (…, inputs, outputs)."""
    kind = path.rpartition("/")[2]
    if kind == "kernel":
        # What a ReLU follows keeps the size of its input; the logits have none behind them.
        gain = 1 if path == "head/kernel" else 2
        return normal(path, shape, np.sqrt(gain / np.prod(shape[:-1])))
    if kind in ("bias", "mean"):
        return normal(path, shape, 0.1)
    if kind == "scale":
        # Within residual blocks less, or their sums grow from block to block.
        return (0.7 if path.startswith("blocks/") else 1) + normal(path, shape, 0.1)
    if kind == "var":
        return np.exp(normal(path, shape, 0.2))
    raise ValueError(path)


def images(count, size):
    """Images (count, size, size, 3)."""
    return normal("images", (count, size, size, 3))
