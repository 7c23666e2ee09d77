"""Fashion-MNIST, a residual network of 20 thousand weights: not in the paper, and run for real.

Paper:    none; some optimizers of Table 3, with its settings for CIFAR-10.
Command:  python examples/reproduce.py fashion_mnist_resnet --data_path DIR
Time:     19 min on two shared CPU cores (Intel Xeon, 2.5 GHz), three seeds.
Accuracy: measured in %, 3 seeds: SGD 83.50 ± 0.56, SLA 83.35 ± 0.26, SLRLA 82.62 ± 0.27,
          Adam 76.98 ± 0.64, AdamW 76.92 ± 0.63, AdaBelief 78.10 ± 0.69.

Chosen so that both networks, with six optimizers and three seeds, take less than an hour on two
shared CPU cores: 4,000 of the training images, ten epochs of 62 steps, which end the stages after
3, 6, 8 and 10 epochs; widths 8, 16 and 32 on images that the first convolution halves; and an
evaluation, which takes as long as two epochs of training, after every fifth epoch. Learning rate
and weight decay were not tuned: they are those of CIFAR-10, released for SGD, SLA and SLRLA and
our choice for the others, which do better with `--set learning_rate=1e-2` (see
`results/slrla/README.md`).
"""

from experiments.config import Config
from experiments.configs.table3 import STAGEWISE, rows

BASE = Config(
    dataset="fashion_mnist",
    train_images=4000,
    model="narrow_resnet",
    epochs=10,
    batch_size=64,
    eval_every=5,
    learning_rate=1e-1,
    weight_decay=1e-3,
)
CONFIGS = rows(BASE, (*STAGEWISE, "Adam", "AdamW", "AdaBelief"))
