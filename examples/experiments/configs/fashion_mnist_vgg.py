"""Fashion-MNIST, a plain network of 16 thousand weights: not in the paper, and run for real.

Paper:    none; as `fashion_mnist_resnet`.
Command:  python examples/reproduce.py fashion_mnist_vgg --data_path DIR
Time:     19 min, likewise.
Accuracy: measured in %, 3 seeds: SGD 84.86 ± 0.25, SLA 84.81 ± 0.60, SLRLA 84.74 ± 0.64,
          Adam 77.81 ± 0.93, AdamW 77.77 ± 1.00, AdaBelief 78.81 ± 1.08.

Four convolutions with BatchNorm, and max pooling over 2×2 pixels after the first, the second and
the last. Everything else as `fashion_mnist_resnet`.
"""

from dataclasses import replace

from experiments.configs import fashion_mnist_resnet
from experiments.configs.table3 import rows

BASE = replace(fashion_mnist_resnet.BASE, model="narrow_vgg")
CONFIGS = rows(BASE, fashion_mnist_resnet.CONFIGS)
