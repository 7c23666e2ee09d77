"""CIFAR-100, ResNet-18.

Paper:    as `cifar10_resnet18`; Table 3.
Command:  python examples/reproduce.py cifar100_resnet18 --data_path DIR
Time:     not run here; as `cifar10_resnet18`.
Accuracy: published in %: SGD 78.24 ± 0.18, SLA 78.34 ± 0.05, SLRLA 78.58 ± 0.15.

The released command lines are for CIFAR-10; we assume the same settings for CIFAR-100.
"""

from dataclasses import replace

from experiments.configs import cifar10_resnet18
from experiments.configs.table3 import rows

BASE = replace(cifar10_resnet18.BASE, dataset="cifar100")
CONFIGS = rows(BASE)
