"""Stages, and the local regulariser that pulls the params towards the start of each stage."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

from slrla_jax import _arguments as arguments
from slrla_jax import _numerics as numerics
from slrla_jax._arguments import Scalar, ScalarOrSchedule, Schedule
from slrla_jax._moments import declare_moments


@declare_moments()
class StagewiseProxState(NamedTuple):
    """State of `stagewise_prox`.

    Attributes:
      anchor_params: θ_{q-1}, the params at the start of the stage; shaped like the
        params, in their dtype or `anchor_dtype`.
      steps_taken: the number of optimizer steps taken; int32 of shape ().
    """

    anchor_params: optax.Params
    steps_taken: jax.Array


def stagewise_prox(
    beta: ScalarOrSchedule | Sequence[Scalar],
    stage_length: Scalar | Sequence[Scalar],
    *,
    anchor_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Pull the params towards their values at the start of the stage.

    Stage q minimises the loss with a local regulariser (Algorithm 3 of Zhou et al.),

    .. math::
        F_q(θ) = F(θ) + \frac{β_q}{2} \|θ - θ_{q-1}\|^2,

    so at the first step of a stage the anchor a is set to the current params v, and
    every gradient g becomes g + β_q (v − a).

    With an adaptive optimizer the position in the chain matters, as it does for
    `optax.add_decayed_weights`: before `scale_by_adam` the pull is *coupled*, that is,
    scaled together with the gradient; between `scale_by_adam` and
    `scale_by_learning_rate` it is *decoupled*, that is, −η β (v − a) independently of the
    moments. `slrla` implements all of Algorithm 3.

    The authors' released code adds β‖v − a‖² to the loss, without the factor ½, so its β is
    half of this one.

    Args:
      beta: β ≥ 0. A number, a traced array, a schedule of the 0-based optimizer step,
        or a list with one number per stage; with a list, the last stage's β and
        anchor remain in use after its end. β = 0 leaves gradients unchanged, bit-for-bit.
      stage_length: either one number of optimizer steps, at least 1, for stages that
        repeat forever; or a list of the lengths of stages 1, …, Q, of which the last
        continues beyond its length.
      anchor_dtype: the dtype of the anchor; None for that of the params. A narrower dtype
        saves memory and rounds the anchor.

    Returns:
      A transformation that adds the pull to its updates, with one copy of the params
      in its state. Its `update` requires the params.

    Raises:
      ValueError: if β is negative, if a length is below 1 or not whole, if a list is empty
        or the lists differ in length, or if `anchor_dtype` is not floating; and in
        `update`, if the params are missing. Values known only inside a compiled program
        cannot be checked.

    Example:
      Stages of two steps, with zero gradients so that only the pull acts:

      >>> import jax.numpy as jnp, optax, slrla_jax
      >>> tx = optax.chain(slrla_jax.stagewise_prox(0.5, 2), optax.scale(-1.0))
      >>> params, state = jnp.array(1.0), tx.init(jnp.array(1.0))
      >>> updates, state = tx.update(jnp.array(0.0), state, params)  # a = 1
      >>> print(updates)
      -0.0
      >>> params = jnp.array(3.0)
      >>> updates, state = tx.update(jnp.array(0.0), state, params)  # −0.5 (3 − 1)
      >>> print(updates)
      -1.0
      >>> updates, state = tx.update(jnp.array(0.0), state, params)  # a = 3
      >>> print(updates)
      -0.0

    References:
      Zhou, Yan, Yuan, Feng and Yan, `Towards Understanding Why Lookahead Generalizes
      Better Than SGD and Beyond
      <https://papers.nips.cc/paper/2021/hash/e53a0a2978c28872a4505bdb51db06dc-Abstract.html>`_,
      2021.
    """
    beta_at, begins_at = _stages(beta, stage_length)
    arguments.check_dtype("anchor_dtype", anchor_dtype)

    def init_fn(params: optax.Params) -> StagewiseProxState:
        return StagewiseProxState(
            anchor_params=numerics.copy(params, anchor_dtype),
            steps_taken=jnp.zeros((), jnp.int32),
        )

    def update_fn(
        updates: optax.Updates,
        state: StagewiseProxState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, StagewiseProxState]:
        del extra_args
        arguments.check_params("stagewise_prox", params)
        arguments.check_made_for(state.anchor_params, updates)
        updates = numerics.sharded_updates(updates, params)
        begins = begins_at(state.steps_taken)
        anchor = numerics.tree_map(
            lambda a, p: numerics.select(begins, p, a), state.anchor_params, params
        )
        updates = pull_towards(anchor, updates, params, beta_at(state.steps_taken))
        return updates, StagewiseProxState(anchor, optax.safe_increment(state.steps_taken))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def pull_towards(
    anchor: optax.Params, updates: optax.Updates, params: optax.Params, beta: ArrayLike
) -> optax.Updates:
    """Returns g + β (v − a) for each gradient g, or g itself if β = 0."""

    def leaf(g: ArrayLike, v: ArrayLike, a: ArrayLike) -> jax.Array:
        g = jnp.asarray(g)
        if not numerics.is_inexact(v):
            return g
        pulled = numerics.widen(g) + beta * (numerics.widen(v) - numerics.widen(a))
        return numerics.like(numerics.at_limit(beta == 0, numerics.widen(g), pulled), g)

    return numerics.tree_map(leaf, updates, params, anchor)


