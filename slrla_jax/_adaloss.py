"""AdaLoss, and the step-size rules it is compared with."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from slrla_jax import _arguments as arguments
from slrla_jax import _numerics as numerics
from slrla_jax._arguments import Scalar, ScalarOrSchedule, Schedule
from slrla_jax._moments import declare_moments
from slrla_jax._weight_decay import coupled_weight_decay


@declare_moments()
class ScaleByAdaLossState(NamedTuple):
    """State of `scale_by_adaloss`.

    Attributes:
      b_squared: b², the accumulated losses; of shape (), in float32 or wider.
    """

    b_squared: jax.Array


@declare_moments()
class ScaleByAdaGradNormState(NamedTuple):
    """State of `scale_by_adagrad_norm`.

    Attributes:
      b_squared: b², the accumulated squared gradient norms; of shape (), in float32 or
        wider.
    """

    b_squared: jax.Array


def scale_by_adaloss(
    b0: Scalar = 1.0, alpha: Scalar = 1.0, c: Scalar = 0.0
) -> optax.GradientTransformationExtraArgs:
    r"""Divide updates by a scalar that accumulates the loss (AdaLoss).

    .. math::
        b²_{t+1} = b²_t + α |f_t - c|, \qquad g_t → g_t / b_{t+1}

    While the loss f is far above c, b grows fast and the effective step size shrinks fast;
    as f approaches c, b stops growing and the step size settles. The rule needs only the
    loss, whereas AdaGrad-Norm needs the gradient norm.

    Args:
      b0: b_0, the initial value of b; positive.
      alpha: α, the weight of the loss; positive.
      c: the loss at the optimum, or an estimate of it.

    Returns:
      A transformation to call as `update(updates, state, params, value=loss)`, where
      `value` is the loss of the step, a scalar. b² is kept in float32 or wider.
      Under `optax.MultiSteps`, `value` must be the loss of the whole accumulated batch. A
      value that is not finite, or that would overflow b², leaves b² unchanged. One bad
      batch, whose gradients `optax.zero_nans` or `optax.apply_if_finite` can handle,
      therefore does not reduce all later steps to zero.

    Raises:
      ValueError: if `b0` or `alpha` is not positive or `c` is not finite; and in `update`,
        if `value` is missing or not a scalar.

    Example:
      >>> import jax.numpy as jnp, slrla_jax
      >>> tx = slrla_jax.scale_by_adaloss()
      >>> gradient = jnp.array([2.0])
      >>> state = tx.init(gradient)
      >>> updates, state = tx.update(gradient, state, value=3.0)  # b² = 1 + 3
      >>> print(updates)
      [1.]

    References:
      Wu, Xie, Du and Ward, `AdaLoss: A computationally-efficient and provably convergent
      adaptive gradient method <https://arxiv.org/abs/2109.08282>`_, 2022.
    """
    _check_positive(b0=b0, alpha=alpha)
    arguments.check_no_schedule(c=c)
    arguments.check_finite("c", c)

    def init_fn(params: optax.Params) -> ScaleByAdaLossState:
        return ScaleByAdaLossState(_squared(b0, params))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByAdaLossState,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdaLossState]:
        del params, extra_args
        if value is None or jnp.shape(value) != ():
            got = "None" if value is None else f"an array of shape {jnp.shape(value)}"
            raise ValueError(
                f"`value` must be the loss of the step, a scalar, as in "
                f"`update(updates, state, params, value=loss)`; got {got}."
            )
        weight, optimum = arguments.as_number(alpha), arguments.as_number(c)
        loss = jnp.asarray(value, state.b_squared.dtype)
        # A loss that is ignored must not enter the derivatives either.
        growth = weight * jnp.abs(jnp.where(jnp.isfinite(loss), loss, optimum) - optimum)
        grown = (state.b_squared + growth).astype(state.b_squared.dtype)
        b_squared = jnp.where(jnp.isfinite(grown), grown, state.b_squared)
        return _divided(updates, b_squared), ScaleByAdaLossState(b_squared)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def scale_by_adagrad_norm(b0: Scalar = 1.0) -> optax.GradientTransformationExtraArgs:
    r"""Divide updates by a scalar that accumulates their squared norms (AdaGrad-Norm).

    .. math::
        b²_{t+1} = b²_t + \|g_t\|², \qquad g_t → g_t / b_{t+1}

    The norm is taken over all leaves together. Inside `shard_map` it covers only each
    device's shard, so use `jax.jit` for sharded params. (The code released with AdaLoss
    keeps one accumulator per output row of a kernel; this is the formula of the papers.)

    Args:
      b0: b_0, the initial value of b; positive.

    Returns:
      A transformation; b² is kept in float32 or wider. Gradients whose squared norm is not
      finite leave b² unchanged. If entries of the gradient are not finite, neither is the
      update, which `optax.apply_if_finite` detects; if only the sum of squares overflows,
      the update is 0.

    Raises:
      ValueError: if `b0` is not positive.

    Example:
      >>> import jax.numpy as jnp, slrla_jax
      >>> tx = slrla_jax.scale_by_adagrad_norm(b0=3.0)
      >>> gradient = jnp.array([4.0])
      >>> updates, state = tx.update(gradient, tx.init(gradient))  # b² = 9 + 16
      >>> print(updates)
      [0.8]

    References:
      Ward, Wu and Bottou, `AdaGrad stepsizes: sharp convergence over nonconvex
      landscapes <https://arxiv.org/abs/1806.01811>`_, 2019.
    """
    _check_positive(b0=b0)

    def init_fn(params: optax.Params) -> ScaleByAdaGradNormState:
        return ScaleByAdaGradNormState(_squared(b0, params))

    def update_fn(
        updates: optax.Updates,
        state: ScaleByAdaGradNormState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByAdaGradNormState]:
        del params, extra_args
        growth = numerics.sum_of_squares(updates)
        b_squared = (state.b_squared + growth).astype(state.b_squared.dtype)
        kept = jnp.where(jnp.isfinite(b_squared), b_squared, state.b_squared)
        return _divided(updates, b_squared), ScaleByAdaGradNormState(kept)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def adaloss(
    learning_rate: ScalarOrSchedule,
    b0: Scalar = 1.0,
    alpha: Scalar = 1.0,
    c: Scalar = 0.0,
    momentum: Scalar | None = None,
    weight_decay: Scalar = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent with AdaLoss step sizes.

    .. math::
        b²_{t+1} = b²_t + α |f_t - c|, \qquad θ_{t+1} = θ_t - \frac{η}{b_{t+1}} g_t

    Weight decay (L2) is added after the gradient has been divided by b, and before
    momentum.

    Args:
      learning_rate: η ≥ 0; a number, or a schedule of the 0-based optimizer step.
      b0: b_0; see `scale_by_adaloss`, also for α and c.
      alpha: α.
      c: c.
      momentum: the decay of the momentum, in [0, 1); None for no momentum.
      weight_decay: λ ≥ 0, coupled (L2).

    Returns:
      A complete optimizer, called as `update(grads, state, params, value=loss)`.

    Raises:
      ValueError: as `scale_by_adaloss` does, and if `learning_rate`, `momentum` or
        `weight_decay` is out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optax, slrla_jax
      >>> tx = slrla_jax.adaloss(learning_rate=0.5)
      >>> loss = lambda x: jnp.sum(x**2)
      >>> params = jnp.array([3.0])
      >>> state = tx.init(params)
      >>> for _ in range(100):
      ...     value, grads = jax.value_and_grad(loss)(params)
      ...     updates, state = tx.update(grads, state, params, value=value)
      ...     params = optax.apply_updates(params, updates)
      >>> bool(loss(params) < 1e-6)
      True

    References:
      Wu, Xie, Du and Ward, `AdaLoss: A computationally-efficient and provably convergent
      adaptive gradient method <https://arxiv.org/abs/2109.08282>`_, 2022.
    """
    return _descent(scale_by_adaloss(b0, alpha, c), learning_rate, momentum, weight_decay)


