"""Fashion-MNIST, a plain network of 16 thousand weights: not in the paper, and run for real.

Paper:    none; as `fashion_mnist_resnet`.
Command:  python examples/reproduce.py fashion_mnist_vgg --data_path DIR
Time:     FASHION_TIME
Accuracy: FASHION_VGG_ACCURACY

Four convolutions with batch normalisation, and a maximum over 2×2 pixels after the first, the
second and the last. All else as `fashion_mnist_resnet`.
"""

from dataclasses import replace

from recipes import fashion_mnist_resnet

RECIPE = replace(fashion_mnist_resnet.RECIPE, network="narrow_vgg")
