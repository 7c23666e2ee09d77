"""What PyTorch makes of the weights of `network_weights.py`: `fixtures/pytorch_logits.json`.

    pip install '.[pytorch]' && python tests/experiments/pytorch_logits.py

The networks are written here as their public PyTorch forms are, with the attribute names
that `experiments.models` has. The ordinary tests read the file and need no PyTorch.
"""

import json
from pathlib import Path

import numpy as np
import torch
from network_weights import images, weight
from torch import nn
from torch.nn import functional as F

FIXTURE = Path(__file__).parent / "fixtures" / "pytorch_logits.json"
CLASSES = 10

# Name here: what makes the network, number of images, pixels a side.
CASES = {
    "ResNet-18": (lambda: ResNet(BasicBlock, (2, 2, 2, 2)), 4, 32),
    "ResNet-50": (lambda: ResNet(Bottleneck, (3, 4, 6, 3), large=True), 1, 64),
    "WRN-16-10": (lambda: WideResNet(16, 10), 2, 32),
    "VGG-16": (lambda: VGG((2, 2, 3, 3, 3)), 2, 32),
    "VGG-16-BN": (lambda: CompactVGG((2, 2, 3, 3, 3)), 2, 32),
}
TRAINING = "ResNet-18"


def conv(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class Shortcut(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.project = stride != 1 or inputs != outputs
        if self.project:
            self.conv = conv(inputs, outputs, 1, stride)
            self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.norm(self.conv(x)) if self.project else x


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.shortcut = Shortcut(inputs, width, stride)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.norm3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.shortcut = Shortcut(inputs, 4 * width, stride)

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, block, depths, large=False):
        super().__init__()
        self.conv = conv(3, 64, 7, 2) if large else conv(3, 64, 3)
        self.norm = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        self.blocks = nn.Sequential()
        inputs = 64
        for width, depth in zip((64, 128, 256, 512), depths, strict=True):
            for n in range(depth):
                self.blocks.append(block(inputs, width, 2 if n == 0 and width > 64 else 1))
                inputs = width * block.expansion
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        x = self.blocks(self.pool(F.relu(self.norm(self.conv(x)))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class WideBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.shortcut = conv(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x):
        y = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return shortcut + self.conv2(F.relu(self.norm2(self.conv1(y))))


class WideResNet(nn.Module):
    def __init__(self, depth, widening):
        super().__init__()
        self.conv = conv(3, 16, 3)
        self.blocks = nn.Sequential()
        inputs = 16
        for outputs, stride in ((16, 1), (32, 2), (64, 2)):
            for n in range((depth - 4) // 6):
                block = WideBlock(inputs, outputs * widening, stride if n == 0 else 1)
                self.blocks.append(block)
                inputs = outputs * widening
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x):
        x = F.relu(self.norm(self.blocks(self.conv(x))))
        return self.head(F.avg_pool2d(x, 8).flatten(1))


class Convolution(nn.Module):
    def __init__(self, inputs, outputs, norm):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


class Features(nn.Module):
    def __init__(self, depths, norm):
        super().__init__()
        self.stages = nn.Sequential()
        inputs = 3
        for outputs, depth in zip((64, 128, 256, 512, 512), depths, strict=True):
            stage = nn.Sequential()
            for _ in range(depth):
                stage.append(Convolution(inputs, outputs, norm))
                inputs = outputs
            stage.append(nn.MaxPool2d(2, 2))
            self.stages.append(stage)

    def forward(self, x):
        return self.stages(x)


class VGG(nn.Module):
    def __init__(self, depths):
        super().__init__()
        self.features = Features(depths, norm=False)
        self.hidden1 = nn.Linear(512 * 7 * 7, 4096)
        self.hidden2 = nn.Linear(4096, 4096)
        self.head = nn.Linear(4096, CLASSES)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.features(x), (7, 7)).flatten(1)
        x = F.dropout(F.relu(self.hidden1(x)), training=self.training)
        x = F.dropout(F.relu(self.hidden2(x)), training=self.training)
        return self.head(x)


class CompactVGG(nn.Module):
    def __init__(self, depths):
        super().__init__()
        self.features = Features(depths, norm=True)
        self.head = nn.Linear(512, CLASSES)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


def load(model):
    """Gives the model its weights, which are made channels last."""
    kinds = {"running_mean": "mean", "running_var": "var", "bias": "bias"}
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        owner, _, kind = name.rpartition(".")
        kind = kinds.get(kind) or ("scale" if tensor.ndim == 1 else "kernel")
        path = f"{owner}.{kind}".replace(".", "/")
        if tensor.ndim == 4:
            outputs, inputs, *size = tensor.shape
            value = weight(path, (*size, inputs, outputs)).transpose(3, 2, 0, 1)
        elif path == "hidden1/kernel":  # Its inputs are an image, here channels first.
            outputs, inputs = tensor.shape
            value = weight(path, (inputs, outputs)).reshape(7, 7, 512, outputs)
            value = value.transpose(3, 2, 0, 1).reshape(outputs, inputs)
        elif tensor.ndim == 2:
            value = weight(path, tensor.shape[::-1]).T
        else:
            value = weight(path, tensor.shape)
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(value)))
    return model


def floats(tensor):
    return [float(f"{x:.8g}") for x in tensor.flatten().tolist()]


@torch.no_grad()
def main():
    result = {"torch": torch.__version__}
    for name, (make, count, size) in CASES.items():
        model = load(make()).eval()
        x = torch.from_numpy(images(count, size).transpose(0, 3, 1, 2).copy())
        result[name] = {"images": count, "size": size, "logits": floats(model(x))}
        if name == TRAINING:
            result[name]["training_logits"] = floats(model.train()(x))
            result[name]["mean"] = floats(model.norm.running_mean)
            result[name]["var"] = floats(model.norm.running_var)
    FIXTURE.parent.mkdir(exist_ok=True)
    FIXTURE.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
