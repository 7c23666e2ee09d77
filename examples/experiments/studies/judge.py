"""How good and how varied generated images are, judged by a small classifier of real ones.

The distance of generated images from real ones is Fréchet's, between normal distributions of the
features that the classifier has of them. Images are flat, with pixels from −1 to 1.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.config import SettingError
from experiments.data import Dataset
from experiments.steps import Model, init_weights

# The classifier's hidden layer and its features; its steps, images in a batch and learning rate.
HIDDEN, FEATURES = 128, 32
STEPS, BATCH_SIZE, LEARNING_RATE = 3_000, 128, 1e-3


# The images.


@lru_cache(maxsize=1)  # All runs share one, and the judge that is trained on it.
def shrunk(dataset: Dataset, by: int) -> Dataset:
    """Returns the data set with images that are means over `by` × `by` pixels.

    Raises:
      SettingError: if height and width are not multiples of that.
    """
    height, width, channels = dataset.image_shape
    if height % by or width % by:
        raise SettingError("shrink", f"must divide {height} × {width} pixels, got {by}")

    def mean(images: np.ndarray) -> np.ndarray:
        blocks = images.reshape(len(images), height // by, by, width // by, by, channels)
        return blocks.mean(axis=(2, 4), dtype=np.float32)

    return replace(
        dataset,
        train_images=mean(dataset.train_images),
        test_images=mean(dataset.test_images),
    )


def flat(dataset: Dataset, images: np.ndarray) -> np.ndarray:
    """Returns images as the players see them: float32 of shape (images, pixels), from −1 to 1."""
    return np.float32(2 * (images.reshape(len(images), -1) / np.float32(dataset.white)) - 1)


# The distance.


class Moments(NamedTuple):
    """Mean and covariance of features, in float64, of shape (features,) and its square."""

    mean: np.ndarray
    covariance: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """Returns the moments of features of shape (examples, features)."""
    features = np.float64(features)
    return Moments(features.mean(0), np.cov(features, rowvar=False))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Returns the squared 2-Wasserstein distance between the normal distributions.

        ‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a^½ C_b C_a^½)^½)

    Infinite if the moments are not finite. Dowson and Landau, The Fréchet distance between
    multivariate normal distributions, 1982; with features of images Heusel et al.,
    https://arxiv.org/abs/1706.08500, 2017.
    """
    if not all(np.isfinite(part).all() for part in (*a, *b)):
        return float("inf")
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    overlap = np.linalg.eigvalsh(root @ b.covariance @ root)
    apart = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance) + np.trace(b.covariance)
    return float(max(apart - 2 * np.sqrt(np.maximum(overlap, 0)).sum(), 0.0))


# The classifier.


class MLP(nnx.Module):
    """Linear layers with leaky ReLUs between them."""

    def __init__(self, widths: Sequence[int], *, rngs: nnx.Rngs):
        self.layers = nnx.List(
            nnx.Linear(inputs, outputs, rngs=rngs) for inputs, outputs in itertools.pairwise(widths)
        )

    def hidden(self, x: jax.Array) -> jax.Array:
        """Inputs (batch, widths[0]) to the output of the last hidden layer."""
        for layer in self.layers[:-1]:
            x = nnx.leaky_relu(layer(x), 0.2)
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        """Inputs (batch, widths[0]) to outputs (batch, widths[-1])."""
        return self.layers[-1](self.hidden(x))


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier that generated images are judged by.

    Attributes:
      graph: of the network.
      params: its weights.
      real: moments of the features of the test images.
      accuracy: the fraction of the test images that it classifies correctly.
      floor: the distance of the training images from the test images.
    """

    graph: nnx.GraphDef
    params: Any
    real: Moments
    accuracy: float
    floor: float

    def sees(self, images: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the distance of images from the real ones, and the class of each."""
        features, logits = _seen(self.graph, self.params, images)
        return frechet_distance(moments(features), self.real), np.argmax(logits, axis=1)


@lru_cache(maxsize=1)  # All runs have the same judge.
def judge_of(dataset: Dataset) -> Judge:
    """Trains the judge of a data set, which is a function of the data alone."""
    images, labels = flat(dataset, dataset.train_images), dataset.train_labels
    widths = (images.shape[1], HIDDEN, FEATURES, dataset.classes)
    model = Model(partial(MLP, widths), dataset)
    graph, (params, _) = model.graph, jax.jit(init_weights, static_argnums=0)(model, 0)
    tx = optax.adam(LEARNING_RATE)

    def loss(params: Any, batch: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params, copy=True)(jnp.asarray(images)[batch])
        targets = jnp.asarray(labels)[batch]
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, state = carry
        batch = jax.random.randint(key, (BATCH_SIZE,), 0, len(images))
        updates, state = tx.update(jax.grad(loss)(params, batch), state)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), STEPS)
    (params, _), _ = jax.jit(partial(jax.lax.scan, step))((params, tx.init(params)), keys)

    train, _ = _seen(graph, params, images)
    test, logits = _seen(graph, params, flat(dataset, dataset.test_images))
    accuracy = float(np.mean(logits.argmax(1) == dataset.test_labels))
    real = moments(test)
    return Judge(graph, params, real, accuracy, frechet_distance(moments(train), real))


@partial(jax.jit, static_argnums=0)
def _seen(graph: nnx.GraphDef, params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns features and logits of images."""
    network = nnx.merge(graph, params, copy=True)
    hidden = network.hidden(images)
    return hidden, network.layers[-1](hidden)


def classes_seen(classes: np.ndarray, number: int) -> int:
    """Returns how many of the classes have at least a tenth of their share."""
    counts = np.bincount(classes, minlength=number)
    return int(np.sum(counts >= len(classes) / number / 10))


def has_collapsed(distances: Sequence[float], seen: int, number: int) -> bool:
    """Says whether a run has collapsed.

    Args:
      distances: along the run.
      seen: how many classes there are in its last images.
      number: how many there are in the data.

    Returns:
      Whether the last distance is not finite, or more than twice the best of the run, or fewer
      than half of the classes are seen.
    """
    best, last = min(distances), distances[-1]
    return not np.isfinite(last) or last > 2 * best or seen < number / 2
