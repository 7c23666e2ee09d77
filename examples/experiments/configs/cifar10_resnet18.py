"""CIFAR-10, ResNet-18.

Paper:    Zhou et al., "Towards Understanding Why Lookahead Generalizes Better Than SGD and
          Beyond", NeurIPS 2021; Table 3, and the command lines of the released code.
Command:  python examples/reproduce.py cifar10_resnet18 --data_path DIR
Time:     not run here. A seed of an optimizer takes 14e15 floating-point operations as XLA counts
          them: 12 min where 20e12 are done in a second.
Accuracy: published in %: SGD 95.23 ± 0.19, SLA 95.27 ± 0.06, SLRLA 95.47 ± 0.20.

The flags of SGD, SLA and SLRLA are the released ones, those of the others our choice.
"""

from experiments.configs.common import ADAPTIVE, STAGEWISE, Recipe

RECIPE = Recipe(
    dataset="cifar10",
    network="ResNet-18",
    flags="--input_norm --lr 1e-1 --wd 1e-3 --tr_epochs 100 --train_batch_size 128",
    optimizers=STAGEWISE | ADAPTIVE,
)
