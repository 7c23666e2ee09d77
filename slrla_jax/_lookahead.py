"""Lookahead: k steps forward, one step back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from slrla_jax import _arguments as arguments
from slrla_jax import _memory as memory
from slrla_jax import _moments as moments
from slrla_jax import _numerics as numerics
from slrla_jax._arguments import ScalarOrSchedule

Pull = Callable[[optax.Updates, optax.Params, optax.Params, jax.Array], optax.Updates]


@moments.declare_moments(inner_states=("inner_state",))
class LookaheadState(NamedTuple):
    """State of `lookahead` and of each layer of `multilayer_lookahead`.

    Read the slow weights with `slow_params(opt_state, params)`, at any step. No single
    field holds them at every step, because after a sync they are the params.

    Attributes:
      inner_state: the state of the inner optimizer, or of the layer below.
      cycle_start_params: the slow weights at the start of the cycle (after a sync, of the
        cycle that has just ended); shaped like the params, in their dtype or `slow_dtype`.
      cycle_start_moments: with `sync_moments="pullback"`, the inner optimizer's moments at
        the start of the cycle; otherwise empty.
      steps_taken: the number of optimizer steps taken, which is the argument of schedules;
        int32 of shape ().
      steps_since_sync: the number of steps of the layer below since the last sync; int32
        of shape ().
      synced: whether the last step was a sync, so that the next one starts a cycle;
        bool of shape ().
    """

    inner_state: optax.OptState
    cycle_start_params: optax.Params
    cycle_start_moments: tuple[Any, ...]
    steps_taken: jax.Array
    steps_since_sync: jax.Array
    synced: jax.Array


def lookahead(
    inner: optax.GradientTransformation,
    sync_period: ScalarOrSchedule | None = 5,
    slow_step_size: ScalarOrSchedule = 0.8,
    *,
    sync_moments: str = "keep",
    slow_dtype: DTypeLike | None = None,
    memory_kind: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Lookahead: k steps forward with an inner optimizer, one step back.

    Starting from the slow weights θ, the inner optimizer A takes k steps on the fast
    weights v; the slow weights then move a fraction α of the way towards v (Algorithm 2
    of Zhou et al.):

    .. math::
        v_0 &= θ_{t-1} \\
        v_τ &= A(v_{τ-1}, g_{τ-1}), \quad τ = 1, …, k \\
        θ_t &= θ_{t-1} + α (v_k - θ_{t-1})

    The params of the training loop are the fast weights, and after every k-th step
    (a *sync*) they are the new slow weights. Params and updates keep the shapes and
    dtypes that they have with `inner` alone. Evaluate at `slow_params(opt_state, params)`.

    Put it last in a chain: a transformation after it would also act on the step back
    (`optax.chain(lookahead(…), optax.scale(0.1))` takes only a tenth of it). Anything that
    scales or limits the inner optimizer's steps belongs inside `inner`. And `inner` must be
    a complete optimizer, whose updates are added to the params: `optax.scale_by_adam()`
    alone would ascend the loss.

    Each cycle starts from the params it is given. The params may therefore be changed
    between cycles, for example by another transformation, and lookaheads may be nested.

    Manual syncs: `update(grads, state, params, sync=True)` syncs at this step, and
    `sync=False` does not, whatever the period. With `sync=False` the compiled program is
    that of `inner`: it neither reads nor writes the slow weights, which are returned as
    they came. The cycle therefore starts from what the last `sync=True` (or `init`) has
    stored, not from the params it is given. An automatic sync does not store them, so the
    step after it must not be `sync=False`.

    Args:
      inner: the inner optimizer A, any optax transformation. Extra arguments of
        `update` (`value=`, `grad_fn=`, …) are passed on to it.
      sync_period: k, in optimizer steps; at least 1. A number, a traced array, or a
        schedule of the 0-based optimizer step. A sync happens at the first step at which
        the number of steps since the last sync reaches the current k. None for manual
        syncs only: every `update` must then be told `sync`.
      slow_step_size: α in (0, 1]; a number, a traced array, or a schedule of the
        0-based optimizer step, evaluated at the step of the sync. α = 1 is `inner`
        alone: bit-for-bit if it is a plain number, whereas with a traced 1 the compiler
        may fuse a multiplication and an addition that it rounds separately otherwise.
      sync_moments: what a sync does to the moments of `inner`. `"keep"` leaves them
        unchanged; `"reset"` restores the initial values of the moments and of their
        bias-correction counts; `"pullback"` moves every floating-point moment m to
        `m₀ + α (m − m₀)`, where m₀ is its value at the start of the cycle, and stores
        one more copy of the moments for that. Schedule counters, injected
        hyperparameters, partially accumulated gradients, random keys and everything else
        that is not a moment are left unchanged by all three. So is the entire state of
        optimizers whose moments cannot be separated from the rest: those that estimate
        their own learning rate (Prodigy, D-Adaptation, DoG, COCOB), and those that share
        one counter between moments and schedule (Momo, MADGRAD, Sophia). For the state
        of a custom optimizer, use `declare_moments`.
      slow_dtype: the dtype of the slow copy, at least as wide as that of the params; None
        for the dtype of the params. With bfloat16 params, `"float32"` keeps small
        movements of the slow weights that bfloat16 would round away. (Under
        `optax.inject_hyperparams` pass it as a string, because a type would be mistaken
        for a schedule there.)
      memory_kind: `"pinned_host"` keeps the slow weights (and the moments that `"pullback"`
        stores) in the memory of the host, where they take no room on the device. Steps with
        `sync=True` fetch them and put them back; the others return them as they came. It
        needs manual syncs only, that is `sync_period=None`, and a version of jax that has
        `jax.memory`. None keeps them in the memory of the params.

    Returns:
      A transformation with `update(updates, state, params, *, sync=None, **extra_args)`,
      where `sync` is True, False, or None to sync by `sync_period`. Its state is a
      `LookaheadState`, which is one copy of the params larger than the state of `inner`.

    Raises:
      ValueError: if `inner` is not a transformation, `sync_period` is below 1 or not
        whole, `slow_step_size` is outside (0, 1], `sync_moments` is unknown, `slow_dtype`
        is not floating or (at `init`) is narrower than the params, `memory_kind` is unknown
        or given with a `sync_period`, or `sync_moments` requires a declaration that the
        inner state lacks; and in `update`, if the params
        are missing, if the state was made for other params, or if `sync` is missing
        although `sync_period` is None, or is not a bool known when the program is
        compiled. Values known only inside a compiled program cannot be checked.

    Example:
      Three steps forward and one back, from 0 with slope 1 and α = ½:

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
    check_settings(inner, sync_period, slow_step_size, sync_moments, slow_dtype)
    memory.check_kind("memory_kind", memory_kind, sync_period)
    return lookahead_layer(
        inner, sync_period, slow_step_size, sync_moments, slow_dtype, memory_kind
    )


def lookahead_layer(
    inner: optax.GradientTransformation,
    sync_period: ScalarOrSchedule | None,
    slow_step_size: ScalarOrSchedule,
    sync_moments: str,
    slow_dtype: DTypeLike | None,
    memory_kind: str | None = None,
    *,
    layer: int = 1,
    layers: int = 1,
    pull: Pull | None = None,
) -> optax.GradientTransformationExtraArgs:
    """One layer of Lookahead.

    The paper's two loops,

        for t = 1, 2, …:
            v ← θ
            repeat k times:  v ← v + u(v)
            θ ← θ + α (v − θ)

    merged into one update u of the params p, which are v, or θ after a sync:

        at the start of a cycle:  θ ← p
        v ← p + u(p)
        at a sync:                u ← (θ + α (v − θ)) − p

    A sync moves only the params, and the next cycle takes θ from them. The state therefore
    holds θ as of the start of the cycle, `cycle_start_params`, which a sync leaves
    unchanged. Each update reads and writes each copy of the params once, without
    temporaries, and after a sync the fast and slow weights are equal bit-for-bit.

    A manual sync, which is known when the program is compiled, does θ ← p in the same update,
    so that the steps up to the next one need not touch θ.

    Args:
      inner: layer 0, or the layer below.
      sync_period: k; None for manual syncs only.
      slow_step_size: α.
      sync_moments: one of `moments.CHOICES`.
      slow_dtype: the dtype of θ; None for that of the params.
      memory_kind: where θ is kept; None for the memory of the params.
      layer: the number of this layer; 1 is the innermost.
      layers: the number of all layers. With manual syncs, the extra argument `sync` of
        `update` is the number of layers that sync, counted from the innermost.
      pull: a regulariser that changes the gradients and needs the slow weights of the
        cycle: `pull(updates, params, slow, steps_taken)`.
    """
    inner = arguments.with_extra_args_support(inner)
    period_at = arguments.as_schedule(sync_period)
    step_size_at = arguments.as_schedule(slow_step_size)

    def init_fn(params: optax.Params) -> LookaheadState:
        arguments.check_wide_enough("slow_dtype", slow_dtype, params)
        inner_state = inner.init(params)
        found = moments.find(sync_moments, inner_state)
        stored = found if sync_moments == moments.PULLBACK else ()
        return LookaheadState(
            inner_state=inner_state,
            cycle_start_params=memory.put(numerics.copy(params, slow_dtype), memory_kind),
            cycle_start_moments=memory.put(
                numerics.sharded_state(numerics.copy(stored), params), memory_kind
            ),
            steps_taken=jnp.zeros((), jnp.int32),
            steps_since_sync=jnp.zeros((), jnp.int32),
            synced=jnp.ones((), bool),
        )

    def update_fn(
        updates: optax.Updates,
        state: LookaheadState,
        params: optax.Params | None = None,
        *,
        sync: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LookaheadState]:
        arguments.check_params("a lookahead", params)
        arguments.check_state(state, LookaheadState)
        arguments.check_made_for(state.cycle_start_params, updates)
        arguments.check_params_of(state.cycle_start_params, params)
        if layer == layers:
            arguments.check_sync(sync, layers, is_needed=sync_period is None)
        updates = numerics.sharded_updates(updates, params)
        alpha = step_size_at(state.steps_taken)

        # θ ← p at the start of a cycle. In a step that is known not to sync, θ stays where it is.
        kept = start = state.cycle_start_params, state.cycle_start_moments
        starts: Any = False
        if sync is None or sync >= layer:
            starts, start = state.synced, memory.on_device(kept)
        slow = slow_weights(starts, start[0], params)
        start_moments = moments.at_cycle_start(sync_moments, starts, state.inner_state, start[1])

        # v ← p + u(p), a step of the inner optimizer.
        if pull is not None:
            updates = pull(updates, params, slow, state.steps_taken)
        if layer > 1:
            extra_args["sync"] = sync
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        # A sync of the layer below completes one step of it.
        stepped = inner_state.synced if layer > 1 else True
        steps = state.steps_since_sync + jnp.asarray(stepped, jnp.int32)
        if sync is None:
            sync = jnp.logical_and(stepped, steps >= period_at(state.steps_taken))
        else:
            sync = bool(sync >= layer)
        state = LookaheadState(
            inner_state=inner_state,
            cycle_start_params=slow,
            cycle_start_moments=start_moments,
            steps_taken=optax.safe_increment(state.steps_taken),
            steps_since_sync=steps,
            synced=jnp.zeros((), bool),
        )
        if sync is False:
            return updates, state

        # u ← (θ + α (v − θ)) − p at a sync.
        target = numerics.tree_map(
            lambda u, p, theta: _interpolate(theta, p, u, alpha), updates, params, slow
        )
        updates = numerics.tree_map(
            lambda u, p, t: _step_back(sync, u, p, t, alpha), updates, params, target
        )

        inner_state = moments.at_sync(
            sync_moments,
            sync,
            inner_state,
            lambda: inner.init(of_state(slow, numerics.add(params, updates))),
            start_moments,
            alpha,
        )
        inner_state = moments.forget_evaluations(sync & (alpha != 1), inner_state)
        state = state._replace(
            inner_state=inner_state,
            cycle_start_params=with_lost_bits(sync, slow, target, params),
            steps_since_sync=jnp.where(sync, 0, steps),
            synced=jnp.asarray(sync),
        )
        if sync is True:
            state = _start_cycle(state, numerics.landed(params, updates), sync_moments, layer)
        start = state.cycle_start_params, state.cycle_start_moments
        slow, start_moments = memory.as_before(start, kept)
        return updates, state._replace(cycle_start_params=slow, cycle_start_moments=start_moments)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _start_cycle(
    state: LookaheadState, params: optax.Params, sync_moments: str, layer: int
) -> LookaheadState:
    """θ ← p in a layer and in all layers below it, which have synced as well."""
    inner_state = state.inner_state
    if layer > 1:
        inner_state = _start_cycle(inner_state, params, sync_moments, layer - 1)
    kept = state.cycle_start_params, state.cycle_start_moments
    slow, start_moments = memory.on_device(kept)
    start = (
        slow_weights(True, slow, params),
        moments.at_cycle_start(sync_moments, True, inner_state, start_moments),
    )
    slow, start_moments = memory.as_before(start, kept)
    return state._replace(
        inner_state=inner_state, cycle_start_params=slow, cycle_start_moments=start_moments
    )


def _interpolate(theta: jax.Array, p: ArrayLike, u: ArrayLike, alpha: ArrayLike) -> jax.Array:
    """θ + α (v − θ) with v = p + u; for integer and boolean leaves, v."""
    v = numerics.widen(p) + numerics.widen(u)
    if not numerics.is_inexact(p):
        return v
    start = numerics.widen(theta)
    return start + alpha * (v - start)


def _step_back(
    sync: ArrayLike, u: ArrayLike, p: ArrayLike, target: jax.Array, alpha: ArrayLike
) -> jax.Array:
    """At a sync, the update that moves p to the target; otherwise u.

    With α = 1 it is u itself, because rounding would make the params differ from those of
    the inner optimizer alone.
    """
    u = jnp.asarray(u)
    if not numerics.is_inexact(p):
        return u
    return numerics.select(sync, numerics.at_limit(alpha == 1, u, update_to(target, p, u)), u)


def update_to(target: jax.Array, p: ArrayLike, u: jax.Array) -> jax.Array:
    """The update that moves p to the target, in the dtype of the update u."""
    p = jnp.asarray(p)
    to_target = numerics.rounded(target, p.dtype) - numerics.widen(p)
    return numerics.rounded(to_target, u.dtype).astype(u.dtype)


def of_state(slow: optax.Params, params: optax.Params) -> optax.Params:
    """The params that the state was made for, without anything else the model holds."""
    return numerics.tree_map(lambda _, p: p, slow, params)


def check_settings(
    inner: optax.GradientTransformation,
    sync_period: ScalarOrSchedule | None,
    slow_step_size: ScalarOrSchedule,
    sync_moments: str,
    slow_dtype: DTypeLike | None,
    entry: str = "",
) -> None:
    """Raises a ValueError for an invalid setting; `entry` marks its place in a list, if any."""
    arguments.check_transformation("inner", inner)
    if sync_period is not None:
        arguments.check_period(f"sync_period{entry}", sync_period)
    arguments.check_step_size(f"slow_step_size{entry}", slow_step_size)
    arguments.check_choice("sync_moments", sync_moments, moments.CHOICES)
    arguments.check_dtype("slow_dtype", slow_dtype)


# Slow weights in a wider dtype than the params'
#
# A sync rounds θ to the dtype of the params. It therefore also stores the unrounded θ, and
# the next cycle starts from that if the params still equal its rounded value.


def slow_weights(starts: ArrayLike, stored: optax.Params, params: optax.Params) -> optax.Params:
    """The slow weights of the cycle: the params if it starts now, else what is stored.

    A part of the params that is None, because it has no updates, stays as stored.
    """
    if starts is False:
        return stored

    def leaf(theta: jax.Array, p: Any) -> jax.Array:
        return theta if p is None else numerics.select(starts, _with_bits_of(theta, p), theta)

    return numerics.tree_map(leaf, stored, params)


def _with_bits_of(theta: jax.Array, p: ArrayLike) -> jax.Array:
    """The params in the dtype of θ; θ itself if it rounds to the params."""
    p = numerics.sharded_like(jnp.asarray(p), theta)
    if theta.dtype == p.dtype:
        return p
    is_rounded = numerics.rounded(theta, p.dtype) == p
    return numerics.at_limit(is_rounded, theta, p.astype(theta.dtype))


def with_lost_bits(
    sync: ArrayLike, slow: optax.Params, target: optax.Params, params: optax.Params
) -> optax.Params:
    """The slow weights to store: at a sync the new ones, if they are wider than the params."""

    def leaf(theta: jax.Array, t: Any, p: ArrayLike) -> jax.Array:
        if t is None or theta.dtype == jnp.result_type(p):
            return theta
        return numerics.select(sync, t, theta)

    return numerics.tree_map(leaf, slow, target, params)