def regularised_extra_args(
    extra_args: dict[str, Any], anchor: optax.Params, params: optax.Params, beta: ArrayLike
) -> dict[str, Any]:
    """Replaces F by F + (β/2)‖· − a‖² in the extra arguments that refer to the loss."""

    def penalty(params: optax.Params) -> jax.Array:
        away = numerics.tree_map(lambda a, v: numerics.widen(v) - numerics.widen(a), anchor, params)
        squares = numerics.sum_of_squares(away)
        return numerics.at_limit(
            beta == 0, jnp.zeros_like(squares), jnp.asarray(beta / 2 * squares)
        )

    def value_fn(params: optax.Params, *args: Any, **kwargs: Any) -> Any:
        return extra_args["value_fn"](params, *args, **kwargs) + penalty(params)

    def grad_fn(params: optax.Params, *args: Any, **kwargs: Any) -> optax.Updates:
        return pull_towards(anchor, extra_args["grad_fn"](params, *args, **kwargs), params, beta)

    known: dict[str, Callable[[], Any]] = {
        "value": lambda: extra_args["value"] + penalty(params),
        "grad": lambda: pull_towards(anchor, extra_args["grad"], params, beta),
        "value_fn": lambda: value_fn,
        "grad_fn": lambda: grad_fn,
    }
    return extra_args | {name: make() for name, make in known.items() if name in extra_args}


def per_stage(values: Sequence[Scalar], lengths: Sequence[Scalar]) -> Schedule:
    """The schedule that is `values[q]` during stage q, and the last value thereafter.

    A plain number shared by all stages stays a plain number, so that the compiler sees α = 1.
    """
    if all(arguments.is_static(value) and value == values[0] for value in values):
        return arguments.as_schedule(values[0])
    ends = stage_starts(lengths)[1:-1]

    def value_at(count: jax.Array) -> jax.Array:
        value, *later = [jnp.asarray(arguments.as_number(value)) for value in values]
        for end, following in zip(ends, later, strict=True):
            value = jnp.where(count >= end, following, value)
        return value

    return value_at


def stage_starts(lengths: Sequence[Scalar]) -> Any:
    """The 0-based step at which each stage begins, followed by the step after the last.

    This is a NumPy array unless a length is traced: a transformation that is built inside a
    compiled function, or before the devices are known, must not hold a JAX array.
    """
    if any(isinstance(length, jax.core.Tracer) for length in lengths):
        return jnp.cumsum(jnp.asarray([0, *lengths]))
    return np.cumsum([0, *(int(length) for length in lengths)])


def _stages(beta: Any, stage_length: Any) -> tuple[Schedule, Callable[[jax.Array], jax.Array]]:
    """β, and whether a stage begins, as functions of the number of steps taken."""
    beta, stage_length = arguments.as_known(beta), arguments.as_known(stage_length)
    if not arguments.is_sequence(stage_length):
        arguments.check_length("stage_length", stage_length)
        if not arguments.is_sequence(beta):
            arguments.check_non_negative("beta", beta)
            return arguments.as_schedule(beta), _every(stage_length)
        stage_length = [stage_length] * len(beta)

    arguments.check_lengths("stage_length", stage_length)
    starts = stage_starts(stage_length)[:-1]

    # A reduction would be a fusion of its own on TPU, so the comparisons are joined one by one.
    def begins_at(count: jax.Array) -> jax.Array:
        begins: jax.Array = functools.reduce(jnp.logical_or, [count == start for start in starts])
        return begins

    if not arguments.is_sequence(beta):
        arguments.check_non_negative("beta", beta)
        return arguments.as_schedule(beta), begins_at

    arguments.check_same_length(beta=beta, stage_length=stage_length)
    for q, value in enumerate(beta):
        arguments.check_no_schedule(**{f"beta[{q}]": value})
        arguments.check_non_negative(f"beta[{q}]", value)
    return per_stage(beta, stage_length), begins_at


def _every(length: Scalar) -> Callable[[jax.Array], jax.Array]:
    """Whether a stage begins, if all stages have the same length."""
    return lambda count: count % jnp.asarray(length).astype(count.dtype) == 0