def adagrad_norm(
    learning_rate: ScalarOrSchedule,
    b0: Scalar = 1.0,
    momentum: Scalar | None = None,
    weight_decay: Scalar = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent with AdaGrad-Norm step sizes.

    .. math::
        b²_{t+1} = b²_t + \|g_t\|², \qquad θ_{t+1} = θ_t - \frac{η}{b_{t+1}} g_t

    Args:
      learning_rate: η ≥ 0; a number, or a schedule of the 0-based optimizer step.
      b0: b_0; see `scale_by_adagrad_norm`.
      momentum: the decay of the momentum, in [0, 1); None for no momentum.
      weight_decay: λ ≥ 0, coupled (L2), as in `adaloss`.

    Returns:
      A complete optimizer.

    Raises:
      ValueError: if `b0` is not positive, or if `learning_rate`, `momentum` or
        `weight_decay` is out of range.

    Example:
      >>> import slrla_jax
      >>> tx = slrla_jax.adagrad_norm(0.1, momentum=0.9)

    References:
      Ward, Wu and Bottou, `AdaGrad stepsizes: sharp convergence over nonconvex
      landscapes <https://arxiv.org/abs/1806.01811>`_, 2019.
    """
    return _descent(scale_by_adagrad_norm(b0), learning_rate, momentum, weight_decay)


def decay_sqrt_schedule(learning_rate: Scalar, b0: Scalar, alpha: Scalar) -> Schedule:
    r"""Learning-rate schedule of SGD_DecaySqrt, a baseline for AdaLoss that ignores the loss.

    .. math::
        η_t = \frac{η}{\sqrt{b_0² + α t}}, \quad t = 1, 2, …

    Args:
      learning_rate: η ≥ 0.
      b0: b_0; positive.
      alpha: α; positive.

    Returns:
      A schedule of the 0-based optimizer step, t − 1.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> import slrla_jax
      >>> schedule = slrla_jax.decay_sqrt_schedule(1.0, b0=1.0, alpha=3.0)
      >>> print(schedule(0), schedule(4))
      0.5 0.25

    References:
      Wu, Xie, Du and Ward, `AdaLoss: A computationally-efficient and provably convergent
      adaptive gradient method <https://arxiv.org/abs/2109.08282>`_, 2022.
    """
    arguments.check_no_schedule(learning_rate=learning_rate)
    arguments.check_non_negative("learning_rate", learning_rate)
    _check_positive(b0=b0, alpha=alpha)

    def schedule(count: Any) -> jax.Array:
        t = numerics.widen(jnp.maximum(count, 0)) + 1
        return learning_rate / jnp.sqrt(numerics.widen(b0) ** 2 + alpha * t)

    return schedule


def _descent(
    scale: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    momentum: Scalar | None,
    weight_decay: Scalar,
) -> optax.GradientTransformationExtraArgs:
    arguments.check_non_negative("learning_rate", learning_rate)
    arguments.check_no_schedule(momentum=momentum, weight_decay=weight_decay)
    if momentum is not None:
        arguments.check_decay("momentum", momentum)
    arguments.check_non_negative("weight_decay", weight_decay)
    return optax.chain(
        scale,
        coupled_weight_decay(weight_decay),
        optax.identity() if momentum is None else optax.trace(arguments.as_plain(momentum)),
        optax.scale_by_learning_rate(arguments.as_plain(learning_rate)),
    )


def _check_positive(**values: Scalar) -> None:
    arguments.check_no_schedule(**values)
    for name, value in values.items():
        arguments.check_positive(name, value)
    if "b0" in values:
        wanted = "between 1e-18 and 1e18, so that float32 can represent its square"
        arguments.check_number("b0", values["b0"], lambda x: 1e-18 <= x <= 1e18, wanted)


def _squared(b0: Scalar, params: optax.Params) -> jax.Array:
    """b_0² in the dtype of b²: that of the params or float32, whichever is wider."""
    dtypes = [jnp.real(numerics.widen(p)).dtype for p in jax.tree.leaves(params)]
    return jnp.asarray(b0, jnp.result_type(jnp.float32, *dtypes)) ** 2


def _divided(updates: optax.Updates, b_squared: jax.Array) -> optax.Updates:
    b = jnp.sqrt(b_squared)
    return jax.tree.map(lambda g: (numerics.widen(g) / b).astype(jnp.result_type(g)), updates)
