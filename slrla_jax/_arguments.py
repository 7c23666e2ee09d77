"""Conversion and validation of the transformations' arguments.

A value known only inside a compiled program (a tracer, as passed by
`optax.inject_hyperparams`) cannot be inspected and is accepted as it is; every other
value is checked when the transformation is built.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from slrla_jax import _numerics as numerics

Scalar = float | jax.Array
Schedule = Callable[[Any], Any]
ScalarOrSchedule = Scalar | Schedule


def as_schedule(value: ScalarOrSchedule | None) -> Schedule:
    """Returns a schedule unchanged, and a number as a constant schedule.

    That of None, which stands for manual syncs, must not be evaluated.
    """
    if callable(value):
        return value
    return lambda count: as_number(value)  # type: ignore[arg-type]


def as_number(value: Scalar) -> Any:
    """Returns a number in the dtype that computations use.

    `optax.inject_hyperparams` converts its numbers to arrays of the params' dtype. Narrow
    ones are widened to float32, so that step counts compared with them are not rounded.
    """
    return value if is_static(value) else numerics.widen(value)


def as_known(value: Any) -> Any:
    """Converts a concrete JAX array that serves as a list to a NumPy array.

    Inside a compiled function, indexing the JAX array would give tracers.
    """
    is_array = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    return np.asarray(value) if is_array and value.ndim else value


def as_plain(value: Any) -> Any:
    """Converts a NumPy scalar to a Python one, which does not promote the dtypes it meets."""
    return value.item() if isinstance(value, np.number) else value


def is_static(value: Any) -> bool:
    """Whether a value is a plain number, identical in eager and in compiled code.

    A JAX array is not: `optax.inject_hyperparams` passes the same argument as an array
    outside a compiled program and as a tracer inside one.
    """
    return isinstance(value, (int, float, np.number))


def is_zero(value: Any) -> bool:
    """Whether a value is a plain 0, so that the term it multiplies can be left out."""
    return is_static(value) and bool(value == 0)


def is_sequence(value: Any) -> TypeGuard[Sequence[Scalar]]:
    """Whether a value is a list, with one entry per stage or layer."""
    if isinstance(value, (np.ndarray, jax.Array)):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


# Numbers


def check_number(name: str, value: Any, holds: Callable[[float], bool], wanted: str) -> None:
    """Raises unless the value is a real number that satisfies `holds(value)`.

    Schedules and tracers cannot be inspected, and are accepted.
    """
    if callable(value) or isinstance(value, jax.core.Tracer):
        return
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list of lists
        array = np.asarray(None)
    real = any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer))
    if array.ndim or not real or not holds(float(array.astype(np.float64))):
        hint = ""
        if isinstance(value, jax.Array) and not array.ndim and numerics.is_narrow(value):
            hint = "; `hyperparam_dtype` of `optax.inject_hyperparams` avoids this rounding"
        raise ValueError(f"`{name}` must be {wanted}, got {value!r}{hint}.")


def check_period(name: str, value: Any) -> None:
    """Raises unless the value is a number of steps: a whole number of at least 1."""
    most = np.iinfo(np.int32).max
    wanted = "a whole number >= 1 that an int32 holds"
    check_number(name, value, lambda k: 1 <= k <= most and k == np.floor(k), wanted)


def check_step_size(name: str, value: Any) -> None:
    """Raises unless the value is a valid slow step size, in (0, 1]."""
    check_number(name, value, lambda alpha: 0 < alpha <= 1, "in (0, 1]")


def check_non_negative(name: str, value: Any) -> None:
    """Raises unless the value is finite and not negative."""
    check_number(name, value, lambda x: 0 <= x < np.inf, "finite and >= 0")


def check_positive(name: str, value: Any) -> None:
    """Raises unless the value is finite and positive."""
    check_number(name, value, lambda x: 0 < x < np.inf, "finite and positive")


def check_finite(name: str, value: Any) -> None:
    """Raises unless the value is finite."""
    check_number(name, value, lambda x: bool(np.isfinite(x)), "finite")


def check_decay(name: str, value: Any) -> None:
    """Raises unless the value is a valid decay of a moving average, in [0, 1)."""
    check_number(name, value, lambda b: 0 <= b < 1, "in [0, 1)")


def check_no_schedule(**values: Any) -> None:
    """Raises if one of the named values is a function, because these must be numbers."""
    for name, value in values.items():
        if callable(value):
            raise ValueError(f"`{name}` must be a number, got the function {value!r}.")


# Lists with one entry per stage or layer


def check_length(name: str, value: Any) -> None:
    """Raises unless the value is a number of steps and not a schedule."""
    check_no_schedule(**{name: value})
    check_period(name, value)


def check_lengths(name: str, values: Sequence[Any]) -> None:
    """Raises unless every value is a stage length and their sum fits into an int32."""
    check_nonempty(name, values)
    for q, value in enumerate(values):
        check_length(f"{name}[{q}]", value)
    known = [int(value) for value in values if not isinstance(value, jax.core.Tracer)]
    if sum(known) > np.iinfo(np.int32).max:
        raise ValueError(f"`{name}` must sum to less than 2**31 steps, got {values!r}.")


def check_nonempty(name: str, values: Sequence[Any]) -> None:
    """Raises unless the value is a non-empty list."""
    if not is_sequence(values) or len(values) == 0:
        raise ValueError(f"`{name}` must be a list with at least one entry, got {values!r}.")


def check_same_length(**lists: Sequence[Any]) -> None:
    """Raises unless the named lists have the same length."""
    if len({len(values) for values in lists.values()}) > 1:
        named = ", ".join(f"`{name}` = {values!r}" for name, values in lists.items())
        raise ValueError(f"These lists must have one entry per stage or layer each, got {named}.")


# Other settings


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_transformation(name: str, value: Any) -> None:
    """Raises unless the value is an optax transformation."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        call = f"; call {value.__name__} with its settings" if hasattr(value, "__name__") else ""
        raise ValueError(
            f"`{name}` must be an optax transformation, such as optax.sgd(0.1), "
            f"got {value!r}{call}."
        )


