"""What the transforms accept as arguments: numbers made schedules, and checks.

A value known only inside a compiled program (a tracer, as
`optax.inject_hyperparams` passes it) cannot be looked at and is taken as it is;
everything else is checked when the transform is built.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

Scalar = float | jax.Array
Schedule = Callable[[Any], Any]
ScalarOrSchedule = Scalar | Schedule


def as_schedule(value: ScalarOrSchedule) -> Schedule:
    """The value itself where it is a schedule, else the constant schedule of it."""
    if callable(value):
        return value
    return lambda count: value


def is_static(value: Any) -> bool:
    """Whether a value is a plain number, the same in eager and in compiled code.

    A JAX array is not: `optax.inject_hyperparams` hands one argument over as an
    array outside a compiled program and as a tracer inside.
    """
    return isinstance(value, (int, float, np.number))


def is_sequence(value: Any) -> TypeGuard[Sequence[Scalar]]:
    """Whether a value lists one entry per stage."""
    if isinstance(value, (np.ndarray, jax.Array)):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_number(name: str, value: Any, holds: Callable[[Any], Any], wanted: str) -> None:
    """Raises unless `holds(value)`; schedules and tracers pass unseen."""
    if callable(value) or isinstance(value, jax.core.Tracer):
        return
    array = np.asarray(value)
    if array.ndim or not np.issubdtype(array.dtype, np.number) or not holds(array):
        raise ValueError(f"`{name}` must be {wanted}, got {value!r}.")


def check_period(name: str, value: Any) -> None:
    """Raises unless a number of steps: whole and at least 1."""
    check_number(name, value, lambda k: 1 <= k < np.inf and k == np.floor(k), "a whole number >= 1")


def check_step_size(name: str, value: Any) -> None:
    """Raises unless a slow step size: in (0, 1]."""
    check_number(name, value, lambda alpha: 0 < alpha <= 1, "in (0, 1]")


def check_beta(name: str, value: Any) -> None:
    """Raises unless a strength of the regulariser: finite and not negative."""
    check_number(name, value, lambda beta: 0 <= beta < np.inf, "finite and >= 0")


def check_no_schedule(name: str, value: Any) -> None:
    """Raises where only a number will do."""
    if callable(value):
        raise ValueError(f"`{name}` must be a number, got the function {value!r}.")


def check_length(name: str, value: Any) -> None:
    """Raises unless a number of steps that is known before training."""
    check_no_schedule(name, value)
    check_period(name, value)


def check_lengths(name: str, values: Sequence[Any]) -> None:
    """Raises unless the lengths of one stage or more, in all what an int32 can count."""
    check_some(name, values)
    for q, value in enumerate(values):
        check_length(f"{name}[{q}]", value)
    known = [int(value) for value in values if not isinstance(value, jax.core.Tracer)]
    if sum(known) > np.iinfo(np.int32).max:
        raise ValueError(f"`{name}` must sum to less than 2**31 steps, got {values!r}.")


def check_some(name: str, values: Sequence[Any]) -> None:
    """Raises unless a list with an entry."""
    if not is_sequence(values) or len(values) == 0:
        raise ValueError(f"`{name}` must be a list with at least one entry, got {values!r}.")


def check_same_length(**lists: Sequence[Any]) -> None:
    """Raises unless the named lists are equally long."""
    if len({len(values) for values in lists.values()}) > 1:
        named = ", ".join(f"`{name}` = {values!r}" for name, values in lists.items())
        raise ValueError(f"These must have one entry each per stage or layer, got {named}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_dtype(name: str, dtype: DTypeLike | None) -> None:
    """Raises unless None or a floating dtype that JAX is set up to hold."""
    if dtype is None:
        return
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"`{name}` must be a floating dtype or None, got {dtype!r}.")
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(f"`{name}` needs jax_enable_x64 to be on, got {dtype!r}.")


def check_wide_enough(name: str, dtype: DTypeLike | None, params: optax.Params) -> None:
    """Raises where a copy in `dtype` would lose bits of a floating or complex param."""
    if dtype is None:
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        have = jnp.result_type(leaf)
        if not jnp.issubdtype(have, jnp.inexact):
            continue
        together = jnp.finfo(jnp.promote_types(dtype, have))  # type: ignore[no-untyped-call]
        if together.dtype != jnp.dtype(dtype):
            raise ValueError(
                f"`{name}` must be at least as wide as the params, got "
                f"{jnp.dtype(dtype).name} for params{jax.tree_util.keystr(path)} of {have}."
            )


def check_params(transform: str, params: optax.Params | None) -> None:
    """Raises where `update` was called without the params."""
    if params is None:
        raise ValueError(
            f"`params` must be passed to `update(updates, state, params)` of {transform}, got None."
        )
