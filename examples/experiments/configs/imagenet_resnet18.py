"""ImageNet, ResNet-18.

Paper:    as `cifar10_resnet18`; Table 3.
Command:  python examples/reproduce.py imagenet_resnet18 --data_path DIR
Time:     not run here; estimated as for `cifar10_resnet18`, 1.1e18 operations and 16 hours, if the
          images come fast enough.
Accuracy: published in %: SGD 70.23, SLA 70.30 ± 0.09, SLRLA 70.47 ± 0.12.

The released command lines have none for ImageNet. Epochs, batch size, weight decay and stages
are our choice, the usual ones of ResNets; k, α and β are those released for CIFAR-10.
"""

from experiments.config import Config
from experiments.configs.table3 import rows

BASE = Config(
    dataset="imagenet2012",
    model="ResNet-18",
    epochs=90,
    batch_size=256,
    learning_rate=1e-1,
    weight_decay=1e-4,
    milestones=(30, 60, 80),
    decay=0.1,
)
CONFIGS = rows(BASE)
