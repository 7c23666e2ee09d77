"""What a sync does to the inner optimizer's moments: it keeps, resets or pulls them back.

The state of an optax optimizer mixes two kinds of values. *Moments* (momentum, Adam's m and
v with their bias-correction counts, accumulators of squares) are estimates made along the
path of the fast weights, and a step back may reset them or pull them back. All other values
record the progress of training (the counter of a schedule, injected hyperparameters, a
partially accumulated gradient) or belong to another algorithm (anchors, nested slow weights,
random keys). A sync never changes those: a learning-rate schedule that restarted at every
sync would never reach its later values.
"""

import collections
import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from slrla_jax import _numerics as numerics

KEEP, RESET, PULLBACK = CHOICES = ("keep", "reset", "pullback")

StateType = TypeVar("StateType", bound=type)


class Fields(NamedTuple):
    """The fields of a state that hold moments, and those that hold states with moments inside."""

    moments: tuple[str, ...] = ()
    inner_states: tuple[str, ...] = ()


# The states declared by users, and those of this package.
_declared: dict[type, Fields] = {}

# The states of optax and optax.contrib, by name. Fields that are not listed are left unchanged.
OPTAX_STATES = {
    # Moments.
    "EmaState": Fields(("count", "ema")),
    "FactoredState": Fields(("count", "v_row", "v_col", "v")),
    "MuonState": Fields(("count", "mu")),
    "ScaleByAdaDeltaState": Fields(("e_g", "e_x")),
    "ScaleByAdamState": Fields(("count", "mu", "nu")),
    "ScaleByAdanState": Fields(("m", "v", "n", "g", "t")),
    "ScaleByAdemamixState": Fields(("count", "m1", "m2", "nu")),  # count_m2: its schedules
    "ScaleByAmsgradState": Fields(("count", "mu", "nu", "nu_max")),
    "ScaleByBeliefState": Fields(("count", "mu", "nu")),
    "ScaleByLionState": Fields(("count", "mu")),
    "ScaleByNovogradState": Fields(("count", "mu", "nu")),
    "ScaleByOptimisticGradientState": Fields(("is_initial_step", "previous_gradient")),
    "ScaleByRStdDevState": Fields(("mu", "nu")),
    "ScaleByRStdDevWithCountState": Fields(("count", "mu", "nu")),
    "ScaleByRmsState": Fields(("nu",)),
    "ScaleByRmsWithCountState": Fields(("count", "nu")),
    "ScaleByRpropState": Fields(("prev_updates",)),  # keeps its adapted step sizes
    "ScaleByRssState": Fields(("sum_of_squares",)),
    "ScaleBySM3State": Fields(("mu", "nu")),
    "TraceState": Fields(("trace",)),
    # Wrappers of other transformations.
    "ApplyIfFiniteState": Fields(inner_states=("inner_state",)),
    "ConditionallyMaskState": Fields(inner_states=("inner_state",)),
    "ConditionallyTransformState": Fields(inner_states=("inner_state",)),
    "GaLoreState": Fields(inner_states=("base_optimizer_state",)),
    "InjectHyperparamsState": Fields(inner_states=("inner_state",)),
    "InjectStatefulHyperparamsState": Fields(inner_states=("inner_state",)),
    "LookaheadState": Fields(inner_states=("fast_state",)),
    "MaskedState": Fields(inner_states=("inner_state",)),
    "MechanicState": Fields(inner_states=("base_optimizer_state",)),
    "MultiStepsState": Fields(inner_states=("inner_opt_state",)),
    "PartitionState": Fields(inner_states=("inner_states",)),
    "SAMState": Fields(inner_states=("opt_state", "adv_state")),
    "ScheduleFreeState": Fields(inner_states=("base_optimizer_state",)),
    "SplitRealAndImaginaryState": Fields(inner_states=("inner_state",)),
    # Counters, random keys, stored evaluations, and estimates of the curvature of the loss.
    "AddNoiseState": Fields(),
    "ApplyEvery": Fields(),
    "DifferentiallyPrivateAggregateState": Fields(),
    "HutchinsonState": Fields(),
    "MonitorState": Fields(),
    "ReduceLROnPlateauState": Fields(),
    "ScaleByBacktrackingLinesearchState": Fields(),
    "ScaleByLBFGSState": Fields(),
    "ScaleByScheduleState": Fields(),
    "ScaleByZoomLinesearchState": Fields(),
    "SnapshotState": Fields(),
    "WeightDecaySchedule": Fields(),
    "WrappedScheduleState": Fields(),
    "ZeroNansState": Fields(),
    # The learning rate is estimated during training, from the entire state.
    "COCOBState": Fields(),
    "DAdaptAdamWState": Fields(),
    "DoGState": Fields(),
    "DoWGState": Fields(),
    "ProdigyState": Fields(),
    "ScaleByDistanceOverGradientsState": Fields(),
    # One counter serves both the moments and a schedule, so the two cannot be separated.
    "MadgradState": Fields(),
    "MomoAdamState": Fields(),
    "MomoState": Fields(),
    "ScaleBySimplifiedAdEMAMixState": Fields(),
    "SophiaState": Fields(),
}

