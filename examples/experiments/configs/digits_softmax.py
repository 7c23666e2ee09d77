"""scikit-learn's digits, softmax regression: not in the paper, for trying `reproduce.py`.

Paper:    none.
Command:  python examples/reproduce.py digits_softmax
Time:     1 min on two CPU cores that others worked on, too.
Accuracy: measured in %, 3 seeds: SGD 92.84 ± 0.21, SLA 92.48 ± 0.25, SLRLA 92.09 ± 0.41.

The paper's three rows with the flags that they have for CIFAR-10, in ten epochs of nine steps.
"""

from dataclasses import replace

from experiments.configs import cifar10_resnet18
from experiments.configs.common import STAGEWISE

BASE = cifar10_resnet18.RECIPE
RECIPE = replace(
    BASE,
    dataset="digits",
    network="softmax",
    flags=f"{BASE.flags} --tr_epochs 10 --train_batch_size 64",
    optimizers=STAGEWISE,
)
