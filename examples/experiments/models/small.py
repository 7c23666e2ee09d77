"""Networks that train in seconds to minutes on a CPU."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models.layers import BatchNorm, conv, head, image_mean
from experiments.models.vgg import Features


class ResidualBlock(nnx.Module):
    """Two 3×3 convolutions, to whose output the input is added."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        conv = partial(_same_conv, dtype=dtype, rngs=rngs)
        norm = partial(BatchNorm, dtype=dtype, rngs=rngs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.norm1 = norm(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.norm2 = norm(outputs)
        same_shape = stride == 1 and inputs == outputs
        self.shortcut = None if same_shape else conv(inputs, outputs, 1, stride)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (or features) of shape (batch, height, width, channels) to features."""
        y = nnx.relu(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """A residual network for small images, with BatchNorm.

    A 3×3 convolution of stride `stride`, then one block for each of `widths` (all but the
    first halve height and width), then the mean over the image and a linear layer.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
        widths: Sequence[int] = (16, 32),
        stride: int = 1,
    ):
        self.conv = _same_conv(image_shape[-1], widths[0], 3, stride, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(widths[0], dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            ResidualBlock(
                inputs,
                outputs,
                stride=1 if n == 0 else 2,
                dtype=dtype,
                rngs=rngs,
            )
            for n, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.head = nnx.Linear(widths[-1], classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        x = nnx.relu(self.norm(self.conv(x), train=train))
        for block in self.blocks:
            x = block(x, train=train)
        return self.head(image_mean(x))


class SmallVGG(nnx.Module):
    """A plain convolutional network for small images, with BatchNorm.

    For each of `widths`, `depths` 3×3 convolutions (two by default) and max pooling over 2×2
    pixels; then the mean over the image and a linear layer. There are no shortcuts.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
        widths: Sequence[int] = (16, 32),
        depths: Sequence[int] | None = None,
    ):
        self.features = Features(
            image_shape,
            widths,
            depths or [2] * len(widths),
            conv=partial(conv, dtype=dtype, rngs=rngs),
            norm=partial(BatchNorm, dtype=dtype, rngs=rngs),
        )
        self.head = head(widths[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        return self.head(image_mean(self.features(x, train=train)))


class SoftmaxRegression(nnx.Module):
    """One linear layer on the pixels: a convex problem, in float32 whatever the dtype."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        del dtype
        self.head = nnx.Linear(math.prod(image_shape), classes, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        del train
        return self.head(x.reshape(len(x), -1))


class MLP(nnx.Module):
    """A multilayer perceptron: one hidden layer of `width` rectified units on the pixels."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
        width: int = 64,
    ):
        self.hidden = nnx.Linear(math.prod(image_shape), width, dtype=dtype, rngs=rngs)
        self.head = head(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        del train
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))


def _same_conv(
    inputs: int,
    outputs: int,
    size: int,
    stride: int = 1,
    *,
    dtype: DTypeLike | None,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        stride,
        use_bias=False,  # A normalisation adds one to every sum that these go into.
        dtype=dtype,
        kernel_init=nnx.initializers.he_normal(),
        rngs=rngs,
    )
