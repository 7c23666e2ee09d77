r"""The mean of pseudo-gradients that replicas send each other in few bits.

What the rounding Q takes away is not lost: each replica keeps it as its *residual* e, and adds
it to what it sends next. The mean is taken in two phases, so that a replica sends as much as
in an all-reduce and not R times its own numbers. Every array is cut into R chunks c, and
replica c averages chunk c:

.. math::
    m^{(r)} &= s^{(r)} + e^{(r)} \\
    a_c &= \frac{1}{R} \Bigl( m_c^{(c)} + \sum_{r ≠ c} Q(m_c^{(r)}) \Bigr) \\
    s_c &= Q(a_c) \\
    e_c^{(r)} &← m_c^{(r)} - Q(m_c^{(r)}), \quad r ≠ c \\
    e_c^{(c)} &← R \, (a_c - s_c).

All replicas compute s from the same bits. What is not in it is in the residuals, whose mean
over the replicas is what the mean of all m is more than s.

References:
  Seide, Fu, Droppo, Li and Yu, `1-Bit Stochastic Gradient Descent and its Application to
  Data-Parallel Distributed Training of Speech DNNs
  <https://www.isca-archive.org/interspeech_2014/seide14_interspeech.html>`_, 2014: error
  feedback.

  Karimireddy, Rebjock, Stich and Jaggi, `Error Feedback Fixes SignSGD and other Gradient
  Compression Schemes <https://arxiv.org/abs/1901.09847>`_, 2019: why it converges.

  Tang et al., `1-bit Adam: Communication Efficient Large-Scale Training with Adam's
  Convergence Speed <https://arxiv.org/abs/2102.02888>`_, 2021: the two phases.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from slrla_jax import _numerics as numerics

DTYPES = ("bfloat16", "int8")


def check_dtype(name: str, dtype: DTypeLike | None, axis_name: Any) -> None:
    """Raises unless the dtype is None, or one in which replicas along an axis can send."""
    if dtype is None:
        return
    try:
        is_known = jnp.dtype(dtype).name in DTYPES
    except TypeError:
        is_known = False
    if not is_known:
        raise ValueError(f"`{name}` must be 'bfloat16', 'int8' or None, got {dtype!r}.")
    if axis_name is None:
        raise ValueError(
            f"`{name}` = {dtype!r} needs replicas, because nothing else is sent: `axis_name` "
            "must be the name of their axis, got None."
        )


def check_residual(residual: Any, params: optax.Params, dtype: DTypeLike | None) -> None:
    """Raises unless a state has a residual for each param that is sent, in its shape."""
    leaves = jax.tree_util.tree_leaves_with_path
    shapes = {path: jnp.shape(e) for path, e in leaves(residual)}
    for path, p in leaves(params):
        is_sent = dtype is not None and numerics.is_inexact(p)
        wanted = f"one of shape {jnp.shape(p)}" if is_sent else "none"
        held = f"one of shape {shapes[path]}" if path in shapes else "none"
        if held != wanted:
            raise ValueError(
                f"`opt_state` was made with another `pseudo_gradient_dtype` or for other params: "
                f"with {dtype!r} it needs {wanted} as the residual of "
                f"params{jax.tree_util.keystr(path)}, it holds {held}."
            )


def zero_residual(params: optax.Params, slow_dtype: DTypeLike | None) -> Any:
    """A residual of 0 for slow weights in `slow_dtype`; None for integer params."""

    def leaf(p: Any) -> Any:
        if not numerics.is_inexact(p):
            return None
        theta = numerics.widen(numerics.copy(p, slow_dtype))
        return numerics.shard_alike(jnp.zeros_like(theta), p)

    return jax.tree.map(leaf, params)


def averaged(
    tree: optax.Updates,
    residual: optax.Params,
    updates: optax.Updates,
    axis_name: Any,
    dtype: DTypeLike,
) -> tuple[optax.Updates, optax.Params]:
    """The mean s over the replicas, and the new residual e.

    Args:
      tree: s⁽ʳ⁾, this replica's own.
      residual: e⁽ʳ⁾, this replica's own.
      updates: the updates; a leaf without an update, and an integer leaf, is left as it is.
      axis_name: the name of the mapped axis of the replicas, or a tuple of names.
      dtype: what is sent, one of `DTYPES`.

    Returns:
      The mean in the dtypes of `tree`, and the residual in its own.
    """

    def leaf(s: jax.Array, e: Any, u: Any) -> Any:
        return (s, e) if e is None or u is None else _mean_of_leaf(s, e, axis_name, dtype)

    pairs = jax.tree.map(leaf, tree, residual, updates)
    means, residuals = (jax.tree.map(lambda _, pair, at=at: pair[at], tree, pairs) for at in (0, 1))
    return means, residuals


def _mean_of_leaf(s: jax.Array, e: jax.Array, axis_name: Any, dtype: DTypeLike) -> Any:
    if jnp.iscomplexobj(s):
        s, e = (jnp.stack([jnp.real(x), jnp.imag(x)]) for x in (s, e))
        return tuple(jax.lax.complex(*x) for x in _mean_of_leaf(s, e, axis_name, dtype))

    replicas = jax.lax.psum(1, axis_name)  # type: ignore[no-untyped-call]
    m = numerics.widen(s) + e
    if replicas == 1 or m.size == 0:  # Nothing is sent.
        mean = jax.lax.pmean(m, axis_name)  # type: ignore[no-untyped-call]
        mean = numerics.rounded(mean, s.dtype)
        missing = m - mean
    else:
        m = _split(m, replicas)
        is_own = jnp.arange(replicas) == jax.lax.axis_index(axis_name)
        is_own = jnp.reshape(is_own, (replicas,) + (1,) * (m.ndim - 1))
        sent = _encoded(m, dtype)
        arrived = jnp.where(is_own, m, _decoded(_exchanged(sent, axis_name)))
        a = jnp.mean(arrived, axis=0, keepdims=True)
        # To the dtype of s before a is compared with it, so that the residual has that rounding.
        mean = numerics.rounded(_decoded(_gathered(_encoded(a, dtype), axis_name)), s.dtype)
        missing = jnp.where(is_own, replicas * (a - mean), m - _decoded(sent))
        mean, missing = (_joined(x, s.shape) for x in (mean, missing))
    # An infinity or NaN arrives now, and must not return at every later sync.
    missing = jnp.where(jnp.isfinite(missing), missing, 0)
    return numerics.like(mean, s), numerics.like(missing, e)


# Rounding


def _encoded(x: jax.Array, dtype: DTypeLike) -> tuple[jax.Array, ...]:
    """What is sent of chunks, (R, …): bits of bfloat16, or int8 and a scale for each chunk.

    As bits, because XLA may send bfloat16 as float32 (and does on CPUs). An infinity or NaN
    is in the scale of its chunk, of which nothing finite arrives.
    """
    if jnp.dtype(dtype) == jnp.bfloat16:
        rounded = numerics.rounded(x, jnp.bfloat16).astype(jnp.bfloat16)
        return (jax.lax.bitcast_convert_type(rounded, jnp.uint16),)
    largest = jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), keepdims=True)
    scale = largest / 127
    # A scale of 0, or too small to divide by, sends 0, and leaves all of x to the residual.
    tiny = jnp.finfo(x.dtype).tiny  # type: ignore[no-untyped-call]
    whole = jnp.round(x / jnp.where(scale < tiny, 1, scale))
    return whole.astype(jnp.int8), scale


def _decoded(sent: tuple[jax.Array, ...]) -> jax.Array:
    """The numbers that these stand for."""
    if len(sent) == 1:
        return jax.lax.bitcast_convert_type(sent[0], jnp.bfloat16).astype(jnp.float32)
    whole, scale = sent
    return whole.astype(scale.dtype) * scale


# Chunks


def _split(x: jax.Array, chunks: int) -> jax.Array:
    """Chunks (R, …), each of every R-th entry along a dimension; padded if R divides none.

    Entries that are neighbours in a dimension may be on different devices of one replica. With
    every R-th of them, each device has a part of each chunk.
    """
    d = _divided(x.shape, chunks)
    if d is None:
        x, d = jnp.pad(jnp.ravel(x), (0, -x.size % chunks)), 0
    x = jnp.reshape(x, (*x.shape[:d], x.shape[d] // chunks, chunks, *x.shape[d + 1 :]))
    return jnp.moveaxis(x, d + 1, 0)


def _joined(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The array of this shape from its chunks."""
    d = _divided(shape, len(x))
    if d is None:
        return jnp.reshape(jnp.ravel(jnp.moveaxis(x, 0, 1))[: np.prod(shape, dtype=int)], shape)
    return jnp.reshape(jnp.moveaxis(x, 0, d + 1), shape)


