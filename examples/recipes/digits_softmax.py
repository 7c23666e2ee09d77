"""scikit-learn's digits, softmax regression: not in the paper, for trying `reproduce.py`.

Paper:    none.
Command:  python examples/reproduce.py digits_softmax
Time:     DIGITS_TIME
Accuracy: DIGITS_ACCURACY

All rows of Table 3 with the flags that they have for CIFAR-10, in ten epochs of nine steps.
"""

from dataclasses import replace

from recipes import cifar10_resnet18

BASE = cifar10_resnet18.RECIPE
RECIPE = replace(
    BASE,
    dataset="digits",
    network="softmax",
    flags=f"{BASE.flags} --tr_epochs 10 --train_batch_size 64",
)
