"""Lookahead and Multilayer Lookahead."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from slrla_jax import _arguments as arguments
from slrla_jax import _inner_state as inner_states
from slrla_jax import _trees as trees
from slrla_jax._arguments import ScalarOrSchedule

Pull = Callable[[optax.Updates, optax.Params, optax.Params, jax.Array], optax.Updates]


@inner_states.has_moments_only_in("inner_state")
class LookaheadState(NamedTuple):
    """State of `lookahead` and of each layer of `multilayer_lookahead`.

    Read the slow weights with `slow_params`: after a sync they are the params, and
    what is stored here is those of the cycle that has ended.

    Attributes:
      inner_state: state of the inner optimizer, or of the layer beneath.
      slow_params: the slow weights θ of the cycle; like the params, or in `slow_dtype`.
      start_moments: with `inner_state="pullback"`, the inner optimizer's moments at
        the start of the cycle; otherwise None.
      count: optimizer steps taken, the argument of schedules; int32 of shape ().
      steps_since_sync: steps of the layer beneath since the last sync; int32 of
        shape ().
      synced: whether the last step was a sync, so that the params are the slow
        weights and the next step starts a cycle; bool of shape ().
    """

    inner_state: optax.OptState
    slow_params: optax.Params
    start_moments: optax.OptState
    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as optax's do
    steps_since_sync: jax.Array
    synced: jax.Array


def lookahead(
    inner: optax.GradientTransformation,
    sync_period: ScalarOrSchedule = 5,
    slow_step_size: ScalarOrSchedule = 0.8,
    *,
    inner_state: str = "keep",
    slow_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Lookahead: k steps forward with an inner optimizer, one step back.

    From slow weights θ, the inner optimizer A makes k steps on the fast weights v,
    and the slow weights then move a fraction α of the way (Algorithm 2 of Zhou et
    al.):

    .. math::
        v_0 &= θ_{t-1} \\
        v_τ &= A(v_{τ-1}, g_{τ-1}), \quad τ = 1, …, k \\
        θ_t &= θ_{t-1} + α (v_k - θ_{t-1})

    The params of the training loop are the fast weights, and after every k-th step
    (a *sync*) they are the new slow weights. The slow weights live in the state, so
    params and updates have the shapes and dtypes that `inner` alone would give
    them; evaluate at `slow_params(opt_state, params)`.

    A cycle starts from the params it is given. Another transformation may therefore
    change the params between cycles, and lookaheads may be nested.

    Args:
      inner: the inner optimizer A, any optax transformation. Extra arguments of
        `update` (`value=`, `grad_fn=`, …) are passed on to it.
      sync_period: k, in optimizer steps; at least 1. A number, a traced array, or a
        schedule of the 0-based optimizer step. A sync happens at the first step that
        brings the steps since the last one to the current k.
      slow_step_size: α in (0, 1]; a number, a traced array, or a schedule of the
        0-based optimizer step, taken at the step of the sync. α = 1 is `inner` alone:
        to the bit where it is a plain number, while a traced 1 leaves the compiler
        free to round a product and a sum at once or apart.
      inner_state: what a sync does to the moments of `inner`. `"keep"` leaves them;
        `"reset"` sets them, and the counts that correct their bias, back to their
        initial values; `"pullback"` moves every floating one to
        `m₀ + α (m − m₀)`, m₀ being its value at the start of the cycle, and keeps
        one more copy of them for that. Counters of schedules, injected
        hyperparameters, half-accumulated gradients, random keys and everything else
        that is not a moment go on in all three.
      slow_dtype: dtype of the slow copy, at least as wide as the params'; None for
        theirs. With bfloat16 params, `"float32"` keeps movements of the slow weights
        that bfloat16 would round away. (Under `optax.inject_hyperparams` name it by a
        string: types are taken for schedules there.)

    Returns:
      A transformation with `update(updates, state, params, **extra_args)`; its state
      is a `LookaheadState`, one copy of the params larger than that of `inner`.

    Raises:
      ValueError: for a `sync_period` below 1 or not whole, a `slow_step_size` outside
        (0, 1], an unknown `inner_state`, a `slow_dtype` that is not floating or (at
        `init`) narrower than the params, and for an `update` without params. Values
        that are only known inside a compiled program cannot be checked.

    Example:
      Three steps down and one back, from 0 with slope 1 and α = ½:

      >>> import jax.numpy as jnp, optax, slrla_jax
      >>> tx = slrla_jax.lookahead(optax.sgd(1.0), sync_period=3, slow_step_size=0.5)
      >>> params, gradient = jnp.array(0.0), jnp.array(1.0)
      >>> state = tx.init(params)
      >>> for _ in range(4):
      ...     updates, state = tx.update(gradient, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params, slrla_jax.slow_params(state, params))
      -1.0 0.0
      -2.0 0.0
      -1.5 -1.5
      -2.5 -1.5

    References:
      Zhang, Lucas, Hinton and Ba, `Lookahead Optimizer: k steps forward, 1 step back
      <https://arxiv.org/abs/1907.08610>`_, 2019.

      Zhou, Yan, Yuan, Feng and Yan, `Towards Understanding Why Lookahead Generalizes
      Better Than SGD and Beyond
      <https://papers.nips.cc/paper/2021/hash/e53a0a2978c28872a4505bdb51db06dc-Abstract.html>`_,
      2021.
    """
    check_settings(sync_period, slow_step_size, inner_state, slow_dtype)
    return wrap(inner, sync_period, slow_step_size, inner_state, slow_dtype)


