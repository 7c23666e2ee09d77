"""The regimes of supervised learning: a small network, and one thing changed at a time.

All are changes of one base: an MLP with SGD, batches of 32 and a learning rate that falls to 0 in
half a cosine wave. Momentum and weight decay are tuned for plain SGD, and are then the inner
optimizer's of every method. The learning rates of the grid are η / (1 − μ), the step that a
steady gradient makes in the end: with momentum μ the inner optimizer has η = (1 − μ) times these.
Schedule-free learning, which has its interpolation in place of momentum, has η itself.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from experiments.config import Config
from experiments.data import Dataset
from experiments.regimes.engine import Measure, Method, Regime, Setting
from experiments.regimes.training import Problem

BASE = Config(
    model="mlp",
    batch_size=32,
    annealing="cosine",
    milestones=(0.25, 0.5, 0.75),  # Of SLRLA's stages; the learning rate does not know them.
    stages_in="steps",
    decay=1.0,
    momentum=0.0,
    weight_decay=0.0,
)
STEPS = 1_000
RATES = tuple(2.0**n for n in range(-6, 4))
MOMENTA = (0.0, 0.5, 0.9, 0.95)
WEIGHT_DECAYS = (0.0, 1e-3, 1e-2, 3e-2)
TOO_LARGE = 4.0
SMALL = {"batch_size": 8, "steps": 2 * STEPS}
LARGE = {"batch_size": 128, "steps": STEPS // 2}


def settings(**values: Sequence[Any]) -> list[Setting]:
    """Returns the product of values of settings, the last one varying fastest."""
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


METHODS: Mapping[str, Method] = {
    "sgd": Method("Plain", settings(weight_decay=WEIGHT_DECAYS)),
    "ema": Method("EMA", settings(ema_decay=(0.9, 0.97, 0.99, 0.997))),
    "schedule_free": Method("Schedule-free", settings(momentum=(0.7, 0.9, 0.95, 0.98))),
    "lookahead": Method("Lookahead", settings(sync_period=(5, 20), slow_step_size=(0.5, 0.8))),
    "multilayer_lookahead": Method(
        "Multilayer Lookahead",
        [
            {"sync_period": (5, 5), "slow_step_size": sizes}
            for sizes in itertools.product((0.5, 0.8), repeat=2)
        ],
    ),
    "slrla": Method("SLRLA", settings(slow_step_size=(0.5, 0.8), beta=(0.01, 0.1))),
    "slrla_released": Method(
        "SLRLA (released form)", settings(slow_step_size=(0.5, 0.8), beta=(0.04, 0.4))
    ),
    "snoo": Method("SNOO", settings(sync_period=(5, 20), outer_momentum=(0.5, 0.75))),
    "primal_averaging": Method(
        "Primal averaging",
        settings(train_interpolation=(0.7, 0.9), eval_interpolation=(0.9, 0.99)),
    ),
}
FAMILY = "Supervised learning"
ERROR = Measure("test error in %", worst=100.0)


def regimes(dataset: Dataset) -> list[Regime]:
    """Returns the regimes, on a data set."""
    row = partial(regime, dataset)
    constant = row("constant", "Constant learning rate", annealing="none")
    return [
        row("decayed", "Decayed learning rate"),
        constant,
        too_large(constant, row("too_large", "", annealing="none")),
        *(
            row(f"momentum_{m:g}", f"Momentum {m:g}, constant rate", annealing="none", momentum=m)
            for m in MOMENTA
        ),
        row("batch_8", "Batches of 8", **SMALL),
        row("batch_8_constant", "Batches of 8, constant rate", annealing="none", **SMALL),
        row("batch_128", "Batches of 128", **LARGE),
        row("few_samples", "100 training images", train_images=100),
        row("flipped", "30 % of the labels flipped", flipped=0.3),
        row("flipped_constant", "30 % flipped, constant rate", annealing="none", flipped=0.3),
    ]


def regime(
    dataset: Dataset,
    name: str,
    label: str,
    *,
    momentum: float | None = None,
    annealing: str = BASE.annealing,
    batch_size: int = BASE.batch_size,
    steps: int = STEPS,
    **drawn: Any,
) -> Regime:
    """Returns a regime with some things changed from the base.

    Args:
      dataset: to train on.
      name: of the regime.
      label: likewise.
      momentum: of the inner optimizer; None to tune it for plain SGD.
      annealing: of the learning rate.
      batch_size: images in a batch.
      steps: of a run.
      drawn: the fields of `training.Problem` that say what a seed draws.
    """
    changes = {"annealing": annealing, "batch_size": batch_size, "momentum": momentum or 0.0}
    problem = Problem(dataset, replace(BASE, **changes), steps, **drawn)
    methods, inherited = METHODS, ("weight_decay",)
    if momentum is None:
        tuned = settings(momentum=MOMENTA, weight_decay=WEIGHT_DECAYS)
        methods = METHODS | {"sgd": METHODS["sgd"]._replace(own=tuned)}
        inherited = ("momentum", "weight_decay")
    return Regime(name, label, FAMILY, ERROR, methods, RATES, problem.scores, steps, inherited)


def too_large(constant: Regime, same: Regime) -> Regime:
    """Returns the regime whose learning rate is `TOO_LARGE` times the best for plain SGD.

    Args:
      constant: the regime in which that is the best.
      same: the same regime, to be given another learning rate.
    """

    def errors(method: str, tried: Sequence[Setting], *others: Any) -> np.ndarray:
        best = constant.chosen_for_plain.chosen
        fixed = {
            "momentum": best["momentum"],
            "learning_rate": TOO_LARGE * best["learning_rate"],
        }
        return same.scores(method, [{**fixed, **own} for own in tried], *others)

    return replace(
        same,
        label=f"Learning rate {TOO_LARGE:g} × too large",
        methods=METHODS,
        rates=(),
        scores=errors,
        inherited=("weight_decay",),
        note=f"The learning rate is {TOO_LARGE:g} times the best one for plain SGD at a constant "
        "learning rate, for all methods; only their own settings are tuned.",
    )
