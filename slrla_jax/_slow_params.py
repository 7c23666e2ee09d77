"""Reading the slow weights out of an optimizer's state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from slrla_jax._lookahead import LookaheadState, cycle_slow_params

# A leaf's place in a tree, whatever containers the tree is made of.
_Place = tuple[Any, ...]


def slow_params(opt_state: optax.OptState, params: optax.Params) -> optax.Params:
    """The slow weights, wherever in an optimizer's state the lookahead sits.

    These are the weights to evaluate, at any point of the cycle: θ during a cycle,
    and the params themselves between a sync and the next step.

    Args:
      opt_state: the state of any transformation with a lookahead inside: in
        `optax.chain`, `MultiSteps`, `masked`, `partition`, `inject_hyperparams`, …; a
        Linen `TrainState.opt_state` or an `nnx.Optimizer.opt_state`; replicated by
        pmap or batched by vmap together with the params. Of nested lookaheads the
        outermost counts.
      params: the current params, that is the fast weights.

    Returns:
      A tree like `params`, in its containers; leaves are in `slow_dtype` where it was
      set. Leaves that no lookahead governs (masked out, or under another optimizer)
      are those of `params`.

    Raises:
      ValueError: if there is no lookahead in `opt_state`, if two that are not nested
        govern one leaf, or if `params` is not the tree that the state was made for.

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
    found = [
        node for node in jax.tree.leaves(opt_state, is_leaf=_is_lookahead) if _is_lookahead(node)
    ]
    if not found:
        raise ValueError("`opt_state` holds no lookahead, so there are no slow weights in it.")

    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    current = {_place(path): leaf for path, leaf in leaves}
    slow: dict[_Place, Any] = {}
    for state in found:
        for place, leaf in _governed(state, current).items():
            if place in slow:
                raise ValueError(
                    "`opt_state` holds two lookaheads, neither inside the other, for "
                    f"params{_name(place)}."
                )
            slow[place] = leaf
    return jax.tree.unflatten(treedef, [slow.get(place, leaf) for place, leaf in current.items()])


def _governed(state: LookaheadState, current: dict[_Place, Any]) -> dict[_Place, Any]:
    """The slow weights of one lookahead by place, given the current params."""
    stored = {
        _place(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.slow_params)
    }
    for place, theta in stored.items():
        if place not in current or jnp.shape(theta) != jnp.shape(current[place]):
            have = f"shape {jnp.shape(current[place])}" if place in current else "nothing"
            raise ValueError(
                "`params` is not the tree that `opt_state` was made for: the state has slow "
                f"weights of shape {theta.shape} for params{_name(place)}, where it has {have}."
            )
    # One flag for the whole state, or one per replica along leading axes. In an
    # nnx.Optimizer it is boxed.
    (synced,) = jax.tree.leaves(state.synced)
    return {
        place: cycle_slow_params(
            jnp.reshape(synced, synced.shape + (1,) * (theta.ndim - synced.ndim)),
            theta,
            current[place],
        )
        for place, theta in stored.items()
    }


def _is_lookahead(node: Any) -> bool:
    return isinstance(node, LookaheadState)


def _place(path: tuple[Any, ...]) -> _Place:
    """A key path without the kinds of its containers, nor the boxes around leaves."""
    keys = tuple(_key(entry) for entry in path)
    # Flax boxes a param in a Variable, whose one child is called `value`; inside an
    # nnx.Optimizer's `update` the same leaf stands without its box.
    return keys[:-1] if keys and path[-1] == jax.tree_util.GetAttrKey("value") else keys


def _key(entry: Any) -> Any:
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return getattr(entry, name)
    return entry


def _name(place: _Place) -> str:
    return "".join(f"[{key!r}]" for key in place)
