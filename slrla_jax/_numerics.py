"""Arithmetic on trees of params.

Half precision is computed in float32 and rounded once; a selection keeps the dtype and the
sharding of what it may replace; and a limit that is taken exactly has the derivative of
the formula that it is the limit of.
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
    """`jax.tree.map` over the leaves of the first tree; its Nones stay, whatever others have.

    So a part of the params may have no gradient, and a model may hold functions.
    """
    return jax.tree.map(
        lambda x, *others: None if x is None else f(x, *others),
        tree,
        *rest,
        is_leaf=lambda x: x is None,
    )


def copy(params: optax.Params, dtype: DTypeLike | None = None) -> optax.Params:
    """The params in buffers of their own, so that params and state can both be donated.

    Floating leaves are cast to `dtype`, complex ones to its complex counterpart.
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
    """`optax.apply_updates`, where leaves without an update stay what they are."""

    def leaf(u: Any, p: Any) -> Any:
        return p if u is None else jnp.asarray(p + u).astype(jnp.result_type(p))

    return jax.tree.map(leaf, updates, params, is_leaf=lambda x: x is None)


def sum_of_squares(tree: optax.Updates) -> jax.Array:
    """The squared norm of all leaves together."""

    def squares(x: jax.Array) -> jax.Array:
        return jnp.real(x * jnp.conj(x)) if jnp.iscomplexobj(x) else x * x

    return sum((jnp.sum(squares(widen(x))) for x in jax.tree.leaves(tree)), start=jnp.zeros(()))


# Leaves


def is_inexact(x: ArrayLike) -> bool:
    """Whether a leaf is floating or complex, so that interpolating it has a meaning."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def is_narrow(x: ArrayLike) -> bool:
    """Whether a leaf is floating with fewer bits than float32."""
    dtype = jnp.result_type(x)
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4


def widen(x: ArrayLike) -> jax.Array:
    """A leaf as it is computed with: in float32 at least."""
    if is_narrow(x):
        return jnp.asarray(x).astype(jnp.float32)
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def sqrt(x: jax.Array) -> jax.Array:
    """√x for x ≥ 0, with derivative 0 at 0 instead of infinity."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def rounded(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The array with no more precision than `dtype` has, in its own dtype.

    To cast there and back is not enough: XLA may drop the pair inside a fusion
    (xla_allow_excess_precision). What it may not drop is reduce_precision, which
    however flushes subnormals, and float16 has those in the range of weights.
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
    """`new` where the condition holds, else `old`; in the dtype and the sharding of `old`."""
    old = jnp.asarray(old)
    return jnp.where(condition, like(new, old), old)


def like(x: ArrayLike, other: jax.Array) -> jax.Array:
    """The array in another's dtype and sharding."""
    return sharded_like(jnp.asarray(x, other.dtype), other)


def sharded_like(x: jax.Array, other: jax.Array) -> jax.Array:
    """The array in another's sharding, where mesh axes are Explicit and operands must agree."""
    if not hasattr(jax.sharding, "reshard"):  # a jax from before there were such axes
        return x
    wanted = jax.typeof(other).sharding
    if wanted == jax.typeof(x).sharding:
        return x
    if jax.sharding.AxisType.Explicit not in wanted.mesh.axis_types:
        return x
    resharded: jax.Array = jax.sharding.reshard(x, wanted)  # type: ignore[no-untyped-call]
    return resharded


def at_limit(is_limit: ArrayLike, exact: jax.Array, general: jax.Array) -> jax.Array:
    """`general`, or at its limit what it is there without rounding.

    Its derivative is that of `general` at the limit as well: where α = 1 is taken to be the
    inner optimizer, the derivative with respect to α is still v − θ.
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
