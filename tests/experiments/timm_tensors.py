"""Weights for timm's models that NumPy alone can make again, for `fixtures/timm_logits.json`.

`timm_logits.py` gives them to timm, `test_pretrained.py` writes them as a file for
`experiments.pretrained`. They are named, shaped and laid out as in timm's own files.
"""

import numpy as np
from network_weights import normal

CLASSES = 10


def vit_shapes(classes=CLASSES, size=224, patch=16, width=384, depth=12, channels=3):
    """The names and shapes in a file of timm's `vit_small_patch16_224`, or of a smaller one."""

    def linear(name, outputs, inputs):
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def norm(name):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + (size // patch) ** 2, width),
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for n in range(depth):
        shapes |= norm(f"blocks.{n}.norm1")
        shapes |= linear(f"blocks.{n}.attn.qkv", 3 * width, width)
        shapes |= linear(f"blocks.{n}.attn.proj", width, width)
        shapes |= norm(f"blocks.{n}.norm2")
        shapes |= linear(f"blocks.{n}.mlp.fc1", 4 * width, width)
        shapes |= linear(f"blocks.{n}.mlp.fc2", width, 4 * width)
    return shapes | norm("norm") | linear("head", classes, width)


def resnet50_shapes(classes=CLASSES):
    """The names and shapes in a file of timm's `resnet50`."""

    def norm(name, width):
        kinds = ("weight", "bias", "running_mean", "running_var")
        return {f"{name}.{kind}": (width,) for kind in kinds} | {f"{name}.num_batches_tracked": ()}

    shapes = {"conv1.weight": (64, 3, 7, 7), **norm("bn1", 64)}
    inputs = 64
    for group, depth in enumerate((3, 4, 6, 3)):
        width = 64 * 2**group
        for n in range(depth):
            block = f"layer{group + 1}.{n}"
            convs = ((width, inputs, 1), (width, width, 3), (4 * width, width, 1))
            for i, (outputs, before, size) in enumerate(convs, start=1):
                shapes[f"{block}.conv{i}.weight"] = (outputs, before, size, size)
                shapes |= norm(f"{block}.bn{i}", outputs)
            if n == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * width, inputs, 1, 1)
                shapes |= norm(f"{block}.downsample.1", 4 * width)
            inputs = 4 * width
    return {**shapes, "fc.weight": (classes, inputs), "fc.bias": (classes,)}


def tensor(name, shape):
    """A tensor that depends on its name and shape alone."""
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.array(7, np.int64)
    if kind in ("cls_token", "pos_embed"):
        return normal(name, shape, 0.5)
    if kind == "running_var":
        return np.exp(normal(name, shape, 0.2))
    if kind == "weight" and len(shape) == 1:
        # In residual blocks less, or their sums grow from block to block.
        return (0.7 if name.startswith("layer") else 1) + normal(name, shape, 0.1)
    if kind == "weight":
        gain = 2 if "conv" in name else 1
        return normal(name, shape, np.sqrt(gain / np.prod(shape[1:])))
    return normal(name, shape, 0.1)


def tensors(shapes):
    return {name: np.ascontiguousarray(tensor(name, shape)) for name, shape in shapes.items()}
