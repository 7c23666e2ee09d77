"""The recipe of AdaLoss's released code, with which pretrained networks are fine-tuned.

Paper:    Wu et al., "AdaLoss: A computationally-efficient and provably convergent adaptive gradient
          method", AAAI 2022.
Command:  python examples/train.py -c configs/config_cifar100_adaloss.json --model vits16r224
          --b0 1 --lr 0.1 --epochs 10 --weight_decay 1e-4 --data_path DIR, and likewise.
Time:     not run here, where there are no accelerator, no weights and no CIFAR-100.
Accuracy: 82.7 to 90.8 % at b_0 = 1, by the published tables; see `examples/README.md`.
"""

import math

from experiments import flags
from experiments.config import Config
from experiments.config_file import Entry
from experiments.models import NETWORKS

BASE = Config(
    dataset="cifar100",
    validation_split=0.1,
    image_size=224,
    model="ViT-S-16",
    epochs=10,
    batch_size=128,
    milestones=(),
    fit_milestones=False,
    decay=0.1,
    learning_rate=0.1,
    optimizer="adaloss",
    momentum=0.0,
    weight_decay=1e-4,
)
SEED = 123
NUM_CLASSES = 100
# What the paper's networks are called there; any name in `models.NETWORKS` is one as well.
MODELS = {"vits16r224": "ViT-S-16", "swsl_resnet50": "ResNet-50"}
# The optimizers by what the released code calls the optimizer and the training loss.
METHODS = {
    ("SGD", "AdaLoss"): "adaloss",
    ("SGD", "PlainLossb0"): "sgd_constant",
    ("SGD", "PlainLossSqrt"): "sgd_decay_sqrt",
    ("Adagradnorm", "CrossEntropy"): "adagrad_norm",
}
TYPES, LOSSES = (tuple(dict.fromkeys(names)) for names in zip(*METHODS, strict=True))

# What a configuration file may have, and the flags in its place.
ENTRIES = (
    Entry("title", "name", str, flags.folder_name),
    Entry(
        "seed",
        "seed",
        int,
        flags.seed,
        ("--seed",),
        "the first seed, of the new head, batches and augmentation",
    ),
    Entry(
        "model",
        "arch.type",
        str,
        flags.spelling(NETWORKS, MODELS),
        ("--model",),
        f"{', '.join(MODELS)}, or {', '.join(NETWORKS)}, in any spelling",
        "NAME",
    ),
    Entry(
        "num_classes",
        "num_classes",
        int,
        flags.count,
        ("--num_classes",),
        "classes of the data set, for which the network gets a new head",
    ),
    Entry(
        "batch_size",
        "data_loader.args.batch_size",
        int,
        flags.count,
        ("--bs", "--batch_size"),
        "images in a batch, over all devices",
    ),
    Entry(
        "validation_split",
        "data_loader.args.validation_split",
        float,
        flags.number("more than 0 and below 1", lambda x: 0 < x < 1),
        ("--validation_split",),
        "fraction of the training images that are set apart and choose the best epoch",
        "FRACTION",
    ),
    Entry("optimizer_type", "optimizer.type", str, flags.spelling(TYPES)),
    Entry(
        "learning_rate",
        "optimizer.args.lr",
        float,
        flags.positive,
        ("--lr", "--eta", "--learning_rate"),
        "learning rate, before it is divided by b",
        "η",
    ),
    Entry(
        "momentum",
        "optimizer.args.momentum",
        float,
        flags.fraction,
        ("--mm", "--momentum"),
        "momentum of SGD",
        "μ",
    ),
    Entry(
        "weight_decay",
        "optimizer.args.weight_decay",
        float,
        flags.not_negative,
        ("--wd", "--weight_decay"),
        "weight decay (L2), which is not divided by b",
        "λ",
    ),
    Entry(
        "adanormb0",
        "optimizer.args.initial_accumulator_value",
        float,
        flags.positive,
        ("--adanormb0", "--normb0"),
        "b_0 of AdaGrad-Norm",
        "b_0",
    ),
    Entry("loss_type", "train_loss.type", str, flags.spelling(LOSSES)),
    Entry(
        "loss_weight",
        "train_loss.args.alpha",
        float,
        flags.positive,
        ("--alpha",),
        "α of AdaLoss and SGD_DecaySqrt",
        "α",
    ),
    Entry(
        "b0",
        "train_loss.args.b0",
        float,
        flags.positive,
        ("--b0",),
        "b_0 of AdaLoss, SGD_Constant and SGD_DecaySqrt",
        "b_0",
    ),
    Entry(
        "loss_offset",
        "train_loss.args.cc",
        float,
        flags.number("a finite number", math.isfinite),
        ("--cc",),
        "c of AdaLoss, what a loss is at its least",
        "c",
    ),
    Entry("schedule", "lr_scheduler.type", str, flags.spelling({"StepLR"})),
    Entry("step_size", "lr_scheduler.args.step_size", int, flags.count),
    Entry("decay", "lr_scheduler.args.gamma", float, flags.positive),
    Entry(
        "epochs",
        "trainer.epochs",
        int,
        flags.count,
        ("--ep", "--epochs"),
        "passes over the training images",
    ),
)
