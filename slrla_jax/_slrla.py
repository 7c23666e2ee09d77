"""SLRLA: stages of Lookahead, each held near the slow weights it began with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.typing import DTypeLike

from slrla_jax import _arguments as arguments
from slrla_jax._arguments import Scalar, ScalarOrSchedule, Schedule
from slrla_jax._lookahead import check_settings, lookahead, wrap
from slrla_jax._stagewise import per_stage, pull_towards, regularised, stagewise_prox


@dataclass(frozen=True)
class Stage:
    """The settings of one stage of `slrla`: T_q, η_q, β_q, k_q and α_q.

    Attributes:
      outer_steps: T_q ≥ 1, cycles of Lookahead in the stage. It lasts
        `outer_steps * sync_period` optimizer steps and ends on a sync.
      learning_rate: η_q; a number, or a schedule of the 0-based optimizer step
        within the stage.
      beta: β_q ≥ 0, strength of the local regulariser; 0 for none.
      sync_period: k_q ≥ 1, optimizer steps in a cycle.
      slow_step_size: α_q in (0, 1].

    Raises:
      ValueError: for a value outside these bounds.

    Example:
      >>> import slrla_jax
      >>> slrla_jax.Stage(outer_steps=100, learning_rate=0.1, beta=0.4).length
      500
    """

    outer_steps: int
    learning_rate: ScalarOrSchedule
    beta: Scalar = 0.0
    sync_period: int = 5
    slow_step_size: Scalar = 0.8

    def __post_init__(self) -> None:
        arguments.check_length("outer_steps", self.outer_steps)
        arguments.check_length("sync_period", self.sync_period)
        for name in ("beta", "slow_step_size"):
            arguments.check_no_schedule(name, getattr(self, name))
        arguments.check_beta("beta", self.beta)
        arguments.check_step_size("slow_step_size", self.slow_step_size)

    @property
    def length(self) -> int:
        """Optimizer steps in the stage."""
        return self.outer_steps * self.sync_period


def slrla(
    optimizer: Callable[[Schedule], optax.GradientTransformation],
    stages: Sequence[Stage],
    *,
    inner_state: str = "keep",
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
    k_q and strength β_q; after the last, its settings stay. β = 0 is stagewise
    Lookahead, β = 0 with α = 1 stagewise SGD, and one stage with β = 0 is
    `lookahead`.

    Args:
      optimizer: A, as a function from a learning rate to a transformation. It gets
        one schedule that covers all stages.
      stages: the stages 1, …, Q.
      inner_state: what a sync does to the moments of the inner optimizer; see
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
      ValueError: if `stages` is empty, and as `lookahead` and `stagewise_prox` do.

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
    arguments.check_some("stages", stages)
    lengths = [stage.length for stage in stages]
    arguments.check_lengths("stages", lengths)
    learning_rate = optax.join_schedules(
        [arguments.as_schedule(stage.learning_rate) for stage in stages],
        [sum(lengths[:q]) for q in range(1, len(lengths))],
    )
    inner = optimizer(learning_rate)

    betas = [stage.beta for stage in stages]
    regularised = not all(arguments.is_static(beta) and beta == 0 for beta in betas)
    if regularised and decoupled:
        beta_at = per_stage(betas, lengths)
        pull = stagewise_prox(
            lambda count: -learning_rate(count) * beta_at(count),
            lengths,
            anchor_dtype=anchor_dtype,
        )
        inner = optax.chain(inner, pull)

    tx = lookahead(
        inner,
        per_stage([stage.sync_period for stage in stages], lengths),
        per_stage([stage.slow_step_size for stage in stages], lengths),
        inner_state=inner_state,
        slow_dtype=slow_dtype,
    )
    if regularised and not decoupled:
        prox = stagewise_prox(betas, lengths, anchor_dtype=anchor_dtype)
        tx = _minimising(prox, per_stage(betas, lengths), tx)
    return tx


def _minimising(
    prox: optax.GradientTransformation, beta_at: Schedule, tx: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """`optax.chain(prox, tx)`, with `tx` told of F_q also where it asks for more than g.

    Optimizers that look at the loss (`value=`) or evaluate gradients themselves
    (`grad_fn=`) would otherwise step on the plain F.
    """
    tx = optax.with_extra_args_support(tx)

    def init_fn(params: optax.Params) -> tuple[optax.OptState, optax.OptState]:
        return prox.init(params), tx.init(params)

    def update_fn(
        updates: optax.Updates,
        state: tuple[optax.OptState, optax.OptState],
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, tuple[optax.OptState, optax.OptState]]:
        prox_state, tx_state = state
        beta = beta_at(prox_state.count)
        updates, prox_state = prox.update(updates, prox_state, params)
        extra_args = regularised(extra_args, prox_state.anchor_params, params, beta)
        updates, tx_state = tx.update(updates, tx_state, params, **extra_args)
        return updates, (prox_state, tx_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def slrla_sgd(
    learning_rate: ScalarOrSchedule,
    beta: ScalarOrSchedule = 0.4,
    stage_length: Scalar | Sequence[Scalar] = 5,
    sync_period: ScalarOrSchedule = 5,
    slow_step_size: ScalarOrSchedule = 0.8,
    momentum: Scalar | None = 0.9,
    weight_decay: Scalar = 0.0,
    *,
    inner_state: str = "keep",
    slow_dtype: DTypeLike | None = None,
    anchor_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SLRLA around SGD in the form of the authors' released code.

    There the anchor a is refreshed every S = `stage_length` optimizer steps, whatever
    the stages of the learning rate are:

    .. math::
        a &← v \text{ at steps } 0, S, 2S, … \\
        m &← μ m + g + β (v - a) + λ v \\
        v &← v - η m, \quad \text{with a sync of Lookahead every } k \text{ steps.}

    That code adds β‖v − a‖² to the loss, without the ½ of the paper: its flags
    `--lookahead 5_0.8 --slr 5_0.2` are the defaults here, β = 0.4.

    With S = k the anchor is always the slow weights; it is then not stored, and
    SLRLA needs no more memory than Lookahead. (That is decided where both are plain
    numbers. Under `optax.inject_hyperparams` they are arrays, and the anchor is kept.)

    Args:
      learning_rate: η; a number, or a schedule of the 0-based optimizer step.
      beta: β ≥ 0, in the paper's convention; a number or a schedule.
      stage_length: S, in optimizer steps; or the lengths of stages, see
        `stagewise_prox`.
      sync_period: k; see `lookahead`.
      slow_step_size: α; see `lookahead`.
      momentum: μ; None or 0 for plain SGD.
      weight_decay: λ ≥ 0, as L2 regularisation in the gradient, before momentum.
      inner_state: what a sync does to the momentum; see `lookahead`.
      slow_dtype: dtype of the slow weights; see `lookahead`.
      anchor_dtype: dtype of the anchor; see `stagewise_prox`. Where the anchor is the
        slow weights, another dtype than theirs gives it a copy of its own.

    Returns:
      A transformation like `lookahead`'s.

    Raises:
      ValueError: as `lookahead` and `stagewise_prox` do.

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
    prox = stagewise_prox(beta, stage_length, anchor_dtype=anchor_dtype)
    check_settings(sync_period, slow_step_size, inner_state, slow_dtype)

    inner = optax.sgd(learning_rate, None if _is_zero(momentum) else momentum)
    if not _is_zero(weight_decay):
        inner = optax.chain(optax.add_decayed_weights(weight_decay), inner)

    anchored_to_slow = (
        arguments.is_static(stage_length)
        and arguments.is_static(sync_period)
        and stage_length == sync_period
        and not arguments.is_sequence(beta)
        and anchor_dtype in (None, slow_dtype)
    )
    if not anchored_to_slow:
        layer = wrap(inner, sync_period, slow_step_size, inner_state, slow_dtype)
        return optax.chain(prox, layer)

    beta_at = arguments.as_schedule(beta)

    def pull(
        updates: optax.Updates, params: optax.Params, slow: optax.Params, count: jax.Array
    ) -> optax.Updates:
        return pull_towards(slow, updates, params, beta_at(count))

    return wrap(inner, sync_period, slow_step_size, inner_state, slow_dtype, pull=pull)


def _is_zero(value: Scalar | None) -> bool:
    return arguments.is_static(value) and bool(value == 0)
