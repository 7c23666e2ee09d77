"""The networks of the examples, by name: Flax NNX modules, images in, logits out.

A constructor is called as

    make(image_shape, classes, dtype=None, rngs=nnx.Rngs(0))

with the shape (height, width, channels) of an image. Convolutions and hidden layers compute
in `dtype` (None is float32); params, BatchNorm and logits are float32 in any case. The
model is then called as `model(images, train=False)` with float32 images of shape (batch,
height, width, channels), and returns logits of shape (batch, classes).

Where a network drops out, it draws from the stream "dropout" of `rngs` (or the default
one), and its random state is, like the running statistics, in what `nnx.split(model,
nnx.Param, ...)` returns last. Without `train` nothing is dropped.

The transformer is for text: it takes a shape (characters,) and as many classes as the alphabet has
characters, and returns logits of shape (batch, characters, classes). The LSTM is for names: it
takes a shape (characters, alphabet).

The ResNets have two forms, for images of 64 pixels and more the ImageNet one; see
`models.resnet`. The VGGs need 32 pixels, the vision transformers a multiple of their patches.
"""

from collections.abc import Callable
from functools import partial

from flax import nnx

from experiments.models.lstm import LSTM
from experiments.models.resnet import resnet10, resnet12, resnet18, resnet34, resnet50
from experiments.models.small import MLP, ResNet, SmallVGG, SoftmaxRegression
from experiments.models.transformer import Transformer
from experiments.models.vgg import vgg11, vgg16, vgg16_bn, vgg19
from experiments.models.vision_transformer import small_vit, vit_s16
from experiments.models.wide_resnet import WideResNet

__all__ = [
    "LSTM",
    "MLP",
    "NETWORKS",
    "OF_TEXT",
    "ResNet",
    "SmallVGG",
    "SoftmaxRegression",
    "Transformer",
]

# Those that read text; the others see images.
OF_TEXT = ("transformer", "narrow_transformer", "lstm")

NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    "resnet": ResNet,
    "small_vgg": SmallVGG,
    "narrow_resnet": partial(ResNet, widths=(8, 16, 32), stride=2),
    "narrow_vgg": partial(SmallVGG, widths=(8, 16, 32), depths=(1, 1, 2)),
    "softmax": SoftmaxRegression,
    "mlp": MLP,
    "small_vit": small_vit,
    "transformer": Transformer,
    "narrow_transformer": partial(Transformer, width=32, heads=2, depth=1),
    "lstm": LSTM,
    "ResNet-10": resnet10,
    "ResNet-12": resnet12,
    "ResNet-18": resnet18,
    "ResNet-34": resnet34,
    "ResNet-50": resnet50,
    "WRN-16-8": partial(WideResNet, depth=16, widening=8),
    "WRN-16-10": partial(WideResNet, depth=16, widening=10),
    "WRN-28-10": partial(WideResNet, depth=28, widening=10),
    "VGG-11": vgg11,
    "VGG-16": vgg16,
    "VGG-19": vgg19,
    "VGG-16-BN": vgg16_bn,
    "ViT-S-16": vit_s16,
}