def multilayer_lookahead(
    inner: optax.GradientTransformation,
    sync_periods: Sequence[ScalarOrSchedule] = (5, 5),
    slow_step_sizes: Sequence[ScalarOrSchedule] = (0.8, 0.8),
    *,
    inner_state: str = "keep",
    slow_dtype: DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Lookahead around Lookahead, to any depth.

    Layer 0 is the inner optimizer. One step of layer n is k_n steps of layer n−1,
    then its own step back,

    .. math::
        θ^{(n)} ← θ^{(n)} + α_n (θ^{(n-1)} - θ^{(n)}), \quad θ^{(n-1)} ← θ^{(n)},

    so with constant periods layer n syncs every :math:`k_1 k_2 ⋯ k_n` optimizer
    steps, from the inside out, and the layers inside it go on from its new weights.
    L layers keep L slow copies. By hand, the same algorithm is
    `lookahead(lookahead(inner, k_1, α_1), k_1 * k_2, α_2)`.

    Args:
      inner: the inner optimizer; see `lookahead`.
      sync_periods: k_1, …, k_L, innermost layer first; each a number, a traced array
        or a schedule of the 0-based optimizer step, counting steps of the layer
        beneath.
      slow_step_sizes: α_1, …, α_L, likewise.
      inner_state: what the syncs of every layer do to the moments of `inner`; see
        `lookahead`.
      slow_dtype: dtype of the slow copies; see `lookahead`.

    Returns:
      A transformation whose state is the outermost layer's `LookaheadState`, the
      layers beneath nested in its `inner_state`.

    Raises:
      ValueError: as `lookahead`, and for lists that are empty or of unequal length.

    Example:
      >>> import jax.numpy as jnp, optax, slrla_jax
      >>> tx = slrla_jax.multilayer_lookahead(optax.sgd(1.0), (2, 2), (0.5, 0.5))
      >>> params, gradient = jnp.array(0.0), jnp.array(1.0)
      >>> state = tx.init(params)
      >>> for _ in range(4):
      ...     updates, state = tx.update(gradient, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params, slrla_jax.slow_params(state, params))
      -1.0 0.0
      -1.0 0.0
      -2.0 0.0
      -1.0 -1.0

    References:
      Pushkin and Barba, `Multilayer Lookahead: a Nested Version of Lookahead
      <https://arxiv.org/abs/2110.14254>`_, 2021.
    """
    arguments.check_some("sync_periods", sync_periods)
    arguments.check_some("slow_step_sizes", slow_step_sizes)
    arguments.check_same_length(sync_periods=sync_periods, slow_step_sizes=slow_step_sizes)
    layers = list(zip(sync_periods, slow_step_sizes, strict=True))
    for n, (k, alpha) in enumerate(layers):
        check_settings(k, alpha, inner_state, slow_dtype, entry=f"s[{n}]")

    tx = wrap(inner, *layers[0], inner_state, slow_dtype)
    for k, alpha in layers[1:]:
        tx = wrap(tx, k, alpha, inner_state, slow_dtype, has_stepped=lambda beneath: beneath.synced)
    return tx


def check_settings(
    sync_period: ScalarOrSchedule,
    slow_step_size: ScalarOrSchedule,
    inner_state: str,
    slow_dtype: DTypeLike | None,
    entry: str = "",
) -> None:
    """Raises a ValueError for the first setting of a lookahead that cannot be."""
    arguments.check_period(f"sync_period{entry}", sync_period)
    arguments.check_step_size(f"slow_step_size{entry}", slow_step_size)
    arguments.check_choice("inner_state", inner_state, inner_states.CHOICES)
    arguments.check_dtype("slow_dtype", slow_dtype)


def wrap(
    inner: optax.GradientTransformation,
    sync_period: ScalarOrSchedule,
    slow_step_size: ScalarOrSchedule,
    inner_state: str,
    slow_dtype: DTypeLike | None,
    *,
    has_stepped: Callable[[Any], bool | jax.Array] = lambda beneath: True,
    pull: Pull | None = None,
) -> optax.GradientTransformationExtraArgs:
    """One layer of Lookahead.

    The paper's two loops,

        for t = 1, 2, …:
            v ← θ
            repeat k times:  v ← v + u(v)
            θ ← θ + α (v − θ)

    merged into one update of the params p (which are v, and θ after a sync):

        at the start of a cycle:  θ ← p
        v ← p + u(p)
        at a sync:                u ← (θ + α (v − θ)) − p

    A sync has only the params to move, since the next cycle takes its slow weights
    from them. So fast and slow weights are equal after a sync, bit by bit, and the
    slow weights of a state are read once and written once in an update. Where θ is
    wider than the params, a sync stores the bits that their rounding will lose.

    Args:
      inner: layer 0, or the layer beneath.
      sync_period: k.
      slow_step_size: α.
      inner_state: one of `inner_states.CHOICES`.
      slow_dtype: dtype of θ, None for the params'.
      has_stepped: whether the layer beneath has just ended a step, from its state.
      pull: a regulariser of the gradients that needs the slow weights of the cycle:
        `pull(updates, params, slow_params, count)`.
    """
    inner = optax.with_extra_args_support(inner)
    period_at = arguments.as_schedule(sync_period)
    step_size_at = arguments.as_schedule(slow_step_size)

    def init_fn(params: optax.Params) -> LookaheadState:
        arguments.check_wide_enough("slow_dtype", slow_dtype, params)
        fresh = inner.init(params)
        moments = inner_states.moments(fresh) if inner_state == inner_states.PULLBACK else None
        return LookaheadState(
            inner_state=fresh,
            slow_params=trees.copy(params, slow_dtype),
            start_moments=trees.copy(moments),
            count=jnp.zeros((), jnp.int32),
            steps_since_sync=jnp.zeros((), jnp.int32),
            synced=jnp.ones((), bool),
        )

    def update_fn(
        updates: optax.Updates,
        state: LookaheadState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LookaheadState]:
        arguments.check_params("a lookahead", params)
        k, alpha = period_at(state.count), step_size_at(state.count)

        # θ ← p at the start of a cycle.
        slow = cycle_slow_params(state.synced, state.slow_params, params)
        start_moments = state.start_moments
        if inner_state == inner_states.PULLBACK:
            start_moments = jax.tree.map(
                lambda new, old: jnp.where(state.synced, new, old),
                inner_states.moments(state.inner_state),
                start_moments,
            )

        # u(p), the inner optimizer's step.
        if pull is not None:
            updates = pull(updates, params, slow, state.count)
        updates, now = inner.update(updates, state.inner_state, params, **extra_args)
        stepped = has_stepped(now)
        steps = state.steps_since_sync + stepped
        sync = jnp.logical_and(stepped, steps >= k)

        # u ← (θ + α (v − θ)) − p at a sync. Not for α = 1, where rounding would
        # part the params from those of the inner optimizer.
        step_back = jnp.logical_and(sync, alpha != 1)
        target = jax.tree.map(
            lambda theta, p, u: _interpolate(theta, p, u, alpha), slow, params, updates
        )
        updates = jax.tree.map(
            lambda u, p, t: _select_update(step_back, u, p, t), updates, params, target
        )

        slow = jax.tree.map(lambda theta, t, p: _keep_bits(sync, theta, t, p), slow, target, params)
        if inner_state == inner_states.RESET:
            initial = inner.init(optax.apply_updates(params, updates))
            now = inner_states.reset(sync, now, initial)
        elif inner_state == inner_states.PULLBACK:
            now = inner_states.pullback(sync, now, start_moments, alpha)

        return updates, LookaheadState(
            inner_state=now,
            slow_params=slow,
            start_moments=start_moments,
            count=optax.safe_increment(state.count),
            steps_since_sync=jnp.where(sync, 0, steps),
            synced=sync,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def cycle_slow_params(
    synced: jax.Array, slow_params: optax.Params, params: optax.Params
) -> optax.Params:
    """The slow weights of the cycle: the params themselves before its first step."""
    return jax.tree.map(
        lambda theta, p: jnp.where(synced, _unrounded(theta, p), theta), slow_params, params
    )


def _unrounded(theta: jax.Array, p: ArrayLike) -> jax.Array:
    """The params in the dtype of θ, with the bits of θ that rounding took from them."""
    p = jnp.asarray(p)
    if theta.dtype == p.dtype:
        return p
    return jnp.where(trees.rounded(theta, p.dtype) == p, theta, p.astype(theta.dtype))


def _keep_bits(sync: jax.Array, theta: jax.Array, t: jax.Array, p: ArrayLike) -> jax.Array:
    """At a sync the target t, if θ has bits of it that the params will not have."""
    if theta.dtype == jnp.result_type(p):
        return theta
    return jnp.where(sync, t.astype(theta.dtype), theta)


def _interpolate(theta: jax.Array, p: ArrayLike, u: ArrayLike, alpha: ArrayLike) -> jax.Array:
    """θ + α (v − θ) with v = p + u; for leaves without fractions, v."""
    v = trees.working(p) + trees.working(u)
    if not trees.is_inexact(p):
        return v
    start = trees.working(theta)
    return start + alpha * (v - start)


def _select_update(step_back: jax.Array, u: ArrayLike, p: ArrayLike, t: jax.Array) -> jax.Array:
    """The update that brings p to the target t where `step_back`, else u."""
    u, p = jnp.asarray(u), jnp.asarray(p)
    if not trees.is_inexact(p):
        return u
    way = trees.rounded(t, p.dtype) - trees.working(p)
    return jnp.where(step_back, trees.rounded(way, u.dtype), u).astype(u.dtype)
