"""Optimizers of the package by name, ready to train, for the programs that compare weights.

All have momentum 0.9 and weight decay 5e-4, and each a learning rate of its own, with which it
learns the digits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import optax

from experiments.optimizers.inner import INNER
from experiments.optimizers.minimizers import minimizer
from slrla_jax import (
    adagrad_norm,
    adaloss,
    lookahead,
    multilayer_lookahead,
    slow_params,
    slrla_sgd,
)

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4

Make = Callable[[optax.Schedule], optax.GradientTransformation]


@dataclass(frozen=True)
class Named:
    """An optimizer with its settings.

    Attributes:
      label: its name in tables and plots.
      learning_rate: what its schedule begins with.
      make: the transformation, from a schedule of the training step.
      gradients: how many a step takes.
      slow_params: reads the weights to look at from optimizer state and params; None if those
        are the params themselves.
    """

    label: str
    learning_rate: float
    make: Make
    gradients: int = 1
    slow_params: Callable[[optax.OptState, optax.Params], optax.Params] | None = None


def of_minimizer(name: str) -> Make:
    """One of Lookbehind's released program, with the settings of the paper."""
    return partial(minimizer, name, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def of_table_3(name: str) -> Make:
    """One of the SLRLA paper's baselines."""
    return partial(INNER[name], momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


# The inner optimizer of all that have one.
momentum_sgd = of_table_3("SGD")


NAMED: dict[str, Named] = {
    "sgd": Named("SGD", 0.1, momentum_sgd),
    "lookahead": Named(
        "Lookahead", 0.1, lambda rate: lookahead(momentum_sgd(rate), 5, 0.8), 1, slow_params
    ),
    "multilayer_lookahead": Named(
        "Multilayer Lookahead",
        0.1,
        lambda rate: multilayer_lookahead(momentum_sgd(rate)),
        1,
        slow_params,
    ),
    "slrla": Named(
        "SLRLA",
        0.1,
        partial(slrla_sgd, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY),
        1,
        slow_params,
    ),
    "sam": Named("SAM", 0.1, of_minimizer("SAM"), 2),
    "asam": Named("ASAM", 0.1, of_minimizer("ASAM"), 2),
    "lookbehind_sam": Named("Lookbehind-SAM", 0.1, of_minimizer("Lookbehind_SAM"), 3),
    "lookbehind_asam": Named("Lookbehind-ASAM", 0.1, of_minimizer("Lookbehind_ASAM"), 3),
    "adaloss": Named(
        "AdaLoss", 0.5, partial(adaloss, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    ),
    "adagrad_norm": Named(
        "AdaGrad-Norm", 0.5, partial(adagrad_norm, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    ),
    "adam": Named("Adam", 1e-2, of_table_3("Adam")),
    "adabound": Named("AdaBound", 1e-2, of_table_3("AdaBound")),
}
