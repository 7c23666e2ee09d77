"""The regimes of supervised learning: a small network, and one thing changed at a time.

All are changes of one base: an MLP with SGD, batches of 32 and a learning rate that falls to 0 in
half a cosine wave. In each regime the weight decay is tuned for plain SGD, whose own setting it is,
and is then the inner optimizer's of every method. So is the momentum, but only in the first; the
others have what was best there, or one of their own.

The learning rates of the grid are η / (1 − μ), the step that a steady gradient makes in the end:
with momentum μ the inner optimizer has η = (1 − μ) times these. Schedule-free learning, which has
its interpolation in place of momentum, has η itself.
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
    momentum=0.9,  # The best of `MOMENTA` for plain SGD.
    weight_decay=0.0,
)
STEPS = 1_000
RATES = tuple(2.0**n for n in range(-6, 5))
MOMENTA = (0.0, 0.5, 0.9, 0.95)
WEIGHT_DECAYS = (0.0, 1e-3, 1e-2, 3e-2)
LARGER = (1e-3, 1e-2, 3e-2, 1e-1)  # For noise that must not be fitted.
TOO_LARGE = 4.0
SMALL = {"batch_size": 8, "steps": 2 * STEPS}
LARGE = {"batch_size": 128, "steps": STEPS // 2}
FLIPPED = {"flipped": 0.3, "weight_decays": LARGER}


def settings(**values: Sequence[Any]) -> list[Setting]:
    """Returns the product of values of settings, the last one varying fastest."""
    return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]


METHODS: Mapping[str, Method] = {
    "sgd": Method("Plain", settings(weight_decay=WEIGHT_DECAYS)),
    "ema": Method("EMA", settings(ema_decay=(0.9, 0.97, 0.99, 0.997))),
    "schedule_free": Method("Schedule-free", settings(momentum=(0.5, 0.7, 0.9, 0.98))),
    "lookahead": Method("Lookahead", settings(sync_period=(5, 20), slow_step_size=(0.5, 0.8))),
    "multilayer_lookahead": Method(
        "Multilayer Lookahead",
        [
            {"sync_period": (5, 5), "slow_step_size": sizes}
            for sizes in itertools.product((0.5, 0.8), repeat=2)
        ],
    ),
    "slrla": Method("SLRLA", settings(slow_step_size=(0.5, 0.8), beta=(0.001, 0.01))),
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
        with_momentum_tuned(row("decayed", "Decayed learning rate")),
        constant,
        too_large(constant, row("too_large", "", annealing="none")),
        *(
            row(f"momentum_{m:g}", f"Momentum {m:g}, constant rate", annealing="none", momentum=m)
            for m in MOMENTA
            if m != BASE.momentum
        ),
        row("batch_8", "Batches of 8", **SMALL),
        row("batch_8_constant", "Batches of 8, constant rate", annealing="none", **SMALL),
        row("batch_128", "Batches of 128", **LARGE),
        row("few_samples", "100 training images", train_images=100),
        row("flipped", "30 % of the labels flipped", **FLIPPED),
        row("flipped_constant", "30 % flipped, constant rate", annealing="none", **FLIPPED),
    ]


def regime(
    dataset: Dataset,
    name: str,
    label: str,
    *,
    annealing: str = BASE.annealing,
    momentum: float = BASE.momentum,
    batch_size: int = BASE.batch_size,
    steps: int = STEPS,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    **drawn: Any,
) -> Regime:
    """Returns a regime with some things changed from the base.

    Args:
      dataset: to train on.
      name: of the regime.
      label: likewise.
      annealing: of the learning rate.
      momentum: of the inner optimizer.
      batch_size: images in a batch.
      steps: of a run.
      weight_decays: that are tried for plain SGD.
      drawn: the fields of `training.Problem` that say what a seed draws.
    """
    changes = {"annealing": annealing, "momentum": momentum, "batch_size": batch_size}
    problem = Problem(dataset, replace(BASE, **changes), steps, **drawn)
    plain = METHODS["sgd"]._replace(own=settings(weight_decay=weight_decays))
    methods = METHODS | {"sgd": plain}
    return Regime(
        name, label, FAMILY, ERROR, methods, RATES, problem.scores, steps, ("weight_decay",)
    )


def with_momentum_tuned(of: Regime) -> Regime:
    """Returns a regime in which momentum, too, is tuned for plain SGD."""
    both = settings(momentum=MOMENTA, weight_decay=WEIGHT_DECAYS)
    return replace(
        of,
        methods=METHODS | {"sgd": METHODS["sgd"]._replace(own=both)},
        inherited=("momentum", *of.inherited),
        note="For plain SGD the momentum was tuned, too, of which the other methods have the best.",
    )


def too_large(constant: Regime, same: Regime) -> Regime:
    """Returns the regime whose learning rate is `TOO_LARGE` times the best for plain SGD.

    Args:
      constant: the regime in which that is the best.
      same: the same regime, to be given another learning rate.
    """

    def errors(method: str, tried: Sequence[Setting], *others: Any) -> np.ndarray:
        rate = TOO_LARGE * constant.chosen_for_plain.chosen["learning_rate"]
        return same.scores(method, [{**own, "learning_rate": rate} for own in tried], *others)

    return replace(
        same,
        label=f"Learning rate {TOO_LARGE:g} × too large",
        rates=(),
        scores=errors,
        note=f"The learning rate is {TOO_LARGE:g} times the best one for plain SGD at a constant "
        "learning rate, for all methods; only their own settings are tuned.",
    )
