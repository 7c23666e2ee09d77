"""SLRLA: stages of Lookahead, each held near the slow weights it began with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from slrla_jax import _arguments as arguments
from slrla_jax import _moments as moments
from slrla_jax._arguments import Scalar, ScalarOrSchedule, Schedule
from slrla_jax._lookahead import check_settings, lookahead, lookahead_layer
from slrla_jax._stagewise import per_stage, pull_towards, regularised_extra_args, stagewise_prox
from slrla_jax._weight_decay import coupled_weight_decay


@dataclass(frozen=True)
class Stage:
    """The settings of one stage of `slrla`: T_q, η_q, β_q, k_q and α_q.

    Attributes:
      cycles: T_q ≥ 1, cycles of Lookahead in the stage. It lasts `cycles * sync_period`
        optimizer steps and ends on a sync.
      learning_rate: η_q ≥ 0; a number, or a schedule of the 0-based optimizer step
        within the stage.
      beta: β_q ≥ 0, strength of the local regulariser; 0 for none.
      sync_period: k_q ≥ 1, optimizer steps in a cycle.
      slow_step_size: α_q in (0, 1].

    Raises:
      ValueError: for a value outside these bounds.

    Example:
      >>> import slrla_jax
      >>> slrla_jax.Stage(cycles=100, learning_rate=0.1, beta=0.4).length
      500
    """

    cycles: int
    learning_rate: ScalarOrSchedule
    beta: Scalar = 0.0
    sync_period: int = 5
    slow_step_size: Scalar = 0.8

    def __post_init__(self) -> None:
        arguments.check_length("cycles", self.cycles)
        arguments.check_non_negative("learning_rate", self.learning_rate)
        arguments.check_length("sync_period", self.sync_period)
        arguments.check_no_schedule(beta=self.beta, slow_step_size=self.slow_step_size)
        arguments.check_non_negative("beta", self.beta)
        arguments.check_step_size("slow_step_size", self.slow_step_size)

    @property
    def length(self) -> int:
        """Optimizer steps in the stage."""
        length: int = _whole(self.cycles) * _whole(self.sync_period)
        return length


def slrla(
    make_inner: Callable[[Schedule], optax.GradientTransformation],
    stages: Sequence[Stage],
    *,
    sync_moments: str = "keep",
    slow_dtype: DTypeLike | None = None,
    anchor_dtype: DTypeLike | None = None,
    decoupled: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Stagewise locally-regularised Lookahead, whole (Algorithm 3 of Zhou et al.).

    .. math::
        &\textbf{for } q = 1, …, Q: \\
        &\quad F_q(θ) = F(θ) + \tfrac{β_q}{2} \|θ - θ_{q-1}\|^2 \\
        &\quad θ_q = \text{Lookahead}(F_q, η_q, T_q, α_q, k_q, θ_{q-1}, A)

    Each stage has its own learning rate η_q, length T_q, slow step size α_q, period
    k_q and strength β_q; after the last stage its settings remain in force. β = 0 is stagewise
    Lookahead, β = 0 with α = 1 stagewise SGD, and one stage with β = 0 is
    `lookahead`. What is said there of the place in a chain holds here.

    Args:
      make_inner: makes A, the inner optimizer, from a learning rate: `optax.sgd`, say, or
        `lambda lr: optax.sgd(lr, momentum=0.9)`. It is given one schedule that covers all
        stages.
      stages: the stages 1, …, Q.
      sync_moments: what a sync does to the moments of the inner optimizer; see
        `lookahead`. Stages, anchors and the learning rate's schedule go on.
      slow_dtype: dtype of the slow weights; see `lookahead`.
      anchor_dtype: dtype of the anchor θ_{q−1}; see `stagewise_prox`.
      decoupled: whether the pull bypasses the inner optimizer, adding −η β (v − θ_{q−1})
        to its update, instead of being added to the gradient. It is to the
        regulariser what AdamW is to L2, for adaptive inner optimizers.

    Returns:
      A transformation like `lookahead`'s, with one more copy of the params in its
      state: the anchor. (Where every β is 0 there is none.)

    Raises:
      ValueError: if `make_inner` is no function that returns a transformation, if `stages`
        is empty or holds anything but stages, and as `lookahead` and `stagewise_prox` do.

    Example:
      >>> import optax, slrla_jax
      >>> from slrla_jax import Stage
      >>> tx = slrla_jax.slrla(
      ...     lambda lr: optax.chain(
      ...         optax.add_decayed_weights(1e-3), optax.sgd(lr, momentum=0.9)
      ...     ),
      ...     [Stage(6_000, 0.1, beta=0.4), Stage(6_000, 0.02, beta=0.4, slow_step_size=0.5)],
      ... )

    References:
      Zhou, Yan, Yuan, Feng and Yan, `Towards Understanding Why Lookahead Generalizes
      Better Than SGD and Beyond
      <https://papers.nips.cc/paper/2021/hash/e53a0a2978c28872a4505bdb51db06dc-Abstract.html>`_,
      2021.
    """
    _check_factory(make_inner)
    _check_stages(stages)
    arguments.check_dtype("anchor_dtype", anchor_dtype)
    arguments.check_bool("decoupled", decoupled)
    lengths = [stage.length for stage in stages]
    learning_rate = optax.join_schedules(
        [_from_its_start(stage.learning_rate) for stage in stages],
        [sum(lengths[:q]) for q in range(1, len(lengths))],
    )
    inner = make_inner(learning_rate)
    arguments.check_transformation("make_inner(learning_rate)", inner)

    betas = [stage.beta for stage in stages]
    beta_at = per_stage(betas, lengths)
    is_regularised = not all(map(arguments.is_zero, betas))
    if is_regularised and decoupled:
        pull = stagewise_prox(
            lambda count: -learning_rate(count) * beta_at(count),
            lengths,
            anchor_dtype=anchor_dtype,
        )
        inner = optax.chain(_forgetting(inner), pull)

    tx = lookahead(
        inner,
        per_stage([stage.sync_period for stage in stages], lengths),
        per_stage([stage.slow_step_size for stage in stages], lengths),
        sync_moments=sync_moments,
        slow_dtype=slow_dtype,
    )
    if is_regularised and not decoupled:
        prox = stagewise_prox(betas, lengths, anchor_dtype=anchor_dtype)
        tx = _minimising(prox, beta_at, tx)
    return tx