LINE_SEARCHES = (optax.ScaleByBacktrackingLinesearchState, optax.ScaleByZoomLinesearchState)


def declare_moments(
    *moments: str, inner_states: tuple[str, ...] = ()
) -> Callable[[StateType], StateType]:
    """Declares which fields of a custom optimizer state are moments.

    A sync with `sync_moments="reset"` or `"pullback"` changes these fields and no others:
    schedule counters, anchors and random keys are left unchanged. The states of optax,
    optax.contrib and this package are already known.

    Args:
      *moments: the names of the fields that hold moments: averages and accumulators of
        gradients, and their bias-correction counts. Pass no names if there are none.
      inner_states: the names of the fields that hold the state of another optimizer, whose
        own moments are then included.

    Returns:
      A decorator for the state's class, a NamedTuple or a dataclass. It returns the class
      unchanged.

    Raises:
      TypeError: if the class is neither a NamedTuple nor a dataclass, or if the names are
        not given as strings.
      ValueError: if a name is not a field of the class.

    Example:
      >>> from typing import NamedTuple
      >>> import jax, optax, slrla_jax
      >>> @slrla_jax.declare_moments("momentum")
      ... class MyState(NamedTuple):
      ...     step: jax.Array  # the argument of a schedule, unchanged by a sync
      ...     momentum: optax.Updates

      To declare a class defined elsewhere, call the decorator on it:

      >>> _ = slrla_jax.declare_moments("momentum")(MyState)
    """
    if not all(isinstance(name, str) for name in moments):
        raise TypeError(
            f"`declare_moments` takes names of fields, got {moments!r}; for a state without "
            "moments, write @declare_moments()."
        )
    if isinstance(inner_states, str):
        raise TypeError(f"`inner_states` must be a tuple of names, got {inner_states!r}.")

    def declare(state_type: StateType) -> StateType:
        known = _field_names(state_type)
        if known is None:
            raise TypeError(f"The state must be a NamedTuple or a dataclass, got {state_type!r}.")
        for name in (*moments, *inner_states):
            if name not in known:
                raise ValueError(
                    f"`{name}` is not a field of {state_type.__name__}, whose fields are: "
                    f"{', '.join(known) or 'none'}."
                )
        _declared[state_type] = Fields(moments, inner_states)
        return state_type

    return declare


def find(sync_moments: str, state: optax.OptState) -> tuple[Any, ...]:
    """The moments in a state, each as a separate tree; with `"keep"`, an empty tuple.

    They carry no field names, so that `optax.tree.get(opt_state, "mu")` finds only the inner
    optimizer's moments even when a copy of them is stored.
    """
    found: list[Any] = []
    if sync_moments != KEEP:
        _map_moments(found.append, state, sync_moments)
    return tuple(found)


