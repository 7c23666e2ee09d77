"""What the command line of the paper's released code asks for.

There the anchor of SLRLA is refreshed every S optimizer steps, whatever the stages of the
learning rate are, and β‖v − a‖² is added to the loss, without the ½ of the paper: its
`--slr S_β` is 2 β here. The paper's own Algorithm 3 is `slrla_jax.slrla`.
"""

from collections.abc import Sequence

import optax

from experiments.optimizers.inner import INNER
from slrla_jax import lookahead, slrla_sgd, stagewise_prox


def released(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    momentum: float,
    weight_decay: float,
    k_alpha: tuple[int, float] | None,
    s_beta: tuple[int, float] | None,
) -> optax.GradientTransformation:
    """The optimizer of a released command line.

    Args:
      name: of the inner optimizer, in `INNER`.
      learning_rate: a number or a schedule.
      momentum: of SGD, or b1 of the others.
      weight_decay: of the kind that the inner optimizer has.
      k_alpha: `--lookahead`, sync period and slow step size; None for no Lookahead.
      s_beta: `--slr`, steps between two anchors and β in the released convention; None for no
        regulariser.
    """
    if name == "SGD" and k_alpha is not None and s_beta is not None:
        # With S = k the anchor is refreshed at every sync, and needs no copy of its own.
        anchor_period = None if s_beta[0] == k_alpha[0] else s_beta[0]
        return slrla_sgd(
            learning_rate, 2 * s_beta[1], anchor_period, *k_alpha, momentum or None, weight_decay
        )
    tx = INNER[name](learning_rate, momentum, weight_decay)
    if k_alpha is not None:
        tx = lookahead(tx, *k_alpha)
    if s_beta is not None:
        tx = optax.chain(stagewise_prox(2 * s_beta[1], s_beta[0]), tx)
    return tx


def piecewise(rates: Sequence[float], lengths: Sequence[int]) -> optax.Schedule:
    """The learning rate of each stage for its length, the last one ever after."""
    ends = [sum(lengths[: q + 1]) for q in range(len(lengths) - 1)]
    return optax.join_schedules([optax.constant_schedule(rate) for rate in rates], ends)


def stage_lengths(
    milestones: Sequence[float], epochs: int, steps_per_epoch: int, ks: Sequence[int] | None = None
) -> list[int]:
    """The optimizer steps of stages that end at milestones, and at the end of the run.

    Args:
      milestones: fractions of a run below 1, or epochs.
      epochs: of the run.
      steps_per_epoch: of the run.
      ks: sync period of each stage, if stages are to be whole cycles: a stage is then rounded to
        the nearest, the last one up.

    Raises:
      ValueError: if a stage would have no step, or no cycle.
    """
    ends = [int(m * epochs if m < 1 else m) * steps_per_epoch for m in milestones]
    ends.append(epochs * steps_per_epoch)
    lengths: list[int] = []
    for q, end in enumerate(ends):
        k = 1 if ks is None else ks[q]
        steps = end - sum(lengths)
        cycles = -(-steps // k) if end == ends[-1] else round(steps / k)
        if cycles < 1:
            what = "epoch" if ks is None else f"cycle of {k} steps"
            raise ValueError(f"stage {q + 1} of {len(ends)} has no {what} in {epochs} epochs")
        lengths.append(cycles * k)
    return lengths
