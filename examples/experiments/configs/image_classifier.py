"""Fashion-MNIST and a residual network of 20 thousand weights, with optimizers that are all tuned.

Paper:    none; optimizers of the Lookahead family around SGD with momentum, and what they compete
          with.
Command:  python examples/image_classifier.py --dataset fashion_mnist --data_path DIR
Time:     see `results/image_classifier/README.md`, as for what came out.

Data, network and length are those of `fashion_mnist_resnet`: 4,000 training images, 620 steps.
"""

from experiments.config import Config
from experiments.configs.language_model import PROBLEM as LANGUAGE
from experiments.report import Column
from experiments.tuning import Problem

BASE = Config(
    dataset="digits",
    model="narrow_resnet",
    epochs=10,
    batch_size=64,
    milestones=(),
    warmup=0.05,
    learning_rate=0.1,
    inner="sgd",
    momentum=0.9,
    weight_decay=1e-3,
    eval_every=1,
)
ACCURACY = Column("accuracy", "test_accuracy")
# Lookahead around Lookahead, whose outermost layer syncs in the last of 620 steps, too.
NESTED = {"optimizer": "multilayer_lookahead"}

PROBLEM = Problem(
    base=BASE,
    held_out=4_000,
    learning_rates=(0.05, 0.1, 0.2, 0.4),
    starts={"sgd": {}}
    | {name: own for name, own in LANGUAGE.starts.items() if name != "adamw"}
    | {
        "two_layers": NESTED | {"sync_period": (5, 2), "slow_step_size": (0.8, 0.8)},
        "three_layers": NESTED | {"sync_period": (5, 2, 2), "slow_step_size": (0.8, 0.8, 0.8)},
    },
    others={"sgd": LANGUAGE.others["adamw"]}
    | {name: changes for name, changes in LANGUAGE.others.items() if name != "adamw"}
    | {
        "two_layers": [
            {"slow_step_size": (0.5, 0.5)},
            {"slow_step_size": (0.8, 0.5)},
            {"sync_period": (5, 4)},
        ],
        "three_layers": [
            {"slow_step_size": (0.5, 0.5, 0.5)},
            {"slow_step_size": (0.8, 0.8, 0.5)},
            {"sync_period": (2, 5, 2)},
        ],
    },
    tuned={
        "sgd": {"learning_rate": 0.8, "annealing": "cosine", "momentum": 0.8},
        "ema": {"learning_rate": 0.05, "ema_decay": 0.9},
        "schedule_free": {"learning_rate": 0.8},
        "lookahead": {
            "learning_rate": 0.4,
            "annealing": "cosine",
            "sync_period": 5,
            "slow_step_size": 0.5,
        },
        "snoo": {
            "learning_rate": 0.1,
            "annealing": "cosine",
            "sync_period": 20,
            "outer_learning_rate": 0.8,
            "outer_momentum": 0.75,
        },
        "primal_averaging": {
            "learning_rate": 0.4,
            "annealing": "cosine",
            "train_interpolation": 0.7,
            "eval_interpolation": 0.99,
        },
        "two_layers": NESTED
        | {
            "learning_rate": 0.1,
            "annealing": "linear",
            "sync_period": (5, 2),
            "slow_step_size": (0.8, 0.8),
        },
        "three_layers": NESTED
        | {
            "learning_rate": 0.2,
            "annealing": "linear",
            "sync_period": (5, 2, 2),
            "slow_step_size": (0.8, 0.8, 0.8),
        },
    },
    goal=ACCURACY,
    columns=(
        Column("recalibrated", "recalibrated_test_accuracy"),
        Column("loss", "test_loss", form=".4f"),
    ),
    note="Accuracy in % on the test images, of the weights that each method evaluates, with the "
    "running BatchNorm statistics of the fast weights, and with recalibrated ones",
)