def _minimising(
    prox: optax.GradientTransformation, beta_at: Schedule, tx: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """`optax.chain(prox, tx)`, with `tx` told of F_q also where it asks for more than g.

    Optimizers that look at the loss (`value=`) or evaluate gradients themselves
    (`grad_fn=`) would otherwise step on the plain F. What a line search remembers of F_q
    is not what the training loop asks for, which is F.
    """
    tx = arguments.with_extra_args_support(tx)

    def init_fn(params: optax.Params) -> tuple[optax.OptState, optax.OptState]:
        return prox.init(params), tx.init(params)

    def update_fn(
        updates: optax.Updates,
        state: tuple[optax.OptState, optax.OptState],
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, tuple[optax.OptState, optax.OptState]]:
        prox_state, tx_state = state
        beta = beta_at(prox_state.steps_taken)
        updates, prox_state = prox.update(updates, prox_state, params)
        extra_args = regularised_extra_args(extra_args, prox_state.anchor_params, params, beta)
        updates, tx_state = tx.update(updates, tx_state, params, **extra_args)
        tx_state = moments.forget_evaluations(jnp.asarray(beta != 0), tx_state)
        return updates, (prox_state, tx_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _forgetting(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`inner`, whose line search forgets the loss at params that a pull will move on."""
    inner = arguments.with_extra_args_support(inner)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = inner.update(updates, state, params, **extra_args)
        return updates, moments.forget_evaluations(True, state)

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def slrla_sgd(
    learning_rate: ScalarOrSchedule,
    beta: ScalarOrSchedule = 0.4,
    anchor_period: Scalar | None = None,
    sync_period: ScalarOrSchedule = 5,
    slow_step_size: ScalarOrSchedule = 0.8,
    momentum: Scalar | None = 0.9,
    weight_decay: Scalar = 0.0,
    *,
    sync_moments: str = "keep",
    slow_dtype: DTypeLike | None = None,
    anchor_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SLRLA around SGD in the form of the authors' released code.

    There the anchor a is refreshed every S = `anchor_period` optimizer steps, whatever
    the stages of the learning rate are:

    .. math::
        a &← v \text{ at steps } 0, S, 2S, … \\
        m &← μ m + g + β (v - a) + λ v \\
        v &← v - η m, \quad \text{with a sync of Lookahead every } k \text{ steps.}

    That code adds β‖v − a‖² to the loss, without the ½ of the paper: its flags
    `--lookahead 5_0.8 --slr 5_0.2` are the defaults here, β = 0.4.

    Where the anchor is refreshed at every sync, as it is in the released recipe, it is
    always the slow weights: with `anchor_period=None` it is not stored, and SLRLA needs no
    more memory than Lookahead.

    Args:
      learning_rate: η ≥ 0; a number, or a schedule of the 0-based optimizer step.
      beta: β ≥ 0, in the paper's convention; a number or a schedule.
      anchor_period: S ≥ 1, in optimizer steps; None to refresh the anchor at every sync.
      sync_period: k; see `lookahead`.
      slow_step_size: α; see `lookahead`.
      momentum: μ in [0, 1); None for plain SGD, which keeps no momentum.
      weight_decay: λ ≥ 0, coupled (L2): added to the gradient, before momentum.
      sync_moments: what a sync does to the momentum; see `lookahead`.
      slow_dtype: dtype of the slow weights; see `lookahead`.
      anchor_dtype: dtype of the anchor that `anchor_period` asks for; see `stagewise_prox`.

    Returns:
      A transformation like `lookahead`'s.

    Raises:
      ValueError: for an `anchor_dtype` without an `anchor_period`, for an argument
        outside these bounds, and as `lookahead` and `stagewise_prox` do.

    Example:
      >>> import optax, slrla_jax
      >>> steps = 100 * 390
      >>> tx = slrla_jax.slrla_sgd(
      ...     optax.piecewise_constant_schedule(
      ...         0.1, {int(part * steps): 0.2 for part in (0.3, 0.6, 0.8)}
      ...     ),
      ...     weight_decay=1e-3,
      ... )

    References:
      Zhou, Yan, Yuan, Feng and Yan, `Towards Understanding Why Lookahead Generalizes
      Better Than SGD and Beyond
      <https://papers.nips.cc/paper/2021/hash/e53a0a2978c28872a4505bdb51db06dc-Abstract.html>`_,
      2021, and the code released with it.
    """
    arguments.check_non_negative("learning_rate", learning_rate)
    arguments.check_non_negative("beta", beta)
    arguments.check_no_schedule(momentum=momentum, weight_decay=weight_decay)
    if momentum is not None:
        arguments.check_decay("momentum", momentum)
    arguments.check_non_negative("weight_decay", weight_decay)
    inner = optax.chain(
        coupled_weight_decay(weight_decay),
        optax.sgd(arguments.as_plain(learning_rate), arguments.as_plain(momentum)),
    )
    settings = (inner, sync_period, slow_step_size, sync_moments, slow_dtype)
    check_settings(*settings)

    if anchor_period is not None:
        arguments.check_length("anchor_period", anchor_period)
        prox = stagewise_prox(beta, anchor_period, anchor_dtype=anchor_dtype)
        return optax.chain(prox, lookahead_layer(*settings))
    if anchor_dtype is not None:
        raise ValueError(
            "`anchor_dtype` must be None where `anchor_period` is, for the anchor then is the "
            f"slow weights themselves; got {anchor_dtype!r}."
        )

    beta_at = arguments.as_schedule(beta)

    def pull(
        updates: optax.Updates, params: optax.Params, slow: optax.Params, count: jax.Array
    ) -> optax.Updates:
        return pull_towards(slow, updates, params, beta_at(count))

    return lookahead_layer(*settings, pull=pull)


def _whole(number: Any) -> Any:
    """A number of steps as an integer of Python, which does not overflow; if it is known."""
    return number if isinstance(number, jax.core.Tracer) else int(number)


def _from_its_start(learning_rate: ScalarOrSchedule) -> Schedule:
    """A stage's schedule, which is never asked for a step before its first.

    `optax.join_schedules` evaluates all schedules at every step, and selects afterwards.
    """
    schedule = arguments.as_schedule(learning_rate)
    return lambda count: schedule(jnp.maximum(count, 0))


def _check_factory(make_inner: Any) -> None:
    if not callable(make_inner):
        raise ValueError(
            "`make_inner` must be a function from a learning rate to an optax transformation, "
            f"such as optax.sgd or lambda lr: optax.sgd(lr, momentum=0.9), got {make_inner!r}."
        )


def _check_stages(stages: Any) -> None:
    arguments.check_nonempty("stages", stages)
    for q, stage in enumerate(stages):
        if not isinstance(stage, Stage):
            raise ValueError(f"`stages[{q}]` must be a slrla_jax.Stage, got {stage!r}.")
    arguments.check_lengths("stages", [stage.length for stage in stages])
