"""CIFAR-10, VGG-16.

Paper:    as `cifar10_resnet18`; Table 3.
Command:  python examples/reproduce.py cifar10_vgg16 --data_path DIR
Time:     not run here; estimated as for `cifar10_resnet18`, 11e15 operations and 9 min.
Accuracy: published in %: SGD 92.13 ± 0.02, SLA 92.38 ± 0.02, SLRLA 92.63 ± 0.03.

The released command lines are for ResNet-18 alone. A learning rate of 0.05 is our choice: this
VGG has no BatchNorm.
"""

from dataclasses import replace

from experiments.configs import cifar10_resnet18
from experiments.configs.table3 import rows

BASE = replace(cifar10_resnet18.BASE, model="VGG-16", learning_rate=5e-2)
CONFIGS = rows(BASE)