def with_extra_args_support(tx: Any) -> optax.GradientTransformationExtraArgs:
    """Like optax's function of this name, but also forwards them through `optax.MultiSteps`."""
    if isinstance(tx, optax.MultiSteps):
        return optax.GradientTransformationExtraArgs(tx.init, tx.update)
    return optax.with_extra_args_support(tx)


def check_bool(name: str, value: Any) -> None:
    """Raises unless the value is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False, got {value!r}.")


def check_axis_name(name: str, value: Any) -> None:
    """Raises unless the value is the name of a mapped axis, or a tuple of such names."""
    names = value if isinstance(value, tuple) and value else (value,)
    if not all(isinstance(one, str) for one in names):
        raise ValueError(
            f"`{name}` must be the name of a mapped axis, or a tuple of names, got {value!r}."
        )


def check_dtype(name: str, dtype: DTypeLike | None) -> None:
    """Raises unless the value is None or a floating dtype that JAX is configured to use."""
    if dtype is None:
        return
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"`{name}` must be a floating dtype or None, got {dtype!r}.")
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(f"`{name}` requires jax_enable_x64, got {dtype!r}.")


def check_wide_enough(name: str, dtype: DTypeLike | None, params: optax.Params) -> None:
    """Raises if casting a floating or complex param to `dtype` would lose bits."""
    if dtype is None:
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        have = jnp.result_type(leaf)
        if not jnp.issubdtype(have, jnp.inexact):
            continue
        if not _is_as_wide(dtype, have):
            raise ValueError(
                f"`{name}` must be at least as wide as the params, got "
                f"{jnp.dtype(dtype).name} for params{jax.tree_util.keystr(path)} of {have}."
            )


def _is_as_wide(dtype: DTypeLike, other: DTypeLike) -> bool:
    """Whether a floating dtype represents every value of another floating or complex dtype."""
    have, want = (jnp.finfo(x) for x in (dtype, other))  # type: ignore[no-untyped-call]
    return bool(have.nmant >= want.nmant and have.nexp >= want.nexp)


# Arguments of `update`


def check_params(transform: str, params: optax.Params | None) -> None:
    """Raises if `update` was called without the params."""
    if params is None:
        raise ValueError(
            f"`params` must be passed to `update(updates, state, params)` of {transform}, got None."
        )


def check_sync(sync: Any, layers: int, *, is_needed: bool) -> None:
    """Raises unless `sync` is None or says, when the program is compiled, which layers sync."""
    if layers == 1:
        wanted, is_valid = "True or False", isinstance(sync, (bool, np.bool_))
    else:
        wanted = f"the number of layers that sync, innermost first, from 0 to {layers}"
        is_whole = isinstance(sync, (int, np.integer)) and sync is not True
        is_valid = is_whole and 0 <= sync <= layers
    if sync is None and is_needed:
        raise ValueError(
            "`sync` must be passed to `update(grads, state, params, sync=…)` if the sync period "
            f"is None, got None: it must be {wanted}."
        )
    if sync is not None and not is_valid:
        raise ValueError(
            f"`sync` must be {wanted}, and known when the program is compiled (a static argument "
            f"of `jax.jit`), got {sync!r}."
        )


def check_state(state: Any, state_type: type) -> None:
    """Raises if `update` was called with the state of another transformation."""
    if not isinstance(state, state_type):
        raise ValueError(
            f"`state` must be the {state_type.__name__} returned by `init`, got a "
            f"{type(state).__name__}."
        )


def check_made_for(copy_in_state: optax.Params, updates: optax.Updates) -> None:
    """Raises if a param has an update but the state has no copy of it in the same shape."""

    def leaf(path: Any, update: Any, stored: Any) -> None:
        if update is None or jnp.shape(update) == getattr(stored, "shape", None):
            return
        have = f"a copy of shape {stored.shape}" if hasattr(stored, "shape") else "no copy"
        raise _OtherParams(
            f" for params{jax.tree_util.keystr(path)}, whose update has shape "
            f"{jnp.shape(update)}, it holds {have}."
        )

    try:
        jax.tree_util.tree_map_with_path(leaf, updates, copy_in_state, is_leaf=lambda x: x is None)
    except (ValueError, TypeError) as error:
        detail = error if isinstance(error, _OtherParams) else f" {error}"
        raise ValueError(
            f"`opt_state` was made for other params:{detail} Call `init` again after changing "
            "which params are trained."
        ) from None


class _OtherParams(ValueError):
    """Says in which way a param differs."""


def check_params_of(copy_in_state: optax.Params, params: optax.Params) -> None:
    """Raises if a param differs in shape from its copy in the state, or has a wider dtype."""

    def leaf(path: Any, stored: jax.Array, p: Any) -> None:
        have = jnp.result_type(p)
        fits = jnp.shape(p) == stored.shape and (
            not jnp.issubdtype(have, jnp.inexact) or _is_as_wide(stored.dtype, have)
        )
        if not fits:
            raise ValueError(
                f"`opt_state` was made for other params: for params{jax.tree_util.keystr(path)}, "
                f"{have} of shape {jnp.shape(p)}, it holds {stored.dtype} of shape "
                f"{stored.shape}."
            )

    jax.tree_util.tree_map_with_path(
        lambda path, stored, p: None if stored is None else leaf(path, stored, p),
        copy_in_state,
        params,
        is_leaf=lambda x: x is None,
    )
