"""The optimizers that are compared, with one recipe for all.

It is that of the paper's released code in miniature: SGD with momentum 0.9 and L2 weight
decay 1e-3, and a learning rate that falls to a fifth from stage to stage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optax

from slrla_jax import Stage, slow_params, slrla

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-3
LEARNING_RATE_DIVISOR = 5


@dataclass(frozen=True)
class Recipe:
    """What a run is made of, whichever optimizer it is for.

    Attributes:
      cycles: length of each stage, in cycles of Lookahead.
      learning_rate: that of the first stage; each further one has the
        last one's divided by `LEARNING_RATE_DIVISOR`.
      k: optimizer steps in a cycle.
      alpha: slow step size, of Lookahead and SLRLA.
      beta: strength of the local regulariser, of SLRLA.
    """

    cycles: tuple[int, ...]
    learning_rate: float
    k: int
    alpha: float
    beta: float

    def stages(self, alpha: float, beta: float) -> list[Stage]:
        """The stages, with an optimizer's own slow step size and regulariser."""
        return [
            Stage(
                cycles,
                self.learning_rate / LEARNING_RATE_DIVISOR**q,
                beta=beta,
                sync_period=self.k,
                slow_step_size=alpha,
            )
            for q, cycles in enumerate(self.cycles)
        ]

    @property
    def stage_ends(self) -> list[int]:
        """The optimizer steps after which each stage is over; the last one ends all."""
        return [self.k * sum(self.cycles[: q + 1]) for q in range(len(self.cycles))]

    @property
    def rates(self) -> list[tuple[float, int]]:
        """The learning rate of each stage, and the step after which it is over."""
        learning_rates = [stage.learning_rate for stage in self.stages(1.0, 0.0)]
        return list(zip(learning_rates, self.stage_ends, strict=True))

    @property
    def steps(self) -> int:
        """Optimizer steps, and so gradient evaluations, in a run."""
        return self.stage_ends[-1]


def stage_cycles(steps: int, k: int, fractions: Sequence[float]) -> tuple[int, ...]:
    """The lengths of stages that end after these fractions of a run, and at its end.

    All are whole cycles of k steps, so that each stage ends on a sync: a run is rounded
    up to whole cycles, the end of a stage to the nearest one. The optimizers that have
    no cycles get the same stages, and so the same budget.

    Raises:
      ValueError: if that leaves a stage without a cycle.
    """
    cycles = -(-steps // k)
    ends = [round(fraction * cycles) for fraction in fractions] + [cycles]
    lengths = tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False))
    if min(lengths) < 1:
        cycle_or_cycles = "cycle" if cycles == 1 else "cycles"
        raise ValueError(
            f"{cycles} {cycle_or_cycles} of k = {k} steps: too few for {len(ends)} stages; "
            "more epochs, fewer stages or a smaller k would do"
        )
    return lengths


@dataclass(frozen=True)
class Optimizer:
    """An entry of the comparison.

    Attributes:
      label: its name in tables and plots.
      make: the optax transformation, from the recipe.
      slow_params: reads the weights to evaluate from optimizer state and params; None
        if those are the params themselves.
    """

    label: str
    make: Callable[[Recipe], optax.GradientTransformation]
    slow_params: Callable[[optax.OptState, optax.Params], optax.Params] | None = None


def momentum_sgd(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """The inner optimizer of all."""
    return optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(learning_rate, momentum=MOMENTUM)
    )


def stagewise_sgd(recipe: Recipe) -> optax.GradientTransformation:
    """The inner optimizer by itself, without anything from slrla_jax in it."""
    stages = recipe.stages(alpha=1.0, beta=0.0)
    return momentum_sgd(
        optax.join_schedules(
            [optax.constant_schedule(stage.learning_rate) for stage in stages],
            recipe.stage_ends[:-1],
        )
    )


def stagewise_lookahead(recipe: Recipe) -> optax.GradientTransformation:
    """SLRLA without its regulariser."""
    return slrla(momentum_sgd, recipe.stages(recipe.alpha, beta=0.0))


def stagewise_regularised_lookahead(recipe: Recipe) -> optax.GradientTransformation:
    """SLRLA as in the paper's Algorithm 3: each stage is held near where it began."""
    return slrla(momentum_sgd, recipe.stages(recipe.alpha, recipe.beta))


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer("SGD", stagewise_sgd),
    "sla": Optimizer("SLA", stagewise_lookahead, slow_params),
    "slrla": Optimizer("SLRLA", stagewise_regularised_lookahead, slow_params),
}
