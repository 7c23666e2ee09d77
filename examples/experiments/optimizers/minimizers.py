"""What the command line of Lookbehind's released code asks for, and what it is compared with."""

from typing import NamedTuple

import jax
import optax

from experiments.optimizers.inner import INNER
from experiments.optimizers.released import piecewise
from slrla_jax import lookbehind

# The released recipe: a tenth of the learning rate after 50, 100 and 150 of 200 epochs.
MILESTONES = (0.25, 0.5, 0.75)
DECAY = 0.1


class Ascent(NamedTuple):
    """How a minimizer goes up before it goes down.

    Attributes:
      lookbehind: whether it makes k steps up and goes a part of the way back, or one step and
        not back.
      adaptive_rho: whether steps are in units of each weight's own size, as ASAM's.
      rho: ρ of the paper, the length of a step.
    """

    lookbehind: bool
    adaptive_rho: bool
    rho: float


MINIMIZERS: dict[str, Ascent | None] = {
    "SGD": None,
    "SAM": Ascent(lookbehind=False, adaptive_rho=False, rho=0.05),
    "ASAM": Ascent(lookbehind=False, adaptive_rho=True, rho=0.5),
    "Lookbehind_SAM": Ascent(lookbehind=True, adaptive_rho=False, rho=0.05),
    "Lookbehind_ASAM": Ascent(lookbehind=True, adaptive_rho=True, rho=0.5),
}


def find_minimizer(name: str) -> str:
    """A name as `MINIMIZERS` has it: upper and lower case, "-" and "_" make no difference."""
    known = {_letters(key): key for key in MINIMIZERS}
    if _letters(name) not in known:
        raise ValueError(f"must be one of {', '.join(MINIMIZERS)}, got {name!r}")
    return known[_letters(name)]


def minimizer(
    name: str,
    learning_rate: optax.Schedule,
    momentum: float,
    weight_decay: float,
    *,
    rho: float | None = None,
    eta: float = 0.0,
    k: int = 2,
    alpha: float | str = "adaptive",
) -> optax.GradientTransformation:
    """One of the minimizers, around SGD with momentum and weight decay in the gradient.

    Args:
      name: in `MINIMIZERS`.
      learning_rate: a schedule of the training step.
      momentum: of SGD.
      weight_decay: of SGD.
      rho: length of an ascent step; None for the paper's.
      eta: of ASAM, added to the size of each weight.
      k: ascent steps, of Lookbehind.
      alpha: slow step size of Lookbehind; "adaptive" for one of each leaf's own.
    """
    ascent = MINIMIZERS[name]
    if ascent is None:
        return INNER["SGD"](learning_rate, momentum, weight_decay)
    steps = ascent_steps(name, k)
    return lookbehind(
        INNER["SGD"](each_held(learning_rate, steps), momentum, weight_decay),
        steps,
        ascent.rho if rho is None else rho,
        alpha if ascent.lookbehind else 1.0,
        adaptive_rho=ascent.adaptive_rho,
        eta=eta,
        weight_mask=all_but_biases,
    )


def ascent_steps(name: str, k: int) -> int:
    """How many ascent steps a training step of a minimizer has; it takes one gradient more."""
    ascent = MINIMIZERS[name]
    if ascent is None:
        return 0
    return k if ascent.lookbehind else 1


def each_held(learning_rate: optax.Schedule, k: int) -> optax.Schedule:
    """A schedule of training steps as one for an optimizer that makes k steps in each."""
    return lambda count: learning_rate(count // k)


def quarters(learning_rate: float, steps: int) -> tuple[optax.Schedule, list[tuple[float, int]]]:
    """The released recipe's learning rate for a run of any length.

    A run of fewer than four steps has fewer stages, the first one always.

    Args:
      learning_rate: of the first quarter.
      steps: of the run.

    Returns:
      The schedule, and the learning rate of each stage with the step at which it ends.
    """
    ends = sorted({int(milestone * steps) for milestone in MILESTONES} - {0} | {steps})
    rates = [learning_rate * DECAY**q for q in range(len(ends))]
    lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    return piecewise(rates, lengths), list(zip(rates, ends, strict=True))


def all_but_biases(params: optax.Params) -> optax.Params:
    """What ASAM's steps are adaptive in, in the released code: scales of norms are, too."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "bias", params)


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
