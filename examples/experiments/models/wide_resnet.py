"""Wide residual networks, WRN-depth-widening.

Sergey Zagoruyko and Nikos Komodakis, "Wide Residual Networks",
https://arxiv.org/abs/1605.07146, 2016.

The PyTorch form that SLRLA's release has too: normalisation and ReLU before each
convolution, and a block that changes the shape takes its shortcut, a 1×1 convolution,
behind its first ReLU. No dropout.
"""

from functools import partial

import jax
from flax import nnx
from jax.typing import DTypeLike

from experiments.models.layers import BatchNorm, Layer, conv, head, image_mean


class WideResNet(nnx.Module):
    """Three groups of (depth − 4) / 6 blocks, of 16, 32 and 64 × `widening` channels.

    The second and third group begin by halving height and width.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        depth: int,
        widening: int,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        layers = {
            "conv": partial(conv, dtype=dtype, rngs=rngs),
            "norm": partial(BatchNorm, dtype=dtype, rngs=rngs),
        }
        self.conv = layers["conv"](image_shape[-1], 16, 3)
        blocks = []
        inputs = 16
        for group in range(3):
            outputs = 16 * 2**group * widening
            for n in range((depth - 4) // 6):
                stride = 2 if group > 0 and n == 0 else 1
                blocks.append(WideBlock(inputs, outputs, stride, **layers))
                inputs = outputs
        self.blocks = nnx.List(blocks)
        self.norm = layers["norm"](inputs)
        self.head = head(inputs, classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        x = self.conv(x)
        for block in self.blocks:
            x = block(x, train=train)
        return self.head(image_mean(nnx.relu(self.norm(x, train=train))))


class WideBlock(nnx.Module):
    """Two 3×3 convolutions, each behind a normalisation and a ReLU, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, conv: Layer, norm: Layer):
        self.norm1 = norm(inputs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.norm2 = norm(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        same_shape = stride == 1 and inputs == outputs
        self.shortcut = None if same_shape else conv(inputs, outputs, 1, stride)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Features (batch, height, width, channels) to features."""
        y = nnx.relu(self.norm1(x, train=train))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = nnx.relu(self.norm2(self.conv1(y), train=train))
        return shortcut + self.conv2(y)
