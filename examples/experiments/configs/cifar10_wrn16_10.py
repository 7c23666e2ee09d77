"""CIFAR-10, WRN-16-10.

Paper:    as `cifar10_resnet18`; Table 3.
Command:  python examples/reproduce.py cifar10_wrn16_10 --data_path DIR
Time:     not run here; estimated as for `cifar10_resnet18`, 66e15 operations and 55 min.
Accuracy: published in %: SGD 95.51 ± 0.02, SLA 95.73 ± 0.02, SLRLA 96.08 ± 0.07.

The released command lines are for ResNet-18; we assume the same settings for this network.
"""

from dataclasses import replace

from experiments.configs import cifar10_resnet18
from experiments.configs.table3 import rows

BASE = replace(cifar10_resnet18.BASE, model="WRN-16-10")
CONFIGS = rows(BASE)
