"""What a sync does to the inner optimizer's state: keep, reset or pull it back.

The state of an optax optimizer mixes two things. *Moments* (momentum, Adam's m and
v with their bias-correction counts, accumulators) are estimates made along the
fast weights, and a step back may discard or rewind them. Everything else says
where training is (a learning-rate schedule's counter, injected hyperparameters, a
half-accumulated gradient) or belongs to another algorithm (anchors, nested slow
weights, random keys), and goes on whatever happens to the moments: a schedule that
starts again at every sync never reaches its later values.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.typing import ArrayLike

from slrla_jax import _trees as trees

KEEP, RESET, PULLBACK = CHOICES = ("keep", "reset", "pullback")

# State type -> those of its fields that hold moments, or lead to them. The fields of
# a type that is not named here all do.
_moment_fields: dict[type, tuple[str, ...]] = {
    optax.ScaleByScheduleState: (),
    optax.InjectHyperparamsState: ("inner_state",),
    optax.InjectStatefulHyperparamsState: ("inner_state",),
    optax.MultiStepsState: ("inner_opt_state",),
    optax.ApplyIfFiniteState: ("inner_state",),
    optax.ConditionallyTransformState: ("inner_state",),
    optax.ConditionallyMaskState: ("inner_state",),
    optax.AddNoiseState: (),
    optax.contrib.ReduceLROnPlateauState: (),
    optax.contrib.DifferentiallyPrivateAggregateState: (),
}


def has_moments_only_in(*fields: str) -> Callable[[type], type]:
    """Declares, on a state's class, the fields that hold or lead to moments."""

    def declare(state_type: type) -> type:
        _moment_fields[state_type] = fields
        return state_type

    return declare


def moments(state: optax.OptState) -> optax.OptState:
    """The state with None in place of all that is not a moment."""

    def at(node: Any) -> Any:
        if not _is_mixed(node):
            return node
        fields = _moment_fields[type(node)]
        return type(node)(
            *(moments(x) if f in fields else None for f, x in zip(node._fields, node, strict=True))
        )

    return jax.tree.map(at, state, is_leaf=_is_mixed)


def reset(sync: jax.Array, now: optax.OptState, initial: optax.OptState) -> optax.OptState:
    """Where `sync`, the moments at their initial values; random keys go on."""

    def leaf(now: Any, initial: Any) -> Any:
        if _is_random_key(now):
            return now
        return jnp.where(sync, initial, now).astype(jnp.result_type(now))

    return _map_moments(leaf, now, initial)


def pullback(
    sync: jax.Array, now: optax.OptState, start: optax.OptState, alpha: ArrayLike
) -> optax.OptState:
    """Where `sync`, the floating moments at `start + alpha (now − start)`."""
    step_back = jnp.logical_and(sync, alpha != 1)

    def leaf(now: Any, start: Any) -> Any:
        if not trees.is_inexact(now):
            return now
        past = trees.working(start)
        pulled = past + alpha * (trees.working(now) - past)
        return jnp.where(step_back, pulled, now).astype(jnp.result_type(now))

    return _map_moments(leaf, now, start)


def _map_moments(f: Callable[..., Any], state: Any, *rest: Any) -> Any:
    """Maps over the moments of `state`; all else stays as `state` has it."""

    def at(node: Any, *others: Any) -> Any:
        if not _is_mixed(node):
            return f(node, *others)
        return node._replace(
            **{
                field: _map_moments(f, getattr(node, field), *(getattr(o, field) for o in others))
                for field in _moment_fields[type(node)]
            }
        )

    return jax.tree.map(at, state, *rest, is_leaf=_is_mixed)


def _is_mixed(node: Any) -> bool:
    return type(node) in _moment_fields


def _is_random_key(leaf: Any) -> bool:
    # Raw keys are uint32, a dtype that optax never counts in.
    dtype = jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32
