"""scikit-learn's digits, softmax regression: not in the paper, for trying `reproduce.py`.

Paper:    none.
Command:  python examples/reproduce.py digits_softmax
Time:     1 min on two shared CPU cores.
Accuracy: measured in %, 3 seeds: SGD 92.84 ± 0.21, SLA 92.48 ± 0.25, SLRLA 92.09 ± 0.41.

The paper's three rows with their settings for CIFAR-10, in ten epochs of nine steps.
"""

from dataclasses import replace

from experiments.configs import cifar10_resnet18
from experiments.configs.table3 import STAGEWISE, rows

BASE = replace(cifar10_resnet18.BASE, dataset="digits", model="softmax", epochs=10, batch_size=64)
CONFIGS = rows(BASE, STAGEWISE)
