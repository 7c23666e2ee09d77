"""CIFAR-100, WRN-16-10.

Paper:    as `cifar10_resnet18`; Table 3.
Command:  python examples/reproduce.py cifar100_wrn16_10 --data_path DIR
Time:     not run here; as `cifar10_wrn16_10`.
Accuracy: published in %: SGD 78.95 ± 0.03, SLA 79.54 ± 0.02, SLRLA 79.85 ± 0.05.

As `cifar10_wrn16_10`, under the same assumption.
"""

from dataclasses import replace

from experiments.configs import cifar10_wrn16_10
from experiments.configs.table3 import rows

BASE = replace(cifar10_wrn16_10.BASE, dataset="cifar100")
CONFIGS = rows(BASE)
