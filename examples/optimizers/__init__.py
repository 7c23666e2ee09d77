"""The optimizers of the examples.

- `comparison`: stagewise SGD, Lookahead and SLRLA with one recipe, for `compare.py`.
- `inner`: the optimizers of the paper's Table 3 that Lookahead may be put around.
- `released`: what the command line of the paper's released code asks for.
"""

from optimizers.comparison import (
    LEARNING_RATE_DIVISOR,
    MOMENTUM,
    OPTIMIZERS,
    WEIGHT_DECAY,
    Optimizer,
    Recipe,
    outer_steps,
)
from optimizers.inner import INNER
from optimizers.released import piecewise, released, stage_lengths

__all__ = [
    "INNER",
    "LEARNING_RATE_DIVISOR",
    "MOMENTUM",
    "OPTIMIZERS",
    "WEIGHT_DECAY",
    "Optimizer",
    "Recipe",
    "outer_steps",
    "piecewise",
    "released",
    "stage_lengths",
]
