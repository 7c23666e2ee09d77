"""Reads the slow weights out of an optimizer state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slrla_jax import _memory as memory
from slrla_jax._lookahead import LookaheadState, slow_weights
from slrla_jax._primal_averaging import PrimalAveragingState, averaged
from slrla_jax._two_loop import TwoLoopState

State = LookaheadState | PrimalAveragingState | TwoLoopState

# The path of a leaf in a tree, independent of the types of its containers.
Place = tuple[Any, ...]


def slow_params(opt_state: optax.OptState, params: optax.Params) -> optax.Params:
    """Returns the slow weights, wherever the lookahead is within an optimizer state.

    These are the weights to evaluate at any step: θ during a cycle, and the params
    themselves between a sync and the next step. With the replicas of `diloco`, whose params
    equal θ only up to rounding then, they are θ at every step; with `primal_averaging` they
    are the average x.

    Args:
      opt_state: the state of any transformation that contains a lookahead (or a `two_loop`,
        which is meant below as well), for example inside `optax.chain`, `MultiSteps`,
        `masked`, `partition`, `inject_hyperparams` or `flatten`; the `opt_state` of a Linen
        `TrainState` or of an `nnx.Optimizer`; or a state replicated by pmap or batched by
        vmap together with the params. If lookaheads are nested, the outermost counts.
      params: the current params, that is, the fast weights.

    Returns:
      A tree with the structure and containers of `params`; leaves are in `slow_dtype` if
      that was set. Leaves outside every lookahead (masked out, or under another
      optimizer) are copies of the leaves of `params`. The result shares no buffer with
      `params` or `opt_state`, so it stays valid after a step to which they are donated.

    Raises:
      ValueError: if `opt_state` contains no lookahead, if two lookaheads that are not
        nested cover the same leaf, or if `params` is not the tree that the state was made
        for.

    Example:
      >>> import jax.numpy as jnp, optax, slrla_jax
      >>> tx = optax.chain(
      ...     optax.clip_by_global_norm(1.0), slrla_jax.lookahead(optax.adam(1e-3))
      ... )
      >>> params = {"w": jnp.ones(3)}
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"w": jnp.ones(3)}, state, params)
      >>> params = optax.apply_updates(params, updates)
      >>> print(slrla_jax.slow_params(state, params)["w"])
      [1. 1. 1.]
    """
    states = [
        node for node in jax.tree.leaves(opt_state, is_leaf=_is_lookahead) if _is_lookahead(node)
    ]
    if not states:
        raise ValueError(_nothing_found(opt_state))

    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    current = {_place(path): leaf for path, leaf in leaves}
    slow: dict[Place, Any] = {}
    for state in states:
        for place, leaf in _slow_leaves(state, current).items():
            if place in slow:
                raise ValueError(
                    "`opt_state` holds two lookaheads, neither inside the other, that both "
                    f"cover params{_name(place)}."
                )
            slow[place] = leaf
    return jax.tree.unflatten(
        treedef,
        [slow[place] if place in slow else _copy(leaf) for place, leaf in current.items()],
    )


def _slow_leaves(state: State, current: dict[Place, Any]) -> dict[Place, Any]:
    """The slow weights of one lookahead, by their paths in the params."""
    # One number and one flag for the whole state, or one per replica along leading axes. An
    # nnx.Optimizer boxes them. Without a flag, θ is stored at every step.
    (steps,) = jax.tree.leaves(state.steps_taken)

    def along(number: jax.Array, leaf: jax.Array) -> jax.Array:
        return jnp.reshape(number, steps.shape + (1,) * (leaf.ndim - steps.ndim))

    def read(theta: jax.Array, p: Any) -> Any:
        theta = memory.on_device(theta)
        if isinstance(state, PrimalAveragingState):
            (mu,) = jax.tree.leaves(state.interpolation)
            return averaged(theta, p, along(mu, theta))
        synced = jax.tree.leaves(state.synced)
        return slow_weights(along(synced[0], theta), theta, p) if synced else _copy(theta)

    averages = isinstance(state, PrimalAveragingState)
    tree = getattr(state, "inner_params" if averages else "cycle_start_params")
    stored = {_place(path): theta for path, theta in jax.tree_util.tree_leaves_with_path(tree)}
    if _is_flat(stored, current, steps.ndim):
        return _read_flat(read, stored[()], current, steps.ndim)

    slow: dict[Place, Any] = {}
    for place, theta in stored.items():
        where, p = _param_for(place, current)
        if where is None or jnp.shape(p) != theta.shape:
            have = "nothing" if where is None else f"shape {jnp.shape(p)}"
            raise ValueError(
                "`params` is not the tree that `opt_state` was made for: the state has slow "
                f"weights of shape {theta.shape} for params{_name(place)}, where it has {have}."
            )
        leaf = read(theta, p)
        if p is not current[where]:  # the real or the imaginary part
            leaf = slow.get(where, 0) + (1j * leaf if place[-1] == "imaginary" else leaf)
        slow[where] = leaf
    return slow


# Matching the tree of the state to that of the params


def _param_for(place: Place, current: dict[Place, Any]) -> tuple[Place | None, Any]:
    """Finds the param that corresponds to a path in the state; returns its path and value.

    The paths are equal but for two kinds of wrappers: Flax puts a param into a Variable,
    whose only child is called `value`, and `optax.contrib.split_real_and_imaginary` splits
    a complex leaf into two.
    """
    if place in current:
        return place, current[place]
    if (*place, "value") in current:
        return (*place, "value"), current[(*place, "value")]
    outside, inside = place[:-1], place[-1:]
    parts = {"value": lambda x: x, "real": jnp.real, "imaginary": jnp.imag}
    if outside in current and inside and inside[0] in parts:
        return outside, parts[inside[0]](current[outside])
    return None, None


def _is_flat(stored: dict[Place, Any], current: dict[Place, Any], batch_axes: int) -> bool:
    """Whether `optax.flatten` has concatenated all params into one vector."""
    if list(stored) != [()] or () in current or not current:
        return False
    sizes = [np.prod(jnp.shape(leaf)[batch_axes:], dtype=int) for leaf in current.values()]
    return bool(stored[()].shape[batch_axes:] == (sum(sizes),))


def _read_flat(
    read: Callable[[jax.Array, Any], Any],
    theta: jax.Array,
    current: dict[Place, Any],
    batch_axes: int,
) -> dict[Place, Any]:
    """The slow weights of a lookahead inside `optax.flatten`."""
    batch = theta.shape[:batch_axes]
    pieces = [jnp.reshape(jnp.asarray(leaf), (*batch, -1)) for leaf in current.values()]
    together = jnp.concatenate(pieces, axis=-1)
    ends = np.cumsum([piece.shape[-1] for piece in pieces])[:-1]
    parts = jnp.split(read(theta, together), ends, axis=-1)
    is_widened = theta.dtype != together.dtype
    return {
        place: jnp.reshape(part, jnp.shape(leaf)).astype(
            theta.dtype if is_widened else jnp.result_type(leaf)
        )
        for part, (place, leaf) in zip(parts, current.items(), strict=True)
    }


def _place(path: tuple[Any, ...]) -> Place:
    """A key path without the types of its containers."""
    return tuple(_key(entry) for entry in path)


def _key(entry: Any) -> Any:
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return entry


# Messages and copies


def _is_lookahead(node: Any) -> bool:
    return isinstance(node, State)


def _nothing_found(opt_state: Any) -> str:
    """The error message for a state without slow weights."""
    places = [_place(path) for path, _ in jax.tree_util.tree_leaves_with_path(opt_state)]
    if any({"cycle_start_params", "inner_params"} & set(place) for place in places):
        return (
            "`opt_state` has the fields of a lookahead, but in plain containers, as when a "
            "checkpoint is restored without a target: restore it with `tx.init(params)` as the "
            "target."
        )
    return (
        "`opt_state` holds no lookahead and therefore no slow weights: it must be the state of a "
        "transformation that contains a lookahead of slrla_jax, got a "
        f"{type(opt_state).__name__}."
    )


def _name(place: Place) -> str:
    return "".join(f"[{key!r}]" for key in place)


def _copy(leaf: Any) -> Any:
    """Copies an array; returns anything else unchanged."""
    if isinstance(leaf, jax.Array):
        return jnp.array(leaf, copy=True)
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf
