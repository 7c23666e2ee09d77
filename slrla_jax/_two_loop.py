"""Two loops: any optimizer makes the slow step, on the distance that the inner one has gone."""

from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike

from slrla_jax import _arguments as arguments
from slrla_jax import _compression as compression
from slrla_jax import _memory as memory
from slrla_jax import _moments as moments
from slrla_jax import _numerics as numerics
from slrla_jax._arguments import Scalar, ScalarOrSchedule
from slrla_jax._lookahead import of_state, slow_weights, update_to, with_lost_bits

AxisName = Hashable


@moments.declare_moments(inner_states=("inner_state",))
class TwoLoopState(NamedTuple):
    """State of `two_loop`, `snoo` and `diloco`.

    Read the slow weights with `slow_params(opt_state, params)`, at any step.

    Attributes:
      inner_state: the state of the inner optimizer; with an axis, each replica's own.
      outer_state: the state of the outer optimizer, which changes at syncs only.
      cycle_start_params: the slow weights at the start of the cycle (after an automatic
        sync without an axis, of the cycle that has just ended); shaped like the params, in
        their dtype or `slow_dtype`.
      steps_taken: the number of optimizer steps taken; int32 of shape ().
      steps_since_sync: the number of those since the last sync; int32 of shape ().
      synced: whether the last step was a sync, after which the params are the slow
        weights; bool of shape (). None with an axis, where these are always stored.
      residual: what a replica has yet to send of its pseudo-gradients, each replica's own;
        shaped like the params, in float32 or their dtype if that is wider, with None for
        integer params. None without `pseudo_gradient_dtype`.
    """

    inner_state: optax.OptState
    outer_state: optax.OptState
    cycle_start_params: optax.Params
    steps_taken: jax.Array
    steps_since_sync: jax.Array
    synced: jax.Array | None
    residual: optax.Params | None = None


