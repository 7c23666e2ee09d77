"""The networks of the examples: Flax NNX modules, images in, logits out."""

import math
from collections.abc import Callable, Sequence

import jax
from flax import nnx

BATCH_NORM_MOMENTUM = 0.9


class ResidualBlock(nnx.Module):
    """Two 3×3 convolutions, and the input added to what they make of it."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.conv1 = _conv(inputs, outputs, 3, stride, rngs=rngs)
        self.norm1 = _norm(outputs, rngs=rngs)
        self.conv2 = _conv(outputs, outputs, 3, rngs=rngs)
        self.norm2 = _norm(outputs, rngs=rngs)
        same_shape = stride == 1 and inputs == outputs
        self.shortcut = None if same_shape else _conv(inputs, outputs, 1, stride, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images (or features) of shape (batch, height, width, channels) to features."""
        y = nnx.relu(self.norm1(self.conv1(x), use_running_average=not train))
        y = self.norm2(self.conv2(y), use_running_average=not train)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """A residual network for small images, with batch normalisation.

    A 3×3 convolution, then one block for each of `widths` (all but the first halve
    height and width), then the mean over the image and a linear layer.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        rngs: nnx.Rngs,
        widths: Sequence[int] = (16, 32),
    ):
        self.conv = _conv(image_shape[-1], widths[0], 3, rngs=rngs)
        self.norm = _norm(widths[0], rngs=rngs)
        self.blocks = nnx.List(
            ResidualBlock(inputs, outputs, stride=1 if n == 0 else 2, rngs=rngs)
            for n, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.head = nnx.Linear(widths[-1], classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        x = nnx.relu(self.norm(self.conv(x), use_running_average=not train))
        for block in self.blocks:
            x = block(x, train=train)
        return self.head(x.mean(axis=(1, 2)))


class SoftmaxRegression(nnx.Module):
    """One linear layer on the pixels: a convex problem."""

    def __init__(self, image_shape: tuple[int, int, int], classes: int, *, rngs: nnx.Rngs):
        self.head = nnx.Linear(math.prod(image_shape), classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        del train
        return self.head(x.reshape(len(x), -1))


NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    "resnet": ResNet,
    "softmax": SoftmaxRegression,
}


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, *, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        stride,
        use_bias=False,  # A normalisation adds one to every sum that these go into.
        kernel_init=nnx.initializers.he_normal(),
        rngs=rngs,
    )


def _norm(features: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(features, momentum=BATCH_NORM_MOMENTUM, rngs=rngs)
