"""VGG networks: plain stacks of 3×3 convolutions.

Karen Simonyan and Andrew Zisserman, "Very Deep Convolutional Networks for Large-Scale
Image Recognition", https://arxiv.org/abs/1409.1556, 2014.

`VGG` is torchvision's form without BatchNorm, also for CIFAR, as in SLRLA's
release. `CompactVGG` is the form with BatchNorm and one linear layer that public
CIFAR implementations have.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from experiments.models.layers import BatchNorm, Layer, conv, head, image_mean

WIDTHS = (64, 128, 256, 512, 512)
POOLED = 7  # pixels


class VGG(nnx.Module):
    """Convolutions, 7×7 means over the image, and three linear layers with dropout.

    The convolutions reduce an image of 32 pixels to a single one, which all 49 means repeat. Linear
    kernels are normal with standard deviation 0.01, as released.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        depths: Sequence[int],
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
        widths: Sequence[int] = WIDTHS,
        hidden: int = 4096,
    ):
        linear = partial(nnx.Linear, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)
        self.features = Features(
            image_shape, widths, depths, conv=partial(conv, dtype=dtype, rngs=rngs, use_bias=True)
        )
        self.hidden1 = linear(POOLED * POOLED * widths[-1], hidden, dtype=dtype)
        self.dropout1 = nnx.Dropout(0.5, rngs=rngs)
        self.hidden2 = linear(hidden, hidden, dtype=dtype)
        self.dropout2 = nnx.Dropout(0.5, rngs=rngs)
        self.head = linear(hidden, classes, dtype=jnp.float32)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        x = adaptive_mean(self.features(x, train=train), POOLED)
        x = x.reshape(len(x), -1)
        x = self.dropout1(nnx.relu(self.hidden1(x)), deterministic=not train)
        x = self.dropout2(nnx.relu(self.hidden2(x)), deterministic=not train)
        return self.head(x)


class CompactVGG(nnx.Module):
    """Convolutions with BatchNorm, the mean over the image, one linear layer.

    The convolutions keep their biases, which the normalisation makes redundant, so that the
    number of parameters is that of the public CIFAR implementations.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        depths: Sequence[int],
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        self.features = Features(
            image_shape,
            WIDTHS,
            depths,
            conv=partial(conv, dtype=dtype, rngs=rngs, use_bias=True),
            norm=partial(BatchNorm, dtype=dtype, rngs=rngs),
        )
        self.head = head(WIDTHS[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        return self.head(image_mean(self.features(x, train=train)))


class Features(nnx.Module):
    """Stages of `depths[n]` convolutions of `widths[n]` channels, then 2×2 max pooling.

    Without `norm`, a convolution is followed by its ReLU at once.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        widths: Sequence[int],
        depths: Sequence[int],
        *,
        conv: Layer,
        norm: Layer | None = None,
    ):
        height, width, inputs = image_shape
        if min(height, width) < 2 ** len(widths):
            raise ValueError(
                f"image_shape: must be at least {2 ** len(widths)} pixels high and wide, "
                f"as {len(widths)} poolings halve it, got {height}×{width}"
            )
        stages = []
        for outputs, depth in zip(widths, depths, strict=True):
            layers = []
            for _ in range(depth):
                layers.append(Convolution(inputs, outputs, conv=conv, norm=norm))
                inputs = outputs
            stages.append(nnx.List(layers))
        self.stages = nnx.List(stages)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to features, as small as halved."""
        for stage in self.stages:
            for convolution in stage:
                x = convolution(x, train=train)
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
        return x


class Convolution(nnx.Module):
    """A 3×3 convolution, normalised or not, and a ReLU."""

    def __init__(self, inputs: int, outputs: int, *, conv: Layer, norm: Layer | None):
        self.conv = conv(inputs, outputs, 3)
        self.norm = None if norm is None else norm(outputs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Features (batch, height, width, channels) to features."""
        x = self.conv(x)
        return nnx.relu(x if self.norm is None else self.norm(x, train=train))


def adaptive_mean(x: jax.Array, size: int) -> jax.Array:
    """Features of any height and width as size×size means: PyTorch's adaptive pooling.

    Mean i of `size` is over the pixels from ⌊i · n / size⌋ up to, without it,
    ⌈(i + 1) · n / size⌉, n being the height or width: means overlap or repeat as needed.
    """

    def weights(n: int) -> np.ndarray:
        rows = np.zeros((size, n))
        for i in range(size):
            start, end = i * n // size, -(-(i + 1) * n // size)
            rows[i, start:end] = 1 / (end - start)
        return rows.astype(x.dtype)

    _, height, width, _ = x.shape
    return jnp.einsum("ih,jw,bhwc->bijc", weights(height), weights(width), x)


def vgg11(image_shape: tuple[int, int, int], classes: int, **settings: Any) -> VGG:
    """Configuration A of the paper: 8 convolutions."""
    return VGG(image_shape, classes, (1, 1, 2, 2, 2), **settings)


def vgg16(image_shape: tuple[int, int, int], classes: int, **settings: Any) -> VGG:
    """Configuration D of the paper: 13 convolutions."""
    return VGG(image_shape, classes, (2, 2, 3, 3, 3), **settings)


def vgg19(image_shape: tuple[int, int, int], classes: int, **settings: Any) -> VGG:
    """Configuration E of the paper: 16 convolutions."""
    return VGG(image_shape, classes, (2, 2, 4, 4, 4), **settings)


def vgg16_bn(image_shape: tuple[int, int, int], classes: int, **settings: Any) -> CompactVGG:
    """The convolutions of configuration D, with BatchNorm."""
    return CompactVGG(image_shape, classes, (2, 2, 3, 3, 3), **settings)
