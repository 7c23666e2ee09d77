"""Helpers for the contract tests: selecting rows of the table and running them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest
from transforms_table import (
    STEPS,
    TABLE,
    Row,
    Run,
    evaluated,
    gradients,
    run_row,
    same,
)


def rows(holds: Callable[[Row], bool] = lambda row: True) -> Any:
    """Parametrises a test with the rows of the table for which `holds(row)` is true."""
    chosen = [row for row in TABLE if holds(row)]
    return pytest.mark.parametrize("row", chosen, ids=[row.name for row in chosen])


every_row = rows()
rows_with_inner = rows(lambda row: row.has_inner)


def by_hand(
    row: Row,
    tx: Any,
    params: Any,
    grads: Callable[[Any, Any], Any] = gradients,
    observe: Callable[[Any, Any], Any] | None = None,
) -> Run:
    """Like `run_row`, but without compilation, in a Python loop of updates."""
    tx, observe = optax.with_extra_args_support(tx), observe or evaluated(row)
    state, path, seen = tx.init(params), [], []
    for i in range(STEPS):
        updates, state = tx.update(grads(params, i), state, params, **row.extra(params, i))
        params = optax.apply_updates(params, updates)
        path.append(params)
        seen.append(observe(state, params))
    return Run(stacked(path), stacked(seen), state)


def stacked(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *trees)


def after(tree: Any, i: int) -> Any:
    """The entry of a run's path after step i."""
    return jax.tree.map(lambda path: path[i], tree)


def avals(tree: Any) -> list[Any]:
    return [(x.shape, x.dtype, x.weak_type) for x in map(jax.typeof, jax.tree.leaves(tree))]


@functools.cache
def _with_value(name: str, value: float | None) -> Run:
    row = next(row for row in TABLE if row.name == name)
    kwargs = {} if value is None else {row.hyperparameter: value}
    return run_row(row, row.inject(same, **kwargs), steps=12)


def with_value(row: Row, value: float | None = None) -> Run:
    """A run with a given value of the row's hyperparameter, or with its default."""
    return _with_value(row.name, value)


# An injected hyperparameter is a float32 array; a plain number is rounded later.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
