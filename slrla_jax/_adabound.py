"""AdaBound: Adam whose step sizes are clipped to bounds that close on those of SGD."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from slrla_jax import _arguments as arguments
from slrla_jax import _inner_state as inner_states
from slrla_jax import _trees as trees
from slrla_jax._arguments import Scalar, ScalarOrSchedule


@inner_states.has_moments_only_in("count", "mu", "nu")
class AdaBoundState(NamedTuple):
    """State of `adabound`.

    Attributes:
      step: optimizer steps taken, the argument of the learning rate's schedule; int32
        of shape ().
      count: steps that the moments have seen; int32 of shape ().
      mu: the first moment m; like the params.
      nu: the second moment v; like the params.
    """

    step: jax.Array
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
) -> optax.GradientTransformationExtraArgs:
    r"""Adam that turns into SGD: step sizes clipped to bounds that close with time.

    With the moments m and v of Adam and step t = 1, 2, …,

    .. math::
        f_t &= \text{final\_lr} · η_t / η_1 \\
        s_t &= \text{clip}\left( \frac{η_t \sqrt{1 - β_2^t}}{(1 - β_1^t)(\sqrt{v_t} + ε)},\;
               f_t \left(1 - \frac{1}{γ t + 1}\right),\;
               f_t \left(1 + \frac{1}{γ t}\right) \right) \\
        θ_t &= θ_{t-1} - s_t m_t

    This is what the authors' released code computes; the paper's text divides s_t by √t
    besides. The clip acts on η/√v, so there is no form without a learning rate.

    Args:
      learning_rate: η; a number, or a schedule of the 0-based optimizer step.
      b1: β₁, decay of the first moment; in [0, 1).
      b2: β₂, decay of the second moment; in [0, 1).
      final_lr: the learning rate of the SGD that it becomes, for η at its first value;
        positive.
      gamma: γ, how fast the bounds close; positive.
      eps: ε, added to √v.
      weight_decay: λ ≥ 0, as L2 regularisation in the gradient.

    Returns:
      A complete optimizer: its updates are to be added to the params.

    Raises:
      ValueError: for an argument outside these bounds.

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
    for name, value in (("b1", b1), ("b2", b2)):
        arguments.check_no_schedule(name, value)
        arguments.check_number(name, value, lambda b: 0 <= b < 1, "in [0, 1)")
    for name, value in (("final_lr", final_lr), ("gamma", gamma), ("eps", eps)):
        arguments.check_no_schedule(name, value)
        arguments.check_number(name, value, lambda x: x > 0, "positive")
    arguments.check_beta("weight_decay", weight_decay)
    learning_rate_at = arguments.as_schedule(learning_rate)

    def init_fn(params: optax.Params) -> AdaBoundState:
        return AdaBoundState(
            step=jnp.zeros((), jnp.int32),
            count=jnp.zeros((), jnp.int32),
            mu=jax.tree.map(jnp.zeros_like, params),
            nu=jax.tree.map(jnp.zeros_like, params),
        )

    def update_fn(
        updates: optax.Updates,
        state: AdaBoundState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdaBoundState]:
        del extra_args
        if not (arguments.is_static(weight_decay) and weight_decay == 0):
            arguments.check_params("adabound with weight decay", params)
            updates = jax.tree.map(lambda g, p: g + weight_decay * p, updates, params)
        mu = jax.tree.map(lambda g, m: (b1 * m + (1 - b1) * g).astype(m.dtype), updates, state.mu)
        nu = jax.tree.map(
            lambda g, v: (b2 * v + (1 - b2) * jnp.square(jnp.abs(g))).astype(v.dtype),
            updates,
            state.nu,
        )
        count = optax.safe_increment(state.count)
        t = count.astype(float)
        rate = learning_rate_at(state.step)
        unbounded = rate * jnp.sqrt(1 - b2**t) / (1 - b1**t)
        final = final_lr * rate / learning_rate_at(jnp.zeros((), jnp.int32))
        lower, upper = final * (1 - 1 / (gamma * t + 1)), final * (1 + 1 / (gamma * t))

        def step(m: jax.Array, v: jax.Array) -> jax.Array:
            size = jnp.clip(unbounded / (jnp.sqrt(trees.working(v)) + eps), lower, upper)
            return (-size * trees.working(m)).astype(m.dtype)

        return jax.tree.map(step, mu, nu), AdaBoundState(
            optax.safe_increment(state.step), count, mu, nu
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
