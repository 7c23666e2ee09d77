"""SLRLA: stages of Lookahead, each pulled towards the slow weights at its start."""

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
      cycles: T_q ≥ 1, the number of Lookahead cycles in the stage, which therefore lasts
        `cycles * sync_period` optimizer steps and ends on a sync.
      learning_rate: η_q ≥ 0; a number, or a schedule of the 0-based optimizer step
        within the stage.
      beta: β_q ≥ 0, the strength of the local regulariser; 0 for none.
      sync_period: k_q ≥ 1, the number of optimizer steps in a cycle.
      slow_step_size: α_q in (0, 1].

    Raises:
      ValueError: if a value is out of range.

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
        """The number of optimizer steps in the stage."""
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
    r"""Stagewise locally-regularised Lookahead, SLRLA (Algorithm 3 of Zhou et al.).

    .. math::
        &\textbf{for } q = 1, …, Q: \\
        &\quad F_q(θ) = F(θ) + \tfrac{β_q}{2} \|θ - θ_{q-1}\|^2 \\
        &\quad θ_q = \text{Lookahead}(F_q, η_q, T_q, α_q, k_q, θ_{q-1}, A)

    Each stage has its own learning rate η_q, length T_q, slow step size α_q, period
    k_q and strength β_q. Training may continue beyond the last stage with that stage's
    settings. With β = 0 this is stagewise Lookahead, with β = 0 and α = 1 stagewise SGD,
    and with β = 0 and a single stage `lookahead`. Like `lookahead`, put it last in a chain.

    Args:
      make_inner: a function that makes the inner optimizer A from a learning rate, such
        as `optax.sgd` or `lambda lr: optax.sgd(lr, momentum=0.9)`. It is called with one
        schedule that covers all stages.
      stages: the stages 1, …, Q.
      sync_moments: what a sync does to the moments of the inner optimizer; see
        `lookahead`. Stages, anchors and the learning-rate schedule are not affected.
      slow_dtype: the dtype of the slow weights; see `lookahead`.
      anchor_dtype: the dtype of the anchor θ_{q−1}; see `stagewise_prox`.
      decoupled: whether the pull −η β (v − θ_{q−1}) is added to the inner optimizer's
        update (decoupled), instead of β (v − θ_{q−1}) being added to the gradient
        (coupled). For adaptive inner optimizers this is to the regulariser what AdamW is
        to L2.

    Returns:
      A transformation like that of `lookahead`, with one more copy of the params in its
      state: the anchor. (If every β is 0, no anchor is stored.)

    Raises:
      ValueError: if `make_inner` is not a function that returns a transformation, if
        `stages` is empty or contains anything but `Stage` objects, and as `lookahead` and
        `stagewise_prox` do.

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
    """`optax.chain(prox, tx)` in which the extra arguments of `tx` refer to F_q as well.

    Optimizers that use the loss (`value=`) or evaluate gradients themselves (`grad_fn=`)
    would otherwise minimise F without the regulariser. A line search must also discard its
    stored value of F_q, because the training loop expects the value of F.
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
    """`inner`, but its line search discards the stored loss, because a pull moves the params."""
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
    sync_period: ScalarOrSchedule | None = 5,
    slow_step_size: ScalarOrSchedule = 0.8,
    momentum: Scalar | None = 0.9,
    weight_decay: Scalar = 0.0,
    *,
    sync_moments: str = "keep",
    slow_dtype: DTypeLike | None = None,
    anchor_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SLRLA around SGD, in the form of the authors' released code.

    There the anchor a is refreshed every S = `anchor_period` optimizer steps, regardless
    of the learning-rate schedule:

    .. math::
        a &← v \text{ at steps } 0, S, 2S, … \\
        m &← μ m + g + β (v - a) + λ v \\
        v &← v - η m, \quad \text{with a sync of Lookahead every } k \text{ steps.}

    That code adds β‖v − a‖² to the loss, without the factor ½ of the paper: its flags
    `--lookahead 5_0.8 --slr 5_0.2` correspond to the defaults here, with β = 0.4.

    If the anchor is refreshed at every sync, as in the released recipe, it always equals
    the slow weights. With `anchor_period=None` it is therefore not stored, and SLRLA needs
    no more memory than Lookahead.

    Args:
      learning_rate: η ≥ 0; a number, or a schedule of the 0-based optimizer step.
      beta: β ≥ 0, in the paper's convention; a number or a schedule.
      anchor_period: S ≥ 1, in optimizer steps; None to refresh the anchor at every sync.
      sync_period: k; see `lookahead`.
      slow_step_size: α; see `lookahead`.
      momentum: μ in [0, 1); None for plain SGD, which stores no momentum.
      weight_decay: λ ≥ 0, coupled (L2): added to the gradient, before momentum.
      sync_moments: what a sync does to the momentum; see `lookahead`.
      slow_dtype: the dtype of the slow weights; see `lookahead`.
      anchor_dtype: the dtype of the anchor, if `anchor_period` is given; see
        `stagewise_prox`.

    Returns:
      A transformation like that of `lookahead`.

    Raises:
      ValueError: if `anchor_dtype` is given without `anchor_period`, if an argument is out
        of range, and as `lookahead` and `stagewise_prox` do.

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
            "`anchor_dtype` must be None if `anchor_period` is None, because the anchor then is "
            f"the slow weights themselves; got {anchor_dtype!r}."
        )

    beta_at = arguments.as_schedule(beta)

    def pull(
        updates: optax.Updates, params: optax.Params, slow: optax.Params, count: jax.Array
    ) -> optax.Updates:
        return pull_towards(slow, updates, params, beta_at(count))

    return lookahead_layer(*settings, pull=pull)


def _whole(number: Any) -> Any:
    """Converts a number of steps to a Python int, which cannot overflow, unless it is traced."""
    return number if isinstance(number, jax.core.Tracer) else int(number)


def _from_its_start(learning_rate: ScalarOrSchedule) -> Schedule:
    """A stage's schedule, which is never evaluated at a negative step.

    `optax.join_schedules` evaluates every schedule at every step and selects one afterwards.
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
