"""The stages of a run, how long they are; and the learning rate, in each and from step to step."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.config import Config, SettingError

# Factors of the learning rate, from the fraction of the run that is over.
ANNEALINGS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": jnp.ones_like,
    "cosine": lambda over: (1 + jnp.cos(jnp.pi * over)) / 2,
    "linear": lambda over: jnp.minimum(1, 5 * (1 - over)),
}


class Stages(NamedTuple):
    """Stages of a run.

    Attributes:
      learning_rates: of each.
      lengths: of each, in training steps.
      warmup: the number of steps in which the learning rate rises from 0.
      annealing: what it is multiplied by besides, a name in `ANNEALINGS`.
    """

    learning_rates: tuple[float, ...]
    lengths: tuple[int, ...]
    warmup: int = 0
    annealing: str = "none"

    @property
    def are_constant(self) -> bool:
        """Whether the learning rate does not change within a stage."""
        return self.warmup == 0 and self.annealing == "none"

    @property
    def steps(self) -> int:
        """Training steps of the run."""
        return sum(self.lengths)

    @property
    def ends(self) -> list[tuple[float, int]]:
        """The learning rate of each stage, and the step after which it is over."""
        ends = [sum(self.lengths[: q + 1]) for q in range(len(self.lengths))]
        return list(zip(self.learning_rates, ends, strict=True))

    def stage_of(self, step: int) -> int:
        """Returns the stage of a step, both counted from 1; the last one ever after."""
        return 1 + sum(step > end for _, end in self.ends[:-1])

    def longer(self, steps: int) -> "Stages":
        """Returns the same stages with so many more steps in the last one."""
        return self._replace(lengths=(*self.lengths[:-1], self.lengths[-1] + steps))

    def in_words(self) -> str:
        """Says the learning rate of each stage, and the step with which it ends."""
        if len(self.lengths) > 8:
            return f"{len(self.lengths)} stages, {self.steps:,} steps"
        ends = [
            f"{rate:.2g} to {'' if q else 'step '}{end:,}"
            for q, (rate, end) in enumerate(self.ends)
        ]
        warmup = f", after a warm-up of {self.warmup:,} steps" if self.warmup else ""
        annealing = f", {self.annealing} annealing" if self.annealing != "none" else ""
        return f"learning rate {', '.join(ends)}{warmup}{annealing}"

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate of a 0-based training step; the last one ever after."""
        staged = optax.join_schedules(
            [optax.constant_schedule(rate) for rate in self.learning_rates],
            [end for _, end in self.ends[:-1]],
        )
        if self.are_constant:
            return staged

        def schedule(count: jax.typing.ArrayLike) -> jax.Array:
            rising = jnp.minimum(1.0, (count + 1) / max(self.warmup, 1))
            over = jnp.minimum(1.0, count / self.steps)
            return staged(count) * rising * ANNEALINGS[self.annealing](over)

        return schedule


def stage_lengths(
    steps: int,
    milestones: Sequence[float],
    *,
    epoch: int = 1,
    sync_periods: Sequence[int] | None = None,
) -> tuple[int, ...]:
    """The training steps of stages that end at milestones, and at the end of the run.

    Args:
      steps: of the run.
      milestones: fractions of a run below 1, or epochs; rounded down to whole epochs.
      epoch: steps of an epoch; 1 for stages that may end at any step.
      sync_periods: of each stage, if stages are to be whole cycles: a stage is then rounded
        to the nearest number of cycles, the last one up.

    Raises:
      SettingError: if a stage would have no step, or no cycle.
    """
    ends: list[float] = [m * steps if m < 1 else m * epoch for m in milestones]
    if sync_periods is None or epoch > 1:
        ends = [int(end / epoch) * epoch for end in ends]
    lengths: list[int] = []
    for q, end in enumerate([*ends, steps]):
        k = 1 if sync_periods is None else sync_periods[q]
        left = end - sum(lengths)
        cycles = -(-left // k) if q == len(ends) else round(left / k)
        if cycles < 1:
            unit = f"cycle of {k} steps" if sync_periods else "epoch" if epoch > 1 else "step"
            span = f"{steps // epoch} epochs" if epoch > 1 else f"{steps} steps"
            raise SettingError(
                "milestones", f"stage {q + 1} of {len(ends) + 1} has no {unit} in {span}"
            )
        lengths.append(cycles * k)
    return tuple(lengths)


def stages_of(config: Config, steps: int, epoch: int) -> Stages:
    """The stages of a run of so many steps, with so many in an epoch.

    Raises:
      SettingError: if a stage would have no step, or no cycle; or if `sync_period` has neither
        one value nor one for each stage.
    """
    lengths = stage_lengths(
        steps,
        config.milestones,
        epoch=epoch if config.stages_in == "epochs" else 1,
        sync_periods=config.each_stage("sync_period") if config.whole_cycles else None,
    )
    rates = tuple(config.learning_rate * config.decay**q for q in range(len(lengths)))
    return Stages(rates, lengths, round(config.warmup * steps), config.annealing)


def with_milestones_that_fit(config: Config, steps: int, epoch: int) -> Config:
    """The configuration without the milestones that a run is too short for, perhaps with none.

    One is left out if it would be reached at once, or together with another, or only at the end.
    """
    periods = config.sync_period
    fitting: tuple[float, ...] = ()
    for milestone in config.milestones:
        more = (*fitting, milestone)
        of_these = periods[: len(more) + 1] if isinstance(periods, tuple) else periods
        try:
            stages_of(replace(config, milestones=more, sync_period=of_these), steps, epoch)
        except SettingError:
            continue
        fitting = more
    return replace(config, milestones=fitting)
