"""AdaBound: Adam with its step sizes clipped to bounds that converge to SGD's learning rate."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from slrla_jax import _arguments as arguments
from slrla_jax import _numerics as numerics
from slrla_jax._arguments import Scalar, ScalarOrSchedule
from slrla_jax._moments import declare_moments


@declare_moments("count", "mu", "nu")
class AdaBoundState(NamedTuple):
    """State of `adabound`.

    Attributes:
      steps_taken: the number of optimizer steps taken, which is the argument of the
        learning-rate schedule; int32 of shape ().
      count: the number of gradients accumulated in the moments; int32 of shape ().
      mu: the first moment m; shaped like the params.
      nu: the second moment v; shaped like the params, in float32 or wider.
    """

    steps_taken: jax.Array
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as optax's do
    mu: optax.Updates
    nu: optax.Updates


def adabound(
    learning_rate: ScalarOrSchedule = 1e-3,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    final_lr: Scalar = 0.1,
    gamma: Scalar = 1e-3,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    base_lr: Scalar | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam that gradually turns into SGD: step sizes are clipped to bounds that tighten over time.

    With Adam's moments m and v, at step t = 1, 2, …,

    .. math::
        f_t &= \text{final\_lr} · η_t / \text{base\_lr} \\
        s_t &= \text{clip}\left( \frac{η_t \sqrt{1 - β_2^t}}{(1 - β_1^t)(\sqrt{v_t} + ε)},\;
               f_t \left(1 - \frac{1}{γ t + 1}\right),\;
               f_t \left(1 + \frac{1}{γ t}\right) \right) \\
        θ_t &= θ_{t-1} - s_t m_t

    This is what the authors' released code computes; the paper additionally divides s_t by
    √t. The learning rate is part of what is clipped, so there is no `scale_by_adabound`.

    Args:
      learning_rate: η ≥ 0; a number, or a schedule of the 0-based optimizer step.
      b1: β₁, the decay of the first moment; in [0, 1).
      b2: β₂, the decay of the second moment; in [0, 1).
      final_lr: the learning rate of SGD that the step sizes converge to while η equals
        `base_lr`; positive.
      gamma: γ, how fast the bounds tighten; positive.
      eps: ε ≥ 0, added to √v.
      weight_decay: λ ≥ 0, coupled (L2): added to the gradient.
      base_lr: the value of η at which `final_lr` applies; positive. The bounds scale with
        η / `base_lr`, so with a schedule choose its peak, for example, and not the first
        value of a warm-up. None stands for η itself, which must then be a number. Under
        `optax.inject_hyperparams`, which passes a schedule's values as numbers, always
        set it.

    Returns:
      A complete optimizer: its updates are added to the params.

    Raises:
      ValueError: if an argument is out of range, or if `learning_rate` is a schedule and
        `base_lr` is None.

    Example:
      >>> import jax.numpy as jnp, optax, slrla_jax
      >>> tx = slrla_jax.adabound(1e-3)
      >>> params = jnp.array([1.0, -2.0])
      >>> state = tx.init(params)
      >>> updates, state = tx.update(2 * params, state, params)
      >>> print(updates.round(4))
      [-0.001  0.001]

    References:
      Luo, Xiong, Liu and Sun, `Adaptive Gradient Methods with Dynamic Bound of Learning
      Rate <https://arxiv.org/abs/1902.09843>`_, 2019.
    """
    arguments.check_no_schedule(
        b1=b1,
        b2=b2,
        final_lr=final_lr,
        gamma=gamma,
        eps=eps,
        base_lr=base_lr,
        weight_decay=weight_decay,
    )
    arguments.check_decay("b1", b1)
    arguments.check_decay("b2", b2)
    arguments.check_positive("final_lr", final_lr)
    arguments.check_positive("gamma", gamma)
    arguments.check_non_negative("eps", eps)
    arguments.check_non_negative("weight_decay", weight_decay)
    if base_lr is not None:
        arguments.check_non_negative("learning_rate", learning_rate)
        arguments.check_positive("base_lr", base_lr)
    elif callable(learning_rate):
        raise ValueError(
            "`base_lr` must be given when `learning_rate` is a schedule: it is the learning "
            "rate at which `final_lr` applies; got None."
        )
    else:
        arguments.check_positive("learning_rate", learning_rate)
    learning_rate_at = arguments.as_schedule(learning_rate)

    def init_fn(params: optax.Params) -> AdaBoundState:
        mu = jax.tree.map(jnp.zeros_like, params)
        nu = jax.tree.map(lambda p: jnp.zeros_like(_squares(p)), params)
        mu, nu = numerics.sharded_state((mu, nu), params)
        return AdaBoundState(
            steps_taken=jnp.zeros((), jnp.int32),
            count=jnp.zeros((), jnp.int32),
            mu=mu,
            nu=nu,
        )

    def update_fn(
        updates: optax.Updates,
        state: AdaBoundState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdaBoundState]:
        del extra_args
        decay1, decay2, close, floor = map(arguments.as_number, (b1, b2, gamma, eps))
        if not arguments.is_zero(weight_decay):
            arguments.check_params("adabound with weight decay", params)
            updates = numerics.tree_map(
                lambda g, p: g + arguments.as_number(weight_decay) * p, updates, params
            )
        mu = numerics.tree_map(
            lambda g, m: numerics.like(_average(decay1, numerics.widen(m), numerics.widen(g)), m),
            updates,
            state.mu,
        )
        nu = numerics.tree_map(
            lambda g, v: numerics.like(_average(decay2, v, _squares(g)), v), updates, state.nu
        )
        count = optax.safe_increment(state.count)
        t = count.astype(float)
        eta = learning_rate_at(state.steps_taken)
        unbounded = eta * jnp.sqrt(1 - decay2**t) / (1 - decay1**t)
        final = arguments.as_number(final_lr)
        if base_lr is not None:
            final = final * eta / arguments.as_number(base_lr)
        lower, upper = final * (1 - 1 / (close * t + 1)), final * (1 + 1 / (close * t))

        def step(m: jax.Array, v: jax.Array) -> jax.Array:
            scale = numerics.sqrt(v) + floor
            size = jnp.where(scale > 0, unbounded / jnp.where(scale > 0, scale, 1.0), upper)
            return numerics.like(-jnp.clip(size, lower, upper) * numerics.widen(m), m)

        return numerics.tree_map(step, mu, nu), AdaBoundState(
            optax.safe_increment(state.steps_taken), count, mu, nu
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _average(decay: Scalar, old: jax.Array, new: jax.Array) -> jax.Array:
    return decay * old + (1 - decay) * new


def _squares(x: Any) -> jax.Array:
    """|x|² of each entry, in float32 or wider, because a bfloat16 average would never decay."""
    x = numerics.widen(x)
    return jnp.real(x * jnp.conj(x))
