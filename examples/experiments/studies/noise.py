"""How well trained weights bear noise.

accuracies = under_noise(accuracy, params, (0.0, 0.1, 0.2, 0.4), key)
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

Tree = Any


def under_noise(
    metric: Callable[[Tree], Any],
    params: Tree,
    sizes: Sequence[float],
    key: jax.Array,
    draws: int = 10,
) -> np.ndarray:
    """A metric of weights w (1 + σ z), z standard normal, for each size σ of the noise.

    The noise of a weight is proportional to the weight itself, as the error of a stored
    analogue value is to the value. Being relative, it compares fairly networks whose
    weights differ in scale, as those of different optimizers do: where a normalisation
    follows, the scale means nothing, and noise of an absolute size would only find out
    whose weights are larger. A draw's z is the same for all sizes and for all params of the
    same shapes, so that their results differ by more than luck.

    Args:
      metric: a function of the params, such as the accuracy on the test images. With batch
        normalisation it says which statistics go with noisy weights: the running ones, or
        recalibrated ones.
      params: a tree of arrays; all leaves get noise.
      sizes: σ ≥ 0.
      key: random key.
      draws: number of draws of the noise.

    Returns:
      The metric, of shape (sizes, draws), in float64.
    """
    if not all(size >= 0 for size in sizes):
        raise ValueError(f"`sizes` must be 0 or more, got {tuple(sizes)}.")
    keys = jax.random.split(key, draws)
    return np.array([[float(metric(with_noise(params, s, k))) for k in keys] for s in sizes])


@jax.jit
def with_noise(params: Tree, size: float, key: jax.Array) -> Tree:
    """Each weight w becomes w (1 + σ z)."""
    leaves, structure = jax.tree.flatten(params)
    noisy = [
        leaf * (1 + size * jax.random.normal(k, leaf.shape, leaf.dtype)).astype(leaf.dtype)
        for leaf, k in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)
