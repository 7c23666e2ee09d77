"""Contracts of every transform with Flax and JAX.

Each contract is one test over `transforms_table.TABLE`. It compares with a run of the same
transform alone, or with a path that is written out.
"""

import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest
from contracts import (
    ROUNDING,
    after,
    by_hand,
    every_row,
    rows,
    stacked,
    with_value,
)
from flax import linen, nnx
from flax.training import train_state
from transforms_table import (
    STEPS,
    TABLE,
    assert_close,
    assert_same_run,
    device_params,
    evaluated,
    gradients,
    no_extra,
    plain,
    quick_jit,
    run,
    run_row,
    same,
    sgd,
)

from slrla_jax import lookahead, slow_params

# Flax.


@rows(lambda row: row.extra is no_extra)  # a TrainState forwards no extra arguments
def test_linens_train_state(row):
    model = linen.Dense(2)
    variables = model.init(jax.random.key(0), jnp.ones((1, 3)))
    state = train_state.TrainState.create(
        apply_fn=model.apply, params=variables["params"], tx=row.build(same)
    )
    expected = run_row(row, row.build(same), variables["params"])

    @quick_jit
    def train_step(state, i):
        return state.apply_gradients(grads=gradients(state.params, i))

    for i in range(STEPS):
        state = train_step(state, i)
        assert_close(state.params, after(expected.params, i))
        assert_close(evaluated(row)(state.opt_state, state.params), after(expected.slow, i))


@every_row
def test_nnx_optimizer(row):
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, row.build(same), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    expected = run_row(row, row.build(same), nnx.to_pure_dict(params))
    for i in range(STEPS):
        extra = row.extra(nnx.to_pure_dict(params), i)
        optimizer.update(model, gradients(params, i), **extra)
        params = nnx.state(model, nnx.Param)
        assert_close(nnx.to_pure_dict(params), after(expected.params, i))
        slow = evaluated(row)(optimizer.opt_state, params)
        assert_close(nnx.to_pure_dict(slow), after(expected.slow, i))


# JAX.


@every_row
@pytest.mark.parametrize("jitted", [False, True], ids=["eager init", "jitted init"])
def test_params_and_state_can_both_be_donated(row, jitted):
    tx = optax.with_extra_args_support(row.build(same))

    @functools.partial(quick_jit, donate_argnums=(0, 1))
    def step(params, state, i):
        updates, state = tx.update(gradients(params, i), state, params, **row.extra(params, i))
        return optax.apply_updates(params, updates), state

    params = device_params()
    state = (quick_jit(tx.init) if jitted else tx.init)(params)
    for i in range(STEPS):
        given = jax.tree.leaves((params, state))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            params, state = step(params, state, i)
        assert all(leaf.is_deleted() for leaf in given)
        assert_close(params, after(plain(row).params, i))
    assert_close(evaluated(row)(state, params), after(plain(row).slow, -1))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_params_that_are_always_the_slow_weights_can_be_donated(alpha):
    tx = lookahead(sgd(), 1, alpha)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, i):
        updates, state = tx.update(gradients(params, i), state, params)
        return optax.apply_updates(params, updates), state

    params = device_params()
    state = tx.init(params)
    for i in range(STEPS):
        params, state = step(params, state, i)
        assert_close(slow_params(state, params), params, rtol=0, atol=0)
    assert_close(params, after(run(tx).params, -1))


@every_row
def test_init_shares_no_buffer_with_the_params(row):
    params = device_params()
    state = row.build(same).init(params)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))]
    assert len(set(pointers)) == len(pointers)


@every_row
def test_scan_equals_a_loop_of_updates(row):
    assert_same_run(by_hand(row, row.build(same), device_params()), plain(row))


@every_row
def test_vmap_over_seeds(row):
    def train(params):
        return run_row(row, row.build(same), params)[:2]

    other = jax.tree.map(lambda p: 1 - p, device_params())
    batched = jax.vmap(train)(stacked([device_params(), other]))
    assert_close(batched, stacked([plain(row)[:2], train(other)]))


@every_row
def test_vmap_over_a_hyperparameter(row):
    def train(value):
        return run_row(row, row.inject(same, **{row.hyperparameter: value}), steps=12)[:2]

    batched = jax.vmap(train)(jnp.array([0.2, row.value]))
    expected = stacked([with_value(row, 0.2)[:2], with_value(row, row.value)[:2]])
    assert_close(batched, expected, **ROUNDING)


def test_vmap_over_periods():
    def with_period(k):
        return run(lookahead(sgd(), k, 0.5))[:2]

    batched = jax.vmap(with_period)(jnp.array([1, 2, 3]))
    one_by_one = [with_period(k) for k in (1, 2, 3)]
    assert_close(batched, jax.tree.map(lambda *runs: jnp.stack(runs), *one_by_one))


@every_row
def test_one_compilation_for_all_steps(row):
    tx = row.build(same)

    tx = optax.with_extra_args_support(tx)

    @quick_jit
    def step(params, state):
        updates, state = tx.update(gradients(params, 0), state, params, **row.extra(params, 0))
        return optax.apply_updates(params, updates), state

    params = device_params()
    state = tx.init(params)
    for _ in range(4):
        params, state = step(params, state)
    assert step._cache_size() == 1


# Where and when a transform may be built.


@every_row
def test_built_inside_a_compiled_function_and_used_outside(row):
    """As in TrainState.create under jit, or nnx.eval_shape before restoring a checkpoint."""
    built = []

    def create():
        built.append(row.build(same))
        return built[-1].init(device_params())

    jax.eval_shape(create)
    assert_same_run(run_row(row, built[0]), plain(row))


def test_every_row_is_built_before_the_devices_are_known():
    """On a platform that does not exist, where creating any JAX array would raise."""
    code = "from transforms_table import TABLE, same; print(*(row.build(same) for row in TABLE))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env=os.environ | {"JAX_PLATFORMS": "nowhere"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("GradientTransformation") == len(TABLE)


# The slow weights outlive the state they were read from.


@rows(lambda row: row.has_slow)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
def test_slow_params_outlive_a_donated_step(row, jitted):
    tx = optax.with_extra_args_support(
        optax.partition({"this": row.build(same), "other": sgd()}, {"w": "this", "b": "other"})
    )

    @functools.partial(quick_jit, donate_argnums=(0, 1))
    def step(params, state, i):
        updates, state = tx.update(gradients(params, i), state, params, **row.extra(params, i))
        return optax.apply_updates(params, updates), state

    read = quick_jit(slow_params) if jitted else slow_params
    params = device_params()
    state = tx.init(params)
    for i in range(STEPS):
        slow = read(state, params)
        before = jax.tree.map(jnp.array, slow)
        params, state = step(params, state, i)
        assert_close(slow, before, rtol=0, atol=0)
