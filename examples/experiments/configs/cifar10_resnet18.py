"""CIFAR-10, ResNet-18.

Paper:    Zhou et al., "Towards Understanding Why Lookahead Generalizes Better Than SGD and
          Beyond", NeurIPS 2021; Table 3, and the command lines of the released code.
Command:  python examples/reproduce.py cifar10_resnet18 --data_path DIR
Time:     not run here. A seed of an optimizer takes 14e15 floating-point operations, as XLA counts
          them: 12 min at 20e12 operations per second.
Accuracy: published in %: SGD 95.23 ± 0.19, SLA 95.27 ± 0.06, SLRLA 95.47 ± 0.20.

The settings of SGD, SLA and SLRLA are those of the released command lines, the others' our choice.
"""

from experiments.config import Config
from experiments.configs.table3 import rows

BASE = Config(
    dataset="cifar10",
    model="ResNet-18",
    epochs=100,
    batch_size=128,
    learning_rate=1e-1,
    weight_decay=1e-3,
)
CONFIGS = rows(BASE)
