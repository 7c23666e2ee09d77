"""How well trained weights bear noise.

accuracies = under_noise(accuracy, params, (0.0, 0.1, 0.2, 0.4), key)
plot({"SGD": accuracies, ...}, (0.0, 0.1, 0.2, 0.4), "accuracy", path)
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.reporting.report import LOOK, STYLES

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
        ones estimated anew inside it.
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


def plot(
    results: Mapping[str, np.ndarray], sizes: Sequence[float], metric: str, path: Path
) -> None:
    """The metric over the size of the noise, as a PNG.

    Args:
      results: by label, what `under_noise` has returned.
      sizes: the sizes of the noise.
      metric: what to call the metric.
      path: the file to write. Lines are means over the draws, bands a standard deviation
        wide on either side.
    """
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(6, 4.2), layout="constrained")
        axes = figure.subplots()
        draws = next(iter(results.values())).shape[1]
        for (label, values), (color, dashes) in zip(
            results.items(), STYLES * len(results), strict=False
        ):
            mean, deviation = values.mean(axis=1), values.std(axis=1, ddof=min(1, draws - 1))
            axes.plot(sizes, mean, color=color, linestyle=dashes, label=label, linewidth=1.8)
            axes.fill_between(
                sizes, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0
            )
        axes.set(xlabel="noise σ, relative to each weight", ylabel=metric)
        axes.set_xlim(min(sizes), max(sizes))
        axes.legend()
        figure.suptitle(
            f"mean ± standard deviation of {draws} draws",
            fontsize=10,
            x=0.01,
            ha="left",
            color="0.3",
        )
        figure.savefig(path, dpi=140)