def two_loop(
    inner: optax.GradientTransformation,
    outer: optax.GradientTransformation,
    sync_period: ScalarOrSchedule | None,
    *,
    axis_name: AxisName | None = None,
    pseudo_gradient_dtype: DTypeLike | None = None,
    sync_moments: str = "keep",
    slow_dtype: DTypeLike | None = None,
    memory_kind: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Lookahead whose slow step is made by any optimizer.

    Starting from the slow weights θ, the inner optimizer A takes k steps on the fast
    weights v. The way that they have gone back is a *pseudo-gradient* s, with which the
    outer optimizer B takes one step on θ:

    .. math::
        v_0 &= θ_{t-1} \\
        v_τ &= A(v_{τ-1}, g_{τ-1}), \quad τ = 1, …, k \\
        s &= θ_{t-1} - v_k \\
        θ_t &= B(θ_{t-1}, s)

    With `optax.sgd(α)` as B this is `lookahead(inner, k, α)`, up to rounding; with Nesterov
    momentum it is `snoo`. On R replicas, mapped with the axis `axis_name`, s is the mean
    over the replicas, :math:`s = \frac{1}{R} \sum_r (θ_{t-1} - v_k^{(r)})`, and nothing else
    is exchanged between them; see `diloco`.

    B has θ as its params, and keeps its state from one sync to the next: its counts and
    schedules count syncs. It receives no extra arguments. Integer params and those without
    updates are left to `inner`; their pseudo-gradient is 0.

    As in `lookahead`, the params of the training loop are the fast weights, and after a sync
    they are equal to the slow weights, bit-for-bit; put the transformation last in a chain;
    `inner` must be a complete optimizer; each cycle starts from the params it is given,
    unless a `sync=False` or an axis rules that out; and `sync=True` and `sync=False` make
    syncs manual. With `sync=False` the compiled program is that of `inner`, while θ and the
    state of B are returned as they came.

    With an axis, θ and the state of B are the same bits on all replicas, but the replicas'
    params are at different points before a sync, and one addition cannot take each of
    them to exactly the same number. The params are therefore equal to θ up to the rounding
    of that addition. `slow_params(opt_state, params)` is θ itself, so
    `params = slow_params(opt_state, params)` after a sync makes them equal bit-for-bit.

    With `pseudo_gradient_dtype` the replicas send each other their pseudo-gradients in few
    bits. What rounding takes from them is kept and sent with the next ones: with a residual
    :math:`e^{(r)}` of each replica, which is 0 at first,

    .. math::
        s + \frac{1}{R} \sum_r e_\text{new}^{(r)}
            = \frac{1}{R} \sum_r (θ_{t-1} - v_k^{(r)} + e^{(r)})

    up to rounding errors of the dtype of e, so that nothing is lost. A replica sends and
    receives 2 (R − 1)/R · n bytes for each param, with n the bytes of that dtype (without it,
    those of the dtype of θ). In int8, each leaf is cut into R chunks, and the entries of a chunk
    are rounded to multiples of 1/127 of the largest of them, which is sent along in float32. An
    infinity or NaN on one replica reaches them all, as it does without compression; in int8,
    nothing in its chunk is finite then. The equations of s and e are in module `_compression`.

    Args:
      inner: the inner optimizer A, any optax transformation. Extra arguments of
        `update` (`value=`, `grad_fn=`, …) are passed on to it.
      outer: the outer optimizer B, any optax transformation.
      sync_period: k; see `lookahead`.
      axis_name: the name, or a tuple of names, of the mapped axes of the replicas, as given
        to `jax.pmap`, `jax.shard_map` or `jax.vmap`; None for no replicas. With automatic
        syncs, the averaging is inside a `jax.lax.cond`, so that it runs at syncs only.
      pseudo_gradient_dtype: the dtype in which replicas send their pseudo-gradients:
        `"bfloat16"` or `"int8"`, with error feedback, or None for that of θ.
      sync_moments: what a sync does to the moments of `inner`: `"keep"` or `"reset"`; see
        `lookahead`. (There is no α here to pull moments back by.)
      slow_dtype: the dtype of θ; see `lookahead`. B computes in it.
      memory_kind: `"pinned_host"` keeps θ and the state of B in the memory of the host; see
        `lookahead`.

    Returns:
      A transformation with `update(updates, state, params, *, sync=None, **extra_args)`.
      Its state is a `TwoLoopState`, which is larger than that of `inner` by one copy of the
      params and the state of B, and with `pseudo_gradient_dtype` by one more copy.

    Raises:
      ValueError: if `outer` is not a transformation, if `axis_name` is not a name, if
        `pseudo_gradient_dtype` is another dtype or is given without `axis_name`, and as
        `lookahead` does.

    Example:
      Two steps forward and one with momentum, from 0 with slope 1:

      >>> import jax.numpy as jnp, optax, slrla_jax
      >>> tx = slrla_jax.two_loop(optax.sgd(1.0), optax.sgd(0.5, momentum=0.5), 2)
      >>> params, gradient = jnp.array(0.0), jnp.array(1.0)
      >>> state = tx.init(params)
      >>> for _ in range(4):
      ...     updates, state = tx.update(gradient, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params, slrla_jax.slow_params(state, params))
      -1.0 0.0
      -1.0 -1.0
      -2.0 -1.0
      -2.5 -2.5

    References:
      Kallusky, Rao, Nandavanam and Shi, `SNOO: Step-K Nesterov Outer Optimizer – The
      Surprising Effectiveness of Nesterov Momentum Applied to Pseudo-Gradients
      <https://arxiv.org/abs/2510.15830>`_, 2025.

      Douillard et al., `DiLoCo: Distributed Low-Communication Training of Language Models
      <https://arxiv.org/abs/2311.08105>`_, 2023.

      Seide, Fu, Droppo, Li and Yu, `1-Bit Stochastic Gradient Descent and its Application to
      Data-Parallel Distributed Training of Speech DNNs
      <https://www.isca-archive.org/interspeech_2014/seide14_interspeech.html>`_, 2014.
    """
    arguments.check_transformation("inner", inner)
    arguments.check_transformation("outer", outer)
    if sync_period is not None:
        arguments.check_period("sync_period", sync_period)
    if axis_name is not None:
        arguments.check_axis_name("axis_name", axis_name)
    compression.check_dtype("pseudo_gradient_dtype", pseudo_gradient_dtype, axis_name)
    arguments.check_choice("sync_moments", sync_moments, (moments.KEEP, moments.RESET))
    arguments.check_dtype("slow_dtype", slow_dtype)
    memory.check_kind("memory_kind", memory_kind, sync_period)
    inner = arguments.with_extra_args_support(inner)
    period_at = arguments.as_schedule(sync_period)

    # The two loops above, merged into one update u of the params p, which are v, or θ after
    # a sync:
    #
    #     at the start of a cycle:  θ ← p
    #     v ← p + u(p)
    #     at a sync:                u ← B(θ, mean of θ − v) − p
    #
    # As in a layer of `lookahead`, θ ← p comes with the step after an automatic sync, and
    # with the sync itself if that is manual. With an axis, p has rounding errors that differ
    # from replica to replica, so the sync stores θ, and θ ← p is left out. With
    # `pseudo_gradient_dtype` it is the mean of θ − v + e, less what is not sent of it, the next e.

    def init_fn(params: optax.Params) -> TwoLoopState:
        arguments.check_wide_enough("slow_dtype", slow_dtype, params)
        inner_state = inner.init(params)
        moments.find(sync_moments, inner_state)
        # From a copy of its own, because B may store its params.
        outer_state = outer.init(numerics.copy(params, slow_dtype))
        sends = pseudo_gradient_dtype is not None
        residual = compression.zero_residual(params, slow_dtype) if sends else None
        return TwoLoopState(
            inner_state=inner_state,
            outer_state=memory.put(numerics.sharded_state(outer_state, params), memory_kind),
            cycle_start_params=memory.put(numerics.copy(params, slow_dtype), memory_kind),
            steps_taken=jnp.zeros((), jnp.int32),
            steps_since_sync=jnp.zeros((), jnp.int32),
            synced=jnp.ones((), bool) if axis_name is None else None,
            residual=memory.put(residual, memory_kind),
        )

    def update_fn(
        updates: optax.Updates,
        state: TwoLoopState,
        params: optax.Params | None = None,
        *,
        sync: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, TwoLoopState]:
        arguments.check_params("two loops", params)
        arguments.check_state(state, TwoLoopState)
        arguments.check_made_for(state.cycle_start_params, updates)
        arguments.check_params_of(state.cycle_start_params, params)
        compression.check_residual(state.residual, state.cycle_start_params, pseudo_gradient_dtype)
        arguments.check_sync(sync, 1, is_needed=sync_period is None)
        updates = numerics.sharded_updates(updates, params)

        # θ ← p at the start of a cycle. In a step that is known not to sync, θ stays where it is.
        kept = state.cycle_start_params, state.outer_state, state.residual
        starts: Any = False
        if sync is None or sync:
            starts = state.synced if axis_name is None else False
            slow, outer_state, residual = memory.on_device(kept)
            state = state._replace(
                cycle_start_params=slow, outer_state=outer_state, residual=residual
            )
        slow = slow_weights(starts, state.cycle_start_params, params)

        # v ← p + u(p), a step of the inner optimizer.
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        steps = state.steps_since_sync + 1
        sync = steps >= period_at(state.steps_taken) if sync is None else bool(sync)
        state = TwoLoopState(
            inner_state=inner_state,
            outer_state=state.outer_state,
            cycle_start_params=slow,
            steps_taken=optax.safe_increment(state.steps_taken),
            steps_since_sync=steps,
            synced=jnp.zeros((), bool) if axis_name is None else None,
            residual=state.residual,
        )
        if sync is False:
            return updates, state

        # u ← B(θ, mean of θ − v) − p at a sync.
        def slow_step() -> Any:
            away = numerics.tree_map(_pseudo_gradient, slow, params, updates)
            residual = state.residual
            if pseudo_gradient_dtype is not None:
                away, residual = compression.averaged(
                    away, residual, updates, axis_name, pseudo_gradient_dtype
                )
            elif axis_name is not None:
                away = jax.lax.pmean(away, axis_name)  # type: ignore[no-untyped-call]
            outer_updates, outer_state = outer.update(away, state.outer_state, slow)
            target = numerics.tree_map(_moved, slow, outer_updates, params, updates)
            before = slow, state.outer_state, state.residual
            return jax.tree.map(numerics.like, (target, outer_state, residual), before)

        # Without a collective to avoid, a selection is cheaper than a conditional. Compiled for
        # CPUs with 24 leaves, SNOO around SGD with momentum has temporaries of 1.1 copies of
        # the params with `where` and 2.1 with `cond`, around AdamW 1.4 and 3.1, and accesses
        # the memory of 20 copies and 23, 26 and 30. (The slow step is then made at every step,
        # and discarded.)
        if axis_name is None or sync is True:
            target, outer_state, residual = slow_step()
            outer_state = jax.tree.map(
                partial(numerics.select, sync), outer_state, state.outer_state
            )
        else:
            target, outer_state, residual = jax.lax.cond(
                sync, slow_step, lambda: (slow, state.outer_state, state.residual)
            )
        updates = numerics.tree_map(partial(_step_back, sync), updates, params, target)

        inner_state = moments.at_sync(
            sync_moments,
            sync,
            inner_state,
            lambda: inner.init(of_state(slow, numerics.add(params, updates))),
            (),
            1.0,
        )
        if axis_name is not None:
            slow = target
        elif sync is True:
            slow = slow_weights(True, target, numerics.landed(params, updates))
        else:
            slow = with_lost_bits(sync, slow, target, params)
        slow, outer_state, residual = memory.as_before((slow, outer_state, residual), kept)
        return updates, state._replace(
            inner_state=moments.forget_evaluations(sync, inner_state),
            outer_state=outer_state,
            cycle_start_params=slow,
            steps_since_sync=jnp.where(sync, 0, steps),
            synced=jnp.asarray(sync) if axis_name is None else None,
            residual=residual,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _pseudo_gradient(theta: jax.Array, p: Any, u: Any) -> jax.Array:
    """θ − v with v = p + u, in the dtype of θ; 0 for a leaf that is left to the inner optimizer."""
    if u is None or not numerics.is_inexact(theta):
        return jnp.zeros_like(theta)
    v = numerics.widen(p) + numerics.widen(u)
    return numerics.like(numerics.widen(theta) - v, theta)


def _moved(theta: jax.Array, outer_update: Any, p: Any, u: Any) -> jax.Array:
    """θ after its outer update; v for a leaf that is left to the inner optimizer."""
    if u is None:
        return theta
    if not numerics.is_inexact(theta):
        return jnp.asarray(p + u)
    return numerics.widen(theta) + numerics.widen(outer_update)


def _step_back(sync: ArrayLike, u: ArrayLike, p: ArrayLike, theta: jax.Array) -> jax.Array:
    """At a sync, the update that moves p to θ; otherwise u."""
    u = jnp.asarray(u)
    if not numerics.is_inexact(p):
        return u
    return numerics.select(sync, update_to(numerics.widen(theta), p, u), u)


def snoo(
    inner: optax.GradientTransformation,
    sync_period: ScalarOrSchedule | None = 100,
    learning_rate: ScalarOrSchedule = 0.8,
    momentum: Scalar = 0.75,
    *,
    sync_moments: str = "keep",
    slow_dtype: DTypeLike | None = None,
    memory_kind: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SNOO: Lookahead whose slow step has Nesterov momentum.

    After k steps of the inner optimizer from the slow weights θ to the fast weights v,

    .. math::
        s &= θ - v \\
        b &← μ b + s \\
        θ &← θ - η (μ b + s).

    This is `two_loop` with Nesterov SGD as the outer optimizer. Without momentum it is
    `lookahead` with α = η, up to rounding, and stores no b.

    Args:
      inner: the inner optimizer; see `two_loop`. The paper's are AdamW and Muon.
      sync_period: k; see `lookahead`. The paper finds values from 5 to 100 about as good.
      learning_rate: η > 0; a number, a traced array, or a schedule of the number of syncs.
      momentum: μ in [0, 1); 0 for no momentum.
      sync_moments: `"keep"` or `"reset"` the moments of `inner`; see `two_loop`.
      slow_dtype: the dtype of θ and b; see `lookahead`.
      memory_kind: `"pinned_host"` keeps θ and b in the memory of the host; see `lookahead`.

    Returns:
      A transformation like that of `two_loop`. Its state is two copies of the params larger
      than that of `inner`, or one if μ is 0.

    Raises:
      ValueError: if η is not positive, if μ is outside [0, 1), and as `two_loop` does.

    Example:
      >>> import optax, slrla_jax
      >>> tx = slrla_jax.snoo(optax.adamw(1e-3), sync_period=20)

    References:
      Kallusky, Rao, Nandavanam and Shi, `SNOO: Step-K Nesterov Outer Optimizer – The
      Surprising Effectiveness of Nesterov Momentum Applied to Pseudo-Gradients
      <https://arxiv.org/abs/2510.15830>`_, 2025.
    """
    return two_loop(
        inner,
        _nesterov(learning_rate, momentum),
        sync_period,
        sync_moments=sync_moments,
        slow_dtype=slow_dtype,
        memory_kind=memory_kind,
    )


def diloco(
    inner: optax.GradientTransformation,
    axis_name: AxisName,
    sync_period: ScalarOrSchedule | None = 100,
    learning_rate: ScalarOrSchedule = 0.7,
    momentum: Scalar = 0.9,
    *,
    pseudo_gradient_dtype: DTypeLike | None = None,
    sync_moments: str = "keep",
    slow_dtype: DTypeLike | None = None,
    memory_kind: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""DiLoCo: replicas that train alone for k steps, then take one slow step together.

    Each of R replicas takes k steps of the inner optimizer, from the common slow weights θ
    to its own fast weights v⁽ʳ⁾, on data of its own and with an inner state of its own. Then

    .. math::
        s &= \frac{1}{R} \sum_r (θ - v^{(r)}) \\
        b &← μ b + s \\
        θ &← θ - η (μ b + s).

    The mean is the only communication: one all-reduce of the params in k steps. Do not
    average the gradients as well. This is `two_loop` with Nesterov SGD as the outer
    optimizer; see there for what is equal on all replicas. With one replica it is `snoo`;
    without momentum and with η = 1 it is local SGD, also called federated averaging.

    Args:
      inner: the inner optimizer; see `two_loop`. The paper's is AdamW.
      axis_name: the name of the mapped axis of the replicas; see `two_loop`.
      sync_period: k; see `lookahead`. The paper's is 500.
      learning_rate: η > 0; a number, a traced array, or a schedule of the number of syncs.
      momentum: μ in [0, 1); 0 for no momentum.
      pseudo_gradient_dtype: `"bfloat16"` or `"int8"` sends the pseudo-gradients in a half or a
        quarter of the bytes of float32, with error feedback; see `two_loop`.
      sync_moments: `"keep"` or `"reset"` the moments of `inner`; see `two_loop`.
      slow_dtype: the dtype of θ and b, in which s is averaged; see `lookahead`.
      memory_kind: `"pinned_host"` keeps θ and b in the memory of the host; see `lookahead`.

    Returns:
      A transformation like that of `two_loop`, whose `update` must run where the axis is
      mapped. Its state is two copies of the params larger than that of `inner`, or one if μ
      is 0, and one more with `pseudo_gradient_dtype`.

    Raises:
      ValueError: if `axis_name` is not a name, if η is not positive, if μ is outside [0, 1),
        and as `two_loop` does.

    Example:
      Two replicas with slopes 1 and 3 take two steps each; the mean of s is 4:

      >>> import jax, jax.numpy as jnp, optax, slrla_jax
      >>> tx = slrla_jax.diloco(optax.sgd(1.0), "replica", 2, learning_rate=0.5, momentum=0.0)
      >>> def train(gradient):
      ...     params = jnp.array(0.0)
      ...     state = tx.init(params)
      ...     for _ in range(2):
      ...         updates, state = tx.update(gradient, state, params)
      ...         params = optax.apply_updates(params, updates)
      ...     return params
      >>> print(jax.vmap(train, axis_name="replica")(jnp.array([1.0, 3.0])))
      [-2. -2.]

    References:
      Douillard et al., `DiLoCo: Distributed Low-Communication Training of Language Models
      <https://arxiv.org/abs/2311.08105>`_, 2023.

      Douillard et al., `Streaming DiLoCo with Overlapping Communication: Towards a Distributed
      Free Lunch <https://arxiv.org/abs/2501.18512>`_, 2025, whose pseudo-gradients are sent in
      four bits.
    """
    arguments.check_axis_name("axis_name", axis_name)
    return two_loop(
        inner,
        _nesterov(learning_rate, momentum),
        sync_period,
        axis_name=axis_name,
        pseudo_gradient_dtype=pseudo_gradient_dtype,
        sync_moments=sync_moments,
        slow_dtype=slow_dtype,
        memory_kind=memory_kind,
    )


def _nesterov(learning_rate: ScalarOrSchedule, momentum: Scalar) -> optax.GradientTransformation:
    """SGD with Nesterov momentum, which stores none if the momentum is 0."""
    arguments.check_positive("learning_rate", learning_rate)
    arguments.check_no_schedule(momentum=momentum)
    arguments.check_decay("momentum", momentum)
    decay = None if arguments.is_zero(momentum) else arguments.as_plain(momentum)
    return optax.sgd(arguments.as_plain(learning_rate), decay, nesterov=True)
