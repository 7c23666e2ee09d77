"""CIFAR-100, VGG-16.

Paper:    as `cifar10_resnet18`; Table 3.
Command:  python examples/reproduce.py cifar100_vgg16 --data_path DIR
Time:     not run here; as `cifar10_vgg16`.
Accuracy: published in %: SGD 69.97 ± 0.02, SLA 70.20 ± 0.04, SLRLA 70.63 ± 0.02.

As `cifar10_vgg16`, with the learning rate of our choice.
"""

from dataclasses import replace

from experiments.configs import cifar10_vgg16
from experiments.configs.table3 import rows

BASE = replace(cifar10_vgg16.BASE, dataset="cifar100")
CONFIGS = rows(BASE)