def _divided(shape: tuple[int, ...], chunks: int) -> int | None:
    """The largest dimension that a number of chunks divides, or None."""
    sizes = [n if n % chunks == 0 else 0 for n in shape]
    return int(np.argmax(sizes)) if any(sizes) else None


# Sending


def _exchanged(sent: Any, axis_name: Any) -> Any:
    """Sends chunk r to replica r, which receives its chunk of every replica in turn, (R, …)."""
    sent = jax.tree.map(_placed, sent)
    arrived = jax.lax.all_to_all(sent, axis_name, 0, 0, tiled=True)  # type: ignore[no-untyped-call]
    return jax.tree.map(_placed, arrived)


def _gathered(sent: Any, axis_name: Any) -> Any:
    """Sends one chunk, (1, …), to all replicas, which receive those of all, (R, …)."""
    # One axis at a time, the last one first, because vmap gathers along one only.
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)

    def leaf(x: jax.Array) -> jax.Array:
        for name in reversed(names):
            x = jax.lax.all_gather(x, name, tiled=True, **_same_on_all(x))
        return _placed(x, None)

    return jax.tree.map(leaf, sent)


def _same_on_all(x: jax.Array) -> dict[str, Any]:
    """Has the type of what is gathered say that it is the same on all replicas, for `shard_map`.

    Versions of jax before 0.9 cannot say so.
    """
    if "to" not in inspect.signature(jax.lax.all_gather).parameters:
        return {}
    kind: Any = jax.typeof(x)
    differs = kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying
    return {"to": "invarying"} if differs else {}


def _placed(x: jax.Array, chunks: Any = PartitionSpec.UNCONSTRAINED) -> jax.Array:
    """Has the compiler send an array as it is, where one program is compiled for all replicas.

    Under vmap an exchange is a transposition and a gathering is nothing at all, and it is the
    compiler that decides when a device needs what another one has. It is to be here, and not
    once these few bits have become float32 again.
    """
    if not hasattr(jax.sharding, "get_abstract_mesh"):  # a version of jax without Explicit axes
        return x
    if jax.sharding.AxisType.Auto not in jax.sharding.get_abstract_mesh().axis_types:
        return x
    free = PartitionSpec.UNCONSTRAINED
    place: Any = PartitionSpec(chunks, *[free] * (x.ndim - 1))  # type: ignore[no-untyped-call]
    placed: jax.Array = jax.lax.with_sharding_constraint(x, place)  # type: ignore[no-untyped-call]
    return placed
