"""A transformer of 110 thousand weights that predicts the characters of an English text.

Paper:    none; optimizers of the Lookahead family around AdamW, and what they compete with.
Command:  python examples/language_model.py --dataset text --data_path DIR
Time:     see `results/language_model/README.md`, as for what came out.

A thousand steps with 16 windows of 64 characters each are a million characters; the Jargon File,
on which the settings were tuned, has 1.6 million.
"""

from experiments.config import Config
from experiments.report import Column
from experiments.tuning import Problem

BASE = Config(
    dataset="python_reference",
    model="transformer",
    epochs=10,
    epoch_steps=100,
    batch_size=16,
    milestones=(),
    warmup=0.05,
    learning_rate=4e-3,
    inner="adamw",
    momentum=0.9,
    weight_decay=0.1,
    recalibrate=False,
)
LOSS = Column("loss", "test_loss", form=".4f", lower_is_better=True)
ACCURACY = Column("accuracy", "test_accuracy")

PROBLEM = Problem(
    base=BASE,
    held_out=800,
    learning_rates=(2e-3, 4e-3, 8e-3, 16e-3),
    starts={
        "adamw": {},
        "ema": {"ema_decay": 0.99},
        "schedule_free": {},
        "lookahead": {"sync_period": 5, "slow_step_size": 0.8},
        "snoo": {"sync_period": 20, "outer_learning_rate": 0.8, "outer_momentum": 0.75},
        "primal_averaging": {"train_interpolation": 0.7, "eval_interpolation": 0.9967},
    },
    others={
        "adamw": [{"momentum": 0.8}, {"momentum": 0.95}],
        "ema": [{"ema_decay": 0.9}, {"ema_decay": 0.98}, {"ema_decay": 0.995}],
        "schedule_free": [{"momentum": 0.8}, {"momentum": 0.95}, {"momentum": 0.98}],
        "lookahead": [
            {"slow_step_size": 0.5},
            {"sync_period": 20},
            {"sync_period": 20, "slow_step_size": 0.5},
        ],
        "snoo": [
            {"sync_period": 5},
            {"sync_period": 50},
            {"outer_momentum": 0.5},
            {"outer_learning_rate": 0.5, "outer_momentum": 0.5},
        ],
        "primal_averaging": [
            {"eval_interpolation": 0.99},
            {"train_interpolation": 0.9},
            {"train_interpolation": 0.9, "eval_interpolation": 0.99},
        ],
    },
    tuned={
        "adamw": {"learning_rate": 2e-3, "annealing": "linear", "momentum": 0.8},
        "ema": {"learning_rate": 4e-3, "annealing": "linear", "ema_decay": 0.9},
        "schedule_free": {"learning_rate": 4e-3, "momentum": 0.95},
        "lookahead": {
            "learning_rate": 4e-3,
            "annealing": "linear",
            "sync_period": 20,
            "slow_step_size": 0.8,
        },
        "snoo": {
            "learning_rate": 4e-3,
            "annealing": "linear",
            "sync_period": 20,
            "outer_learning_rate": 0.5,
            "outer_momentum": 0.5,
        },
        "primal_averaging": {
            "learning_rate": 8e-3,
            "train_interpolation": 0.7,
            "eval_interpolation": 0.9967,
        },
    },
    goal=LOSS,
    columns=(ACCURACY,),
    note="Loss in nats per character, accuracy in % of the characters, of the weights that each "
    "method evaluates",
)
