"""Arithmetic on trees of params.

Half-precision values are computed in float32 and rounded once. A selection keeps the dtype
and sharding of the old value. Where a limit is taken exactly, its derivative is still that
of the general formula.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike

# Trees


def tree_map(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Like `jax.tree.map`, but a None in the first tree stays None and is not descended into.

    Part of the params may therefore have no gradient, and a model may contain functions.
    """
    return jax.tree.map(
        lambda x, *others: None if x is None else f(x, *others),
        tree,
        *rest,
        is_leaf=lambda x: x is None,
    )


def copy(params: optax.Params, dtype: DTypeLike | None = None) -> optax.Params:
    """Copies the params to new buffers, so that params and state can both be donated.

    Floating leaves are cast to `dtype`, and complex leaves to its complex counterpart.
    """

    def leaf(x: ArrayLike) -> jax.Array:
        have = jnp.result_type(x)
        if dtype is not None and jnp.issubdtype(have, jnp.complexfloating):
            return jnp.array(x, jnp.promote_types(dtype, jnp.complex64), copy=True)
        if dtype is not None and jnp.issubdtype(have, jnp.floating):
            return jnp.array(x, dtype, copy=True)
        return jnp.array(x, have, copy=True)

    return jax.tree.map(leaf, params)


def add(params: optax.Params, updates: optax.Updates) -> optax.Params:
    """Like `optax.apply_updates`, but leaves without an update stay unchanged."""

    def leaf(u: Any, p: Any) -> Any:
        return p if u is None else jnp.asarray(p + u).astype(jnp.result_type(p))

    return jax.tree.map(leaf, updates, params, is_leaf=lambda x: x is None)


def landed(params: optax.Params, updates: optax.Updates) -> optax.Params:
    """The params after their updates; None for a leaf without an update."""
    return tree_map(lambda u, p: add(p, u), updates, params)


def sum_of_squares(tree: optax.Updates) -> jax.Array:
    """The squared norm over all leaves together."""

    def squares(x: jax.Array) -> jax.Array:
        return jnp.real(x * jnp.conj(x)) if jnp.iscomplexobj(x) else x * x

    return sum((jnp.sum(squares(widen(x))) for x in jax.tree.leaves(tree)), start=jnp.zeros(()))


# Leaves


def is_inexact(x: ArrayLike) -> bool:
    """Whether a leaf is floating or complex, so that it can be interpolated."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def is_narrow(x: ArrayLike) -> bool:
    """Whether a leaf is floating and narrower than float32."""
    dtype = jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4


def widen(x: ArrayLike) -> jax.Array:
    """Casts a leaf to the dtype of computations: float32, or its own if that is wider."""
    if is_narrow(x):
        return jnp.asarray(x).astype(jnp.float32)
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def sqrt(x: jax.Array) -> jax.Array:
    """√x for x ≥ 0, with derivative 0 instead of infinity at 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def rounded(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Rounds an array to the precision of `dtype`, but keeps its own dtype.

    Casting there and back is not enough, because XLA may remove the pair of casts inside a
    fusion (xla_allow_excess_precision). It may not remove reduce_precision, but that
    flushes subnormals to zero, and the subnormals of float16 are in the range of weights.
    """
    if x.dtype == dtype:
        return x
    cast = x.astype(dtype).astype(x.dtype)
    if jnp.issubdtype(x.dtype, jnp.complexfloating) or jnp.dtype(dtype).itemsize < 2:
        return cast
    info = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    reduced = jax.lax.reduce_precision(x, info.nexp, info.nmant)
    return jnp.where(jnp.abs(x) < info.tiny, cast, reduced)


def select(condition: ArrayLike, new: ArrayLike, old: ArrayLike) -> jax.Array:
    """`new` where the condition holds, else `old`, in the dtype and sharding of `old`.

    With a condition that is known when the program is compiled, it is one of the two.
    """
    old = jnp.asarray(old)
    if isinstance(condition, bool):
        return like(new, old) if condition else old
    return jnp.where(condition, like(new, old), old)


def like(x: ArrayLike, other: jax.Array) -> jax.Array:
    """Converts an array to the dtype and sharding of another."""
    return sharded_like(jnp.asarray(x, other.dtype), other)


def at_limit(is_limit: ArrayLike, exact: jax.Array, general: jax.Array) -> jax.Array:
    """`exact` where `is_limit` holds, and `general` elsewhere.

    `exact` is the value of `general` at the limit without its rounding error. The derivative
    is always that of `general`: where α = 1 gives exactly the inner optimizer, the derivative
    with respect to α is still v − θ.
    """
    if isinstance(is_limit, (bool, np.bool_)):
        return exact if is_limit else general
    exact = sharded_like(exact, general)
    return _at_limit(is_limit, exact.astype(general.dtype), general)


@jax.custom_jvp
def _at_limit(is_limit: ArrayLike, exact: jax.Array, general: jax.Array) -> jax.Array:
    return jnp.where(is_limit, exact, general)


@_at_limit.defjvp
def _at_limit_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    return _at_limit(*primals), tangents[2]


# Shardings
#
# Where mesh axes are Explicit, the sharding of an array is part of its type. Where they are Auto,
# the compiler derives it from those of the operands. Zeros have no operands: without a hint, every
# device holds all of them.


def sharded_like(x: jax.Array, other: jax.Array) -> jax.Array:
    """Reshards an array like another where mesh axes are Explicit and operands must agree."""
    if not hasattr(jax.sharding, "reshard"):  # a version of jax without Explicit axes
        return x
    wanted = jax.typeof(other).sharding
    if wanted == jax.typeof(x).sharding:
        return x
    if jax.sharding.AxisType.Explicit not in wanted.mesh.axis_types:
        return x
    resharded: jax.Array = jax.sharding.reshard(x, wanted)  # type: ignore[no-untyped-call]
    return resharded


def shard_alike(x: jax.Array, other: jax.Array) -> jax.Array:
    """Has the compiler shard an array like another, where nothing else decides it.

    The result is a selection between the two, so that they are sharded alike. It always selects
    the first, which the compiler does not know.
    """
    if not isinstance(other, jax.core.Tracer) or jnp.shape(x) != jnp.shape(other):
        return x
    always = jax.lax.optimization_barrier(jnp.asarray(True))  # type: ignore[no-untyped-call]
    return jnp.where(always, x, other.astype(x.dtype))


def sharded_state(state: optax.OptState, params: optax.Params) -> optax.OptState:
    """A new state, in which every tree that is shaped like the params is sharded like them."""
    structure: Any = jax.tree.structure(params)

    def is_like_params(node: Any) -> bool:
        return bool(jax.tree.structure(node) == structure)

    def place(node: Any) -> Any:
        return jax.tree.map(shard_alike, node, params) if is_like_params(node) else node

    return jax.tree.map(place, state, is_leaf=is_like_params)


def sharded_updates(updates: optax.Updates, params: optax.Params) -> optax.Updates:
    """With Explicit axes, splits updates that every device holds in full like their params.

    Otherwise, what is computed from the params would be gathered to be like the updates.
    """

    def leaf(u: Any, p: Any) -> Any:
        if not hasattr(jax.sharding, "reshard") or not isinstance(u, jax.Array):
            return u
        is_split = any(axis is not None for axis in jax.typeof(u).sharding.spec)
        return u if is_split else sharded_like(u, jnp.asarray(p))

    return tree_map(leaf, updates, params)
