"""Copies of the params kept in a state: made once, in a dtype of their own."""

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike


def copy(params: optax.Params, dtype: DTypeLike | None = None) -> optax.Params:
    """Buffers of their own, so that params and state can both be donated.

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


def is_inexact(x: ArrayLike) -> bool:
    """Whether a leaf is floating or complex, so that interpolating it has a meaning."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def working(x: ArrayLike) -> jax.Array:
    """A leaf as it is computed with: half precision in float32, the rest as it is."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def sum_of_squares(tree: optax.Updates) -> jax.Array:
    """The squared norm of all leaves together."""
    squares = (jnp.sum(jnp.square(jnp.abs(working(x)))) for x in jax.tree.leaves(tree))
    return sum(squares, start=jnp.zeros(()))


def difference(end: optax.Params, start: optax.Params) -> optax.Updates:
    """The way from one tree to another, as it is computed with."""
    return jax.tree.map(lambda x, y: working(x) - working(y), end, start)


def rounded(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The array with no more precision than `dtype` has, in its own dtype.

    To cast there and back is not enough: XLA may drop the pair inside a fusion
    (xla_allow_excess_precision). What it may not drop is reduce_precision, which
    however flushes subnormals, and float16 has those in the range of weights.
    """
    if x.dtype == dtype:
        return x
    cast = x.astype(dtype).astype(x.dtype)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return cast
    info = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    reduced = jax.lax.reduce_precision(x, info.nexp, info.nmant)
    return jnp.where(jnp.abs(x) < info.tiny, cast, reduced)
