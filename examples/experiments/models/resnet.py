"""Residual networks, ResNet-10 to ResNet-50.

Kaiming He, Xiangyu Zhang, Shaoqing Ren and Jian Sun, "Deep Residual Learning for Image
Recognition", https://arxiv.org/abs/1512.03385, 2015.

Four groups of blocks of 64, 128, 256 and 512 channels; each group but the first begins by
halving height and width. Where a block changes the shape, its shortcut is a 1×1
convolution with BatchNorm. The size of the images decides what comes before:

- below 64 pixels the CIFAR form of the public PyTorch implementations, a 3×3 convolution
  and no pooling (which is not the thinner CIFAR network of the paper's section 4.2);
- from 64 pixels torchvision's ImageNet form, a 7×7 convolution and 3×3 max pooling, each
  with stride 2. As there, the stride of a bottleneck is in its 3×3 convolution.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from experiments.models.layers import BatchNorm, Layer, conv, head, image_mean

LARGE_IMAGE = 64  # pixels


class ResidualNetwork(nnx.Module):
    """A residual network of `depths[n]` blocks in group n.

    Attributes:
      pools: whether max pooling follows the first convolution.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        block: "type[BasicBlock] | type[Bottleneck]",
        depths: Sequence[int],
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        layers = {
            "conv": partial(conv, dtype=dtype, rngs=rngs),
            "norm": partial(BatchNorm, dtype=dtype, rngs=rngs),
        }
        height, width, channels = image_shape
        self.pools = min(height, width) >= LARGE_IMAGE
        size, stride = (7, 2) if self.pools else (3, 1)
        self.conv = layers["conv"](channels, 64, size, stride)
        self.norm = layers["norm"](64)

        blocks = []
        inputs = 64
        for group, depth in enumerate(depths):
            for n in range(depth):
                stride = 2 if group > 0 and n == 0 else 1
                blocks.append(block(inputs, 64 * 2**group, stride, **layers))
                inputs = 64 * 2**group * block.expansion
        self.blocks = nnx.List(blocks)
        self.head = head(inputs, classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        x = nnx.relu(self.norm(self.conv(x), train=train))
        if self.pools:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x, train=train)
        return self.head(image_mean(x))


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions with `width` output channels."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, *, conv: Layer, norm: Layer):
        self.conv1 = conv(inputs, width, 3, stride)
        self.norm1 = norm(width)
        self.conv2 = conv(width, width, 3)
        self.norm2 = norm(width)
        self.shortcut = Shortcut(inputs, width, stride, conv=conv, norm=norm)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Features (batch, height, width, channels) to features."""
        y = nnx.relu(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        return nnx.relu(y + self.shortcut(x, train=train))


class Bottleneck(nnx.Module):
    """A 3×3 convolution between two 1×1 ones, with 4 · `width` output channels."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, *, conv: Layer, norm: Layer):
        outputs = self.expansion * width
        self.conv1 = conv(inputs, width, 1)
        self.norm1 = norm(width)
        self.conv2 = conv(width, width, 3, stride)
        self.norm2 = norm(width)
        self.conv3 = conv(width, outputs, 1)
        self.norm3 = norm(outputs)
        self.shortcut = Shortcut(inputs, outputs, stride, conv=conv, norm=norm)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Features (batch, height, width, channels) to features."""
        y = nnx.relu(self.norm1(self.conv1(x), train=train))
        y = nnx.relu(self.norm2(self.conv2(y), train=train))
        y = self.norm3(self.conv3(y), train=train)
        return nnx.relu(y + self.shortcut(x, train=train))


class Shortcut(nnx.Module):
    """The input of a block, projected where the block's output has another shape."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, conv: Layer, norm: Layer):
        same_shape = stride == 1 and inputs == outputs
        self.conv = None if same_shape else conv(inputs, outputs, 1, stride)
        self.norm = None if same_shape else norm(outputs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Features (batch, height, width, channels) to features."""
        return x if self.conv is None else self.norm(self.conv(x), train=train)


def resnet10(image_shape: tuple[int, int, int], classes: int, **settings: Any) -> ResidualNetwork:
    """One basic block in each group.

    The paper has no ResNet-10 and SLRLA's release lacks the source of its own; this is
    what public implementations commonly call by that name.
    """
    return ResidualNetwork(image_shape, classes, BasicBlock, (1, 1, 1, 1), **settings)


def resnet12(image_shape: tuple[int, int, int], classes: int, **settings: Any) -> ResidualNetwork:
    """Two basic blocks in the first group, one in each of the others.

    The paper has no ResNet-12 and SLRLA's release lacks the source of its own. Public
    implementations that have a ResNet-10 often have this one. The ResNet-12 of few-shot learning,
    with three convolutions in a block, is another network.
    """
    return ResidualNetwork(image_shape, classes, BasicBlock, (2, 1, 1, 1), **settings)


def resnet18(image_shape: tuple[int, int, int], classes: int, **settings: Any) -> ResidualNetwork:
    """Basic blocks: 2, 2, 2, 2."""
    return ResidualNetwork(image_shape, classes, BasicBlock, (2, 2, 2, 2), **settings)


def resnet34(image_shape: tuple[int, int, int], classes: int, **settings: Any) -> ResidualNetwork:
    """Basic blocks: 3, 4, 6, 3."""
    return ResidualNetwork(image_shape, classes, BasicBlock, (3, 4, 6, 3), **settings)


def resnet50(image_shape: tuple[int, int, int], classes: int, **settings: Any) -> ResidualNetwork:
    """Bottlenecks: 3, 4, 6, 3."""
    return ResidualNetwork(image_shape, classes, Bottleneck, (3, 4, 6, 3), **settings)
