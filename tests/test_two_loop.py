"""The outer step as an optimizer: limits, what the outer optimizer sees, and when it steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from algorithms.test_exactness import (
    CASES,
    OPTIMIZERS,
    assert_same_bits,
    assert_same_to_rounding,
    both_ways,
    every_dtype,
    in_one,
    train,
)

from slrla_jax import lookahead, slow_params, snoo, two_loop

# Limits


def assert_lookahead(make, optimizer, dtype, compiled, alpha=0.3):
    """Fast and slow weights are those of Lookahead, to the rounding of a few steps."""

    def make_lookahead():
        return lookahead(OPTIMIZERS[optimizer](), 3, alpha)

    both = zip(train(make, compiled, dtype), train(make_lookahead, compiled, dtype), strict=True)
    steps = 3 if dtype == "bfloat16" else 12  # the problem is chaotic in half precision
    for n, ((params, state), (want, want_state)) in enumerate(both):
        if n < steps:
            assert_same_to_rounding(params, want)
            assert_same_to_rounding(slow_params(state, params), slow_params(want_state, want))


@both_ways
@pytest.mark.parametrize(("optimizer", "dtype"), CASES)
def test_an_outer_sgd_is_lookahead(optimizer, dtype, compiled):
    def make():
        return two_loop(OPTIMIZERS[optimizer](), optax.sgd(0.3), 3)

    assert_lookahead(make, optimizer, dtype, compiled)


@pytest.mark.parametrize("momentum", [0, 0.0, np.float32(0)])
def test_snoo_without_momentum_is_lookahead_and_stores_none(momentum):
    def make():
        return snoo(OPTIMIZERS["adam"](), 3, 0.3, momentum)

    assert_lookahead(make, "adam", "float32", in_one)
    assert jax.tree.leaves(make().init(jnp.ones(2)).outer_state) == []
    (trace,) = jax.tree.leaves(snoo(optax.sgd(0.1)).init(jnp.ones(2)).outer_state)
    assert trace.shape == (2,)


def test_a_slow_step_of_one_is_the_inner_optimizer():
    alone = train(OPTIMIZERS["momentum"], in_one, "float32")
    ours = train(lambda: snoo(OPTIMIZERS["momentum"](), 3, 1.0, 0.0), in_one, "float32")
    for (params, _), (want, _) in zip(ours, alone, strict=True):
        assert_same_to_rounding(params, want)


# After a sync the params are the slow weights

OUTER = {
    "sgd": lambda: optax.sgd(0.3),
    "nesterov": lambda: optax.sgd(0.8, 0.75, nesterov=True),
    "adam": lambda: optax.adam(0.1),
}


@both_ways
@every_dtype
@pytest.mark.parametrize("outer", OUTER)
def test_params_and_slow_weights_are_equal_after_a_sync(outer, dtype, compiled):
    def make():
        return two_loop(OPTIMIZERS["adam"](), OUTER[outer](), 3)

    syncs, landed = [], None
    for n, (params, state) in enumerate(train(make, compiled, dtype)):
        slow = slow_params(state, params)
        if state.synced:
            syncs.append(n)
            assert_same_bits(slow, params)
            landed = params
        elif landed is not None:
            assert_same_bits(slow, landed)
            assert np.any(slow["w"] != params["w"])
    assert syncs == [2, 5, 8, 11]


@both_ways
def test_float32_slow_weights_round_to_the_bfloat16_params_after_a_sync(compiled):
    def make():
        return snoo(OPTIMIZERS["momentum"](), 3, 0.3, slow_dtype="float32")

    for params, state in train(make, compiled, "bfloat16"):
        held = jax.tree.leaves((state.cycle_start_params, state.outer_state))
        assert {leaf.dtype.name for leaf in held} == {"float32"}
        if state.synced:
            slow = slow_params(state, params)
            assert_same_bits(jax.tree.map(lambda x: x.astype("bfloat16"), slow), params)
            assert np.any(slow["w"] != params["w"].astype("float32"))


# What the outer optimizer sees


class Heard(NamedTuple):
    """What the outer optimizer was last given."""

    updates: Any
    params: Any
    key: jax.Array
    count: jax.Array


def listening(step_size=0.5):
    """Gradient descent that stores its arguments, a random key, and the number of its steps."""

    def init(params):
        return Heard(params, params, jax.random.key(0), jnp.array(0, jnp.int8))

    def update(updates, state, params):
        key, _ = jax.random.split(state.key)
        moves = jax.tree.map(lambda g: -step_size * g, updates)
        return moves, Heard(updates, params, key, state.count + jnp.array(1, jnp.int8))

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize("manual", [False, True])
def test_the_outer_optimizer_sees_the_slow_weights_and_the_way_back_to_them(manual):
    tx = two_loop(optax.sgd(1.0), listening(), None if manual else 2)
    params = {"w": jnp.array([8.0, -4.0])}
    state = tx.init(params)
    step = jax.jit(tx.update, static_argnames="sync")
    keys = [jax.random.key(0)]
    for n in range(1, 7):
        before = state.outer_state
        sync = n % 2 == 0
        told = {"sync": sync} if manual else {}
        updates, state = step({"w": jnp.array([1.0, 2.0])}, state, params, **told)
        params = optax.apply_updates(params, updates)
        if sync:
            keys.append(jax.random.split(keys[-1])[0])
            slow = np.array([8.0, -4.0]) - (n / 2 - 1) * np.array([1.0, 2.0])
            np.testing.assert_array_equal(state.outer_state.params["w"], slow)
            np.testing.assert_array_equal(state.outer_state.updates["w"], [2.0, 4.0])
        else:
            assert_same_bits(state.outer_state[:2], before[:2])
        assert state.outer_state.key == keys[-1]
        assert state.outer_state.count == n // 2
        assert state.outer_state.count.dtype == jnp.int8


def test_schedules_and_counts_of_the_outer_optimizer_count_syncs():
    outer = optax.chain(
        optax.scale_by_adam(), optax.scale_by_learning_rate(lambda n: 0.1 / (n + 1))
    )
    tx = two_loop(optax.adam(0.1), outer, 3)
    params = jnp.ones(2)
    state = tx.init(params)
    for n in range(1, 8):
        _, state = tx.update(params, state, params)
        adam, schedule = state.outer_state
        assert adam.count == schedule.count == n // 3


def test_weight_decay_of_the_outer_optimizer_acts_on_the_slow_weights():
    """θ ← θ − η (s + λ θ), from 4 with slope 1."""
    outer = optax.chain(optax.add_decayed_weights(0.25), optax.sgd(0.5))
    tx = two_loop(optax.sgd(1.0), outer, 2)
    params = jnp.array(4.0)
    state, seen = tx.init(params), []
    for _ in range(4):
        updates, state = tx.update(jnp.array(1.0), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(params))
    assert seen == [3, 4 - (2 + 1) / 2, 1.5, 2.5 - (2 + 0.625) / 2]


def test_an_outer_optimizer_may_store_its_params():
    """In a buffer of its own, so that both can be donated."""
    tx, params = two_loop(optax.sgd(0.1), listening(), 2), {"w": jnp.ones(3)}
    state = tx.init(params)
    held = [state.outer_state.params["w"], state.cycle_start_params["w"], params["w"]]
    assert len({leaf.unsafe_buffer_pointer() for leaf in held}) == 3


# Leaves that are left to the inner optimizer


@pytest.mark.parametrize("sync_period", [2, None])
@pytest.mark.parametrize("slow_dtype", [None, "float32"])
def test_integers_and_leaves_without_updates(slow_dtype, sync_period):
    """Even if the outer optimizer would move them: here by its weight decay."""
    inner = optax.GradientTransformation(optax.init_empty_state, lambda g, state, p: (g, state))
    outer = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(1.0, momentum=0.5))
    tx = two_loop(inner, outer, sync_period, slow_dtype=slow_dtype)
    params = {"int": jnp.array([0, 10]), "float": jnp.array(0.0), "frozen": jnp.array([3.0])}
    grads = {"int": jnp.array([1, 2]), "float": jnp.array(-1.0), "frozen": None}
    state = tx.init(params)
    for n in range(1, 5):
        told = {} if sync_period else {"sync": n % 2 == 0}
        updates, state = jax.jit(tx.update, static_argnames="sync")(grads, state, params, **told)
        assert updates["frozen"] is None
        moved = {name: params[name] + updates[name] for name in ("int", "float")}
        params = params | moved
        slow = slow_params(state, params)
        np.testing.assert_array_equal(params["int"], [n, 10 + 2 * n])
        np.testing.assert_array_equal(slow["int"], [n // 2 * 2, 10 + 4 * (n // 2)])
        np.testing.assert_array_equal(slow["frozen"], [3.0])
    # s = 2 twice: −2, then b = 3 − ½ · 2.
    assert params["float"] == -2 - (0.5 * 2 + 2 - 0.5 * 2)


# Moments and line searches of the inner optimizer


def test_a_line_search_forgets_its_loss_at_a_sync():
    inner = optax.chain(optax.sgd(0.1), optax.scale_by_backtracking_linesearch(5, store_grad=True))
    tx = snoo(inner, 2)

    def loss(params):
        return jnp.sum((params - 3.0) ** 2)

    params = jnp.array([1.0, -1.0])
    state, seen = tx.init(params), []
    for _ in range(4):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        params = optax.apply_updates(params, updates)
        seen.append(bool(jnp.isfinite(optax.tree.get(state, "value"))))
    assert seen == [True, False, True, False]


def test_moments_that_are_not_declared_cannot_be_reset():
    inner = optax.GradientTransformation(lambda params: jnp.zeros(()), lambda g, s, p=None: (g, s))
    two_loop(inner, optax.sgd(0.5), 2).init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"reset.*is not declared"):
        two_loop(inner, optax.sgd(0.5), 2, sync_moments="reset").init(jnp.ones(2))


def test_a_reset_around_two_loops_reaches_the_inner_moments_alone():
    """The state of the outer optimizer belongs to another algorithm, like nested slow weights."""
    tx = lookahead(snoo(optax.sgd(0.1, 0.9), 2), 4, 0.5, sync_moments="reset")
    params = jnp.ones(2)
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert not optax.tree.get(state.inner_state.inner_state, "trace").any()
    assert optax.tree.get(state.inner_state.outer_state, "trace").all()


def test_a_state_of_another_transform_is_named():
    params = jnp.ones(2)
    with pytest.raises(ValueError, match=r"`state` must be the TwoLoopState .* got a Lookahead"):
        snoo(optax.sgd(0.1)).update(params, lookahead(optax.sgd(0.1)).init(params), params)
