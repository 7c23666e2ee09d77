"""The optimizers of the examples.

- `comparison`: stagewise SGD, Lookahead and SLRLA with one recipe, for `compare.py`.
- `inner`: the optimizers of the paper's Table 3 that Lookahead may be put around.
- `released`: what the command line of the paper's released code asks for.
- `minimizers`: the same for Lookbehind: SGD, SAM, ASAM and Lookbehind, with its recipe.
- `by_name`: those of the package with settings, for programs that compare trained weights.
"""

from experiments.optimizers.by_name import NAMED, Named
from experiments.optimizers.comparison import (
    LEARNING_RATE_DIVISOR,
    MOMENTUM,
    OPTIMIZERS,
    WEIGHT_DECAY,
    Optimizer,
    Recipe,
    stage_cycles,
)
from experiments.optimizers.inner import INNER
from experiments.optimizers.minimizers import (
    MINIMIZERS,
    ascent_steps,
    find_minimizer,
    minimizer,
    quarters,
)
from experiments.optimizers.released import piecewise, released, stage_lengths

__all__ = [
    "INNER",
    "LEARNING_RATE_DIVISOR",
    "MINIMIZERS",
    "MOMENTUM",
    "NAMED",
    "OPTIMIZERS",
    "WEIGHT_DECAY",
    "Named",
    "Optimizer",
    "Recipe",
    "ascent_steps",
    "find_minimizer",
    "minimizer",
    "piecewise",
    "quarters",
    "released",
    "stage_cycles",
    "stage_lengths",
]
