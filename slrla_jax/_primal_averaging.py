"""Primal averaging: Lookahead without the loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from slrla_jax import _arguments as arguments
from slrla_jax import _moments as moments
from slrla_jax import _numerics as numerics
from slrla_jax._arguments import ScalarOrSchedule


@moments.declare_moments(inner_states=("inner_state",))
class PrimalAveragingState(NamedTuple):
    """State of `primal_averaging`.

    Attributes:
      inner_state: the state of the inner optimizer.
      inner_params: z, the params of the inner optimizer; shaped like the params.
      interpolation: μ_y of the present params; of shape (), in float32 or wider.
      steps_taken: the number of optimizer steps taken, which is the argument of schedules;
        int32 of shape ().
    """

    inner_state: optax.OptState
    inner_params: optax.Params
    interpolation: jax.Array
    steps_taken: jax.Array


def primal_averaging(
    inner: optax.GradientTransformation,
    train_interpolation: ScalarOrSchedule = 0.7,
    eval_interpolation: ScalarOrSchedule = 0.9967,
) -> optax.GradientTransformationExtraArgs:
    r"""Generalised primal averaging: a smooth Lookahead that averages at every step.

    The inner optimizer A moves z; x is an exponential moving average of z; and the gradient
    is taken between the two, at y:

    .. math::
        y_t &= μ_y x_t + (1 - μ_y) z_t \\
        z_{t+1} &= A(z_t, ∇L(y_t)) \\
        x_{t+1} &= μ_x x_t + (1 - μ_x) z_{t+1}

    The params of the training loop are y. Evaluate at x, which is
    `slow_params(opt_state, params)`. At the start x = y = z. The state holds z, one copy of
    the params, and x follows from y and z.

    Averaging with μ_x at every step corresponds to Lookahead and DiLoCo with one replica,
    which average with μ once in k steps, if μ_x = μ^(1/k): the default stands for about 32
    steps. μ_x = 0 is `inner` alone, μ_y = 1 takes the gradients at x itself, and μ_x = 1 − 1/t
    in step t = 1, 2, … is schedule-free learning.

    Args:
      inner: the inner optimizer A, any optax transformation. It sees z as its params, so
        that decoupled weight decay acts on z. Extra arguments of `update` (`value=`,
        `grad_fn=`, …) are passed on to it; they refer to y.
      train_interpolation: μ_y in (0, 1]; a number, a traced array, or a schedule of the
        0-based optimizer step, whose value places the params that this step returns.
      eval_interpolation: μ_x in [0, 1); likewise.

    Returns:
      A transformation with `update(updates, state, params, **extra_args)`, whose state is a
      `PrimalAveragingState`. It comes last in a chain, as `lookahead` does.

    Raises:
      ValueError: if `inner` is not a transformation, `train_interpolation` is outside (0, 1]
        or `eval_interpolation` outside [0, 1), or (at `init`) a param is narrower than
        float32, in which the small movements of x would be rounded away; and in `update`, if
        the params are missing or the state was made for other params. Values known only
        inside a compiled program cannot be checked.

    Example:
      Two steps from 0 with slope 1; z is −1 and −2:

      >>> import jax.numpy as jnp, optax, slrla_jax
      >>> tx = slrla_jax.primal_averaging(optax.sgd(1.0), 0.5, 0.5)
      >>> params, gradient = jnp.array(0.0), jnp.array(1.0)
      >>> state = tx.init(params)
      >>> for _ in range(2):
      ...     updates, state = tx.update(gradient, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params, slrla_jax.slow_params(state, params))
      -0.75 -0.5
      -1.625 -1.25

    References:
      Defazio et al., 2025, `arXiv:2512.17131 <https://arxiv.org/abs/2512.17131>`_.
    """
    arguments.check_transformation("inner", inner)
    arguments.check_step_size("train_interpolation", train_interpolation)
    arguments.check_decay("eval_interpolation", eval_interpolation)
    inner = arguments.with_extra_args_support(inner)
    train_at = arguments.as_schedule(train_interpolation)
    eval_at = arguments.as_schedule(eval_interpolation)

    def init_fn(params: optax.Params) -> PrimalAveragingState:
        _check_wide(params)
        return PrimalAveragingState(
            inner_state=inner.init(params),
            inner_params=numerics.copy(params),
            interpolation=numerics.widen(train_at(0)),
            steps_taken=jnp.zeros((), jnp.int32),
        )

    def update_fn(
        updates: optax.Updates,
        state: PrimalAveragingState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PrimalAveragingState]:
        arguments.check_params("primal_averaging", params)
        arguments.check_state(state, PrimalAveragingState)
        arguments.check_made_for(state.inner_params, updates)
        arguments.check_params_of(state.inner_params, params)
        updates = numerics.sharded_updates(updates, params)
        mu_y, mu_x = train_at(state.steps_taken), eval_at(state.steps_taken)

        # z ← A(z, g) = z + u.
        steps, inner_state = inner.update(
            updates, state.inner_state, state.inner_params, **extra_args
        )
        moved = numerics.tree_map(
            lambda z, u: z if u is None else numerics.like(z + u, z), state.inner_params, steps
        )
        # x ← μ_x x + (1 − μ_x) z and y ← μ_y x + (1 − μ_y) z.
        updates = numerics.tree_map(
            lambda u, y, z: _step(u, y, z, state.interpolation, mu_y * mu_x),
            steps,
            params,
            state.inner_params,
        )
        return updates, PrimalAveragingState(
            inner_state=inner_state,
            inner_params=moved,
            interpolation=numerics.widen(mu_y),
            steps_taken=optax.safe_increment(state.steps_taken),
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def averaged(z: ArrayLike, y: ArrayLike, mu: ArrayLike) -> jax.Array:
    """X = (y − (1 − μ) z) / μ, which is y itself where z is."""
    y = jnp.asarray(y)
    if not numerics.is_inexact(y):
        return y
    return numerics.like(y + (1 - mu) / mu * (y - z), y)


def _step(u: ArrayLike, y: ArrayLike, z: jax.Array, mu: ArrayLike, new: ArrayLike) -> jax.Array:
    """The update from y to z' + μ_y μ_x (x − z'), with z' = z + u."""
    u, y = jnp.asarray(u), numerics.sharded_like(jnp.asarray(y), z)
    if not numerics.is_inexact(y):
        return u
    moved = z + u
    return numerics.like(moved + new * (averaged(z, y, mu) - moved) - y, u)


def _check_wide(params: optax.Params) -> None:
    """Raises for a param in which the small movements of x would be rounded away."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if numerics.is_narrow(leaf):
            raise ValueError(
                "`params` must be float32 or wider for `primal_averaging`, got "
                f"{jnp.result_type(leaf)} for params{jax.tree_util.keystr(path)}."
            )