def at_cycle_start(
    sync_moments: str, starts: ArrayLike, state: optax.OptState, start: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The moments at the start of the cycle: if it starts now, those in `state` itself."""
    wanted = find(sync_moments, state) if sync_moments == PULLBACK else ()
    structures: list[Any] = [jax.tree.structure(wanted), jax.tree.structure(start)]
    if structures[0] != structures[1]:
        raise ValueError(
            f"`opt_state` was made with another `sync_moments` or for other params: this "
            f"transformation has `sync_moments` = {sync_moments!r}. Make the state with its `init`."
        )
    return tuple(
        jax.tree.map(lambda now, old: numerics.select(starts, now, old), *trees)
        for trees in zip(wanted, start, strict=True)
    )


def at_sync(
    sync_moments: str,
    sync: ArrayLike,
    state: optax.OptState,
    initial: Callable[[], optax.OptState],
    start: tuple[Any, ...],
    alpha: ArrayLike,
) -> optax.OptState:
    """The state, with its moments reset or pulled back if `sync` is true."""

    def reset(now: Any, first: Any) -> Any:
        return numerics.select(sync, numerics.shard_alike(first, now), now)

    def pullback(now: Any, past: Any) -> Any:
        if not numerics.is_inexact(now):
            return now
        past = numerics.widen(past)
        pulled = past + alpha * (numerics.widen(now) - past)
        pulled = numerics.at_limit(alpha == 1, numerics.widen(now), pulled)
        return numerics.select(sync, pulled, now)

    if sync_moments == KEEP:
        return state
    now = find(sync_moments, state)
    if sync_moments == RESET:
        new = jax.tree.map(reset, now, find(sync_moments, initial()))
    else:
        new = jax.tree.map(pullback, now, start)
    replacement = iter(new)
    return _map_moments(lambda _: next(replacement), state, sync_moments)


def forget_evaluations(moved: ArrayLike, state: optax.OptState) -> optax.OptState:
    """Discards the loss that a line search has stored, if the params have moved since.

    The stored value becomes infinite, which makes `optax.value_and_grad_from_state` evaluate
    the loss again.
    """

    def forget(node: Any) -> Any:
        if not _is_line_search(node):
            return node
        value = jnp.asarray(node.value)
        return node._replace(value=numerics.select(moved, jnp.full_like(value, jnp.inf), value))

    return jax.tree.map(forget, state, is_leaf=_is_line_search)


def has_line_search(state: optax.OptState) -> bool:
    """Whether a state contains the state of a line search."""
    return any(map(_is_line_search, jax.tree.leaves(state, is_leaf=_is_line_search)))


def _is_line_search(node: Any) -> bool:
    return isinstance(node, LINE_SEARCHES)


def _map_moments(f: Callable[[Any], Any], state: Any, sync_moments: str) -> Any:
    """Applies f to every tree of moments in a state."""

    def inside(node: Any) -> Any:
        return _map_moments(f, node, sync_moments)

    if isinstance(state, dict):
        # JAX's order of the keys, which survives copies and compiled functions.
        keys = list(state) if isinstance(state, collections.OrderedDict) else sorted(state)
        changed = copy.copy(state)
        changed.update((key, inside(state[key])) for key in keys)
        return changed
    if type(state) in (tuple, list):
        return type(state)(map(inside, state))
    fields = _fields_of(type(state))
    if fields is None:
        if jax.tree.leaves(state):
            raise ValueError(_undeclared(type(state), sync_moments))
        return state
    new = {name: f(getattr(state, name)) for name in fields.moments if hasattr(state, name)}
    new |= {name: inside(getattr(state, name)) for name in fields.inner_states}
    return (
        state._replace(**new) if hasattr(state, "_replace") else dataclasses.replace(state, **new)
    )


def _undeclared(state_type: type, sync_moments: str) -> str:
    """The error message for a state whose moments are not declared."""
    if _field_names(state_type) is None:
        what = f"a bare {state_type.__name__} is not declared: put it into a NamedTuple decorated"
    else:
        what = f"{state_type.__name__} is not declared: decorate it"
    return (
        f"`sync_moments` = {sync_moments!r} must know which parts of the inner optimizer's state "
        f"are moments, but {what} with `slrla_jax.declare_moments` and name the fields that are."
    )


def _fields_of(state_type: type) -> Fields | None:
    """The declaration of a class, by its user or in this module."""
    if state_type in _declared:
        return _declared[state_type]
    is_optax = state_type.__module__.partition(".")[0] == "optax"
    return OPTAX_STATES.get(state_type.__name__) if is_optax else None


def _field_names(state_type: type) -> tuple[str, ...] | None:
    """The fields of a NamedTuple or a dataclass, or None for any other class."""
    if issubclass(state_type, tuple) and hasattr(state_type, "_fields"):
        return tuple(state_type._fields)
    if dataclasses.is_dataclass(state_type):
        return tuple(field.name for field in dataclasses.fields(state_type))
    return None
