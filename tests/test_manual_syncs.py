"""Manual syncs: `sync=True` and `sync=False` in `update`, and the programs they compile to."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from transforms_table import (
    PARAMS,
    adam,
    assert_close,
    device_params,
    gradients,
    quick_jit,
    sgd,
)

from slrla_jax import (
    LookaheadState,
    Stage,
    TwoLoopState,
    lookahead,
    multilayer_lookahead,
    slow_params,
    slrla,
    slrla_sgd,
    snoo,
    two_loop,
)

STEPS = 12


class Pair(NamedTuple):
    """A transform with automatic syncs and the same one with manual syncs.

    Attributes:
      automatic: the transform with its period.
      manual: the transform to which `sync` is passed.
      sync_at: the value of `sync` at the n-th step, with n from 1.
    """

    automatic: Any
    manual: Any
    sync_at: Callable[[int], Any]


def with_and_without(build, period):
    return Pair(build(period), build(None), lambda n: n % period == 0)


def of_layers(inner, periods, alphas, **options):
    def number(n):
        ends = np.cumprod(periods)
        return int(sum(n % end == 0 for end in ends))

    return Pair(
        multilayer_lookahead(inner, periods, alphas, **options),
        multilayer_lookahead(inner, None, alphas, **options),
        number,
    )


STAGES = [Stage(2, 0.1, 0.5, 2, 0.5), Stage(1, 0.2, 1.5, 3, 0.8), Stage(9, 0.05, 1.0, 2, 0.4)]
ENDS_OF_CYCLES = {2, 4, 7, 9, 11}


def in_stages(make_inner, **options):
    tx = slrla(make_inner, STAGES, **options)
    return Pair(tx, tx, lambda n: n in ENDS_OF_CYCLES)


def around(outside, pair):
    return Pair(outside(pair.automatic), outside(pair.manual), pair.sync_at)


PAIRS = {
    "lookahead": with_and_without(lambda k: lookahead(sgd(), k, 0.5), 3),
    "lookahead, k = 1": with_and_without(lambda k: lookahead(sgd(), k, 0.5), 1),
    "lookahead, reset": with_and_without(
        lambda k: lookahead(adam(), k, 0.5, sync_moments="reset"), 3
    ),
    "lookahead, pullback": with_and_without(
        lambda k: lookahead(adam(), k, 0.5, sync_moments="pullback"), 3
    ),
    "lookahead, slow_dtype": with_and_without(
        lambda k: lookahead(sgd(), k, 0.7, slow_dtype="float32"), 3
    ),
    "lookahead, schedule": with_and_without(
        lambda k: lookahead(sgd(), k, optax.linear_schedule(0.2, 0.9, 10)), 3
    ),
    "multilayer": of_layers(sgd(), (2, 2), (0.5, 0.6)),
    "multilayer, pullback": of_layers(adam(), (2, 3), (0.5, 0.6), sync_moments="pullback"),
    "multilayer, slow_dtype": of_layers(sgd(), (3, 2), (0.5, 0.6), slow_dtype="float32"),
    "three layers": of_layers(sgd(), (2, 1, 3), (0.5, 0.6, 0.7), sync_moments="reset"),
    "slrla": in_stages(sgd),
    "slrla, decoupled": in_stages(adam, decoupled=True, sync_moments="pullback"),
    "slrla_sgd, shared": with_and_without(lambda k: slrla_sgd(0.1, 0.4, None, k, 0.5), 3),
    "slrla_sgd, own anchor": with_and_without(lambda k: slrla_sgd(0.1, 0.4, 4, k, 0.5), 3),
    "two_loop": with_and_without(lambda k: two_loop(sgd(), optax.sgd(0.5), k), 3),
    "two_loop, adam": with_and_without(
        lambda k: two_loop(adam(), optax.adam(0.3), k, sync_moments="reset"), 2
    ),
    "snoo": with_and_without(lambda k: snoo(adam(), k), 4),
    "snoo, slow_dtype": with_and_without(lambda k: snoo(sgd(), k, slow_dtype="float32"), 3),
}
LOOKAHEAD, SNOO = PAIRS["lookahead"], PAIRS["snoo"]
MASK, REST = {"w": True, "b": False}, {"w": False, "b": True}
LABELS = {"w": "this", "b": "other"}
PAIRS |= {
    "in a chain": around(lambda tx: optax.chain(optax.clip(0.5), tx), LOOKAHEAD),
    "snoo in a chain": around(lambda tx: optax.chain(optax.clip(0.5), tx), SNOO),
    "masked": around(
        lambda tx: optax.chain(optax.masked(tx, MASK), optax.masked(optax.sgd(0.1), REST)), SNOO
    ),
    "multi_transform": around(
        lambda tx: optax.multi_transform({"this": tx, "other": optax.sgd(0.3)}, LABELS), LOOKAHEAD
    ),
    "apply_if_finite": around(lambda tx: optax.apply_if_finite(tx, 3), SNOO),
    "MultiSteps": Pair(
        optax.MultiSteps(LOOKAHEAD.automatic, 2),
        optax.MultiSteps(LOOKAHEAD.manual, 2),
        lambda n: n % 6 == 0,
    ),
    "inject_hyperparams": Pair(
        optax.inject_hyperparams(lookahead)(sgd(), 3, 0.5),
        optax.inject_hyperparams(lookahead)(sgd(), None, 0.5),
        LOOKAHEAD.sync_at,
    ),
    # The layer inside goes on by itself.
    "around a lookahead": Pair(
        multilayer_lookahead(sgd(), (2, 2), (0.5, 0.6)),
        lookahead(lookahead(sgd(), 2, 0.5), None, 0.6),
        lambda n: n % 4 == 0,
    ),
}

every_pair = pytest.mark.parametrize("name", PAIRS)


def step_of(tx, grads=gradients):
    """A step of a training loop, with its state and params in the order of its arguments."""

    def step(state, params, i, sync=None):
        updates, state = tx.update(grads(params, i), state, params, sync=sync)
        return state, optax.apply_updates(params, updates)

    return step


def starting(name, dtype="float32"):
    """The params to start from, in half precision where the slow weights are wider."""
    dtype = "bfloat16" if "slow_dtype" in name else dtype
    return jax.tree.map(lambda p: p.astype(dtype), device_params())


def paths(name):
    """The params and slow weights after every step, automatic and manual."""
    pair, found = PAIRS[name], []
    for tx, sync_at in ((pair.automatic, lambda n: None), (pair.manual, pair.sync_at)):
        step = quick_jit(step_of(tx), static_argnums=3)
        params, path = starting(name), []
        state = tx.init(params)
        for n in range(1, STEPS + 1):
            state, params = step(state, params, n - 1, sync_at(n))
            path.append((params, slow_params(state, params)))
        found.append(path)
    return found


# In a training loop


@every_pair
def test_manual_syncs_equal_automatic_ones_at_every_step(name):
    automatic, manual = paths(name)
    tolerance = {"rtol": 0.02, "atol": 0.02} if "slow_dtype" in name else {}
    for now, expected in zip(manual, automatic, strict=True):
        assert_close(now, expected, **tolerance)
    # They would also be equal if nothing ever moved or synced.
    fast, slow = (np.stack([path[i]["w"] for path in automatic]) for i in (0, 1))
    assert len(np.unique(fast[:, 0, 0])) > STEPS / 2
    assert len(np.unique(slow[:, 0, 0])) > 2


@pytest.mark.parametrize("name", ["lookahead, slow_dtype", "multilayer, slow_dtype"])
def test_bits_that_the_params_lack_are_stored_by_a_manual_sync(name):
    """Uncompiled, so that both round alike."""
    pair = PAIRS[name]
    states, paths = [], []
    for tx, sync_at in ((pair.automatic, lambda n: None), (pair.manual, pair.sync_at)):
        params, path = starting(name), []
        state = tx.init(params)
        for n in range(1, 8):
            state, params = step_of(tx)(state, params, n - 1, sync_at(n))
            path.append((params, slow_params(state, params)))
        states.append(state)
        paths.append(path)
    assert_close(paths[1], paths[0], rtol=0, atol=0)
    _, slow = paths[1][-1]
    assert np.any(slow["w"] != slow["w"].astype("bfloat16").astype("float32"))


@pytest.mark.parametrize("name", ["lookahead", "slrla_sgd, shared", "two_loop", "snoo"])
def test_one_scan_of_the_plain_steps_and_one_sync_step(name):
    pair = PAIRS[name]
    k = next(n for n in range(1, STEPS) if pair.sync_at(n))
    step = step_of(pair.manual)

    @quick_jit
    def cycle(state, params, first):
        def plain(carry, i):
            return step(*carry, i, sync=False), None

        (state, params), _ = jax.lax.scan(plain, (state, params), first + jnp.arange(k - 1))
        return step(state, params, first + k - 1, sync=True)

    params = device_params()
    state, (automatic, _) = pair.manual.init(params), paths(name)
    for end in range(k, STEPS + 1, k):
        state, params = cycle(state, params, end - k)
        assert_close((params, slow_params(state, params)), automatic[end - 1])


def in_one(tx):
    return jax.jit(step_of(tx), static_argnums=3)


def apart(tx):
    """`update` and `apply_updates` as two programs."""
    update = jax.jit(tx.update, static_argnames="sync")

    def step(state, params, i, sync):
        updates, state = update(gradients(params, i), state, params, sync=sync)
        return state, optax.apply_updates(params, updates)

    return step


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [in_one, apart])
@pytest.mark.parametrize("name", ["lookahead", "three layers", "slrla_sgd, shared", "snoo"])
def test_what_a_manual_sync_stores_are_the_params_bit_for_bit(name, compiled, dtype):
    pair = PAIRS[name]
    step, params = compiled(pair.manual), starting(name, dtype)
    state, syncs = pair.manual.init(params), 0
    for n in range(1, STEPS + 1):
        state, params = step(state, params, n - 1, pair.sync_at(n))
        layer, synced = state, int(pair.sync_at(n))
        layers = 3 if name == "three layers" else 1
        for number in range(layers, 0, -1):
            if synced >= number:
                syncs += 1
                assert_close(layer.cycle_start_params, params, rtol=0, atol=0)
            layer = layer.inner_state
    assert syncs >= 3


@pytest.mark.parametrize(
    "make", [lambda k: lookahead(optax.sgd(1.0), k, 0.5), lambda k: snoo(optax.sgd(1.0), k, 0.5, 0)]
)
def test_one_manual_sync_among_automatic_ones(make):
    """The next automatic one comes k steps later; a `sync=False` puts one off by a step."""
    tx, params = make(3), jnp.array(0.0)
    state, seen = tx.init(params), []
    told = {2: True, 5: False}
    for n in range(1, 10):
        updates, state = tx.update(jnp.array(1.0), state, params, sync=told.get(n))
        params = optax.apply_updates(params, updates)
        seen.append((float(params), float(slow_params(state, params))))
    # The slow weights move by half of 2, 4 and 3 steps.
    assert seen == [
        *((-1, 0), (-1, -1), (-2, -1), (-3, -1), (-4, -1), (-3, -3)),
        *((-4, -3), (-5, -3), (-4.5, -4.5)),
    ]


@pytest.mark.parametrize(
    "make", [lambda k: lookahead(optax.sgd(1.0), k, 0.5), lambda k: snoo(optax.sgd(1.0), k, 0.5, 0)]
)
def test_a_manual_sync_right_after_an_automatic_one(make):
    """It takes its cycle from the params, as the automatic step would."""
    tx, params = make(2), jnp.array(0.0)
    state, seen = tx.init(params), []
    for n in range(1, 5):
        updates, state = tx.update(jnp.array(1.0), state, params, sync=True if n == 3 else None)
        params = optax.apply_updates(params, updates)
        seen.append((float(params), float(slow_params(state, params))))
    assert seen == [(-1, 0), (-1, -1), (-1.5, -1.5), (-2.5, -1.5)]


def test_a_part_of_the_params_without_updates_is_not_stored_again():
    """Its slow weights would be the params themselves, and could not be donated with them."""
    for tx in (lookahead(sgd(), None), snoo(sgd(), None)):
        params = device_params()
        grads = {"w": params["w"], "b": None}
        _, state = tx.update(grads, tx.init(params), params, sync=True)
        stored = state.cycle_start_params["b"]
        assert stored.unsafe_buffer_pointer() != params["b"].unsafe_buffer_pointer()
        np.testing.assert_array_equal(stored, params["b"])


# What a step without a sync leaves alone


def untouched(state):
    """Everything in a state that only a sync may change."""
    if isinstance(state, LookaheadState):
        held = (state.cycle_start_params, state.cycle_start_moments)
        return [*jax.tree.leaves(held), *untouched(state.inner_state)]
    if isinstance(state, TwoLoopState):
        return jax.tree.leaves((state.cycle_start_params, state.outer_state))
    if isinstance(state, tuple) and not hasattr(state, "_fields"):
        return [leaf for part in state for leaf in untouched(part)]
    return []


PLAIN = [
    *("lookahead", "lookahead, pullback", "lookahead, slow_dtype", "multilayer, pullback"),
    *("slrla", "slrla_sgd, shared", "two_loop", "two_loop, adam", "snoo", "in a chain"),
]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_step_returns_slow_weights_and_outer_state_as_they_came(name):
    tx, params = PAIRS[name].manual, starting(name)
    state = tx.init(params)
    for sync in (False, PAIRS[name].sync_at(12) or True, False, False):
        before = untouched(state)
        state, params = step_of(tx)(state, params, 0, sync)
        after = untouched(state)
        assert len(before) == len(after) >= 2
        if sync is False:
            assert all(x is y for x, y in zip(before, after, strict=True))


def test_what_a_plain_step_leaves_alone_may_be_in_the_memory_of_the_host():
    tx, params = snoo(adam(), None), device_params()
    host = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")

    def on_host(state):
        held = jax.device_put((state.cycle_start_params, state.outer_state), host)
        return state._replace(cycle_start_params=held[0], outer_state=held[1])

    state, alone = on_host(tx.init(params)), adam().init(params)
    step = jax.jit(step_of(tx), static_argnums=3, donate_argnums=(0, 1))
    expected = device_params()
    for n in range(3):
        state, params = step(state, params, n, False)
        updates, alone = adam().update(gradients(expected, n), alone, expected)
        expected = optax.apply_updates(expected, updates)
        assert {leaf.sharding.memory_kind for leaf in untouched(state)} == {"pinned_host"}
        assert_close(params, expected)


# The compiled programs

LEAVES = {f"leaf {n}": (64, 8 + n) for n in range(20)}
# In bytes: counters and flags, less than the smallest leaf.
SCALARS = 1024


def compiled_step(tx, sync=None):
    """A training step with state and params donated, its arguments, and their own bytes."""
    params = {name: jnp.full(shape, 0.5) for name, shape in LEAVES.items()}
    grads, state = jax.tree.map(jnp.cos, params), tx.init(params)

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params, **({} if sync is None else {"sync": sync}))
        return state, optax.apply_updates(params, updates)

    lowered = jax.jit(step, donate_argnums=(1, 2)).lower(grads, state, params)
    return lowered.compile(), (grads, state, params)


INNER = {"momentum": sgd(), "adamw": optax.adamw(0.1)}
WRAPPED = {
    "lookahead": lambda inner: lookahead(inner, None),
    "lookahead, pullback": lambda inner: lookahead(inner, None, sync_moments="pullback"),
    "multilayer": lambda inner: multilayer_lookahead(inner, None),
    "two_loop, adam": lambda inner: two_loop(inner, optax.adam(0.1), None),
    "snoo": lambda inner: snoo(inner, None),
    "snoo with a period": lambda inner: snoo(inner, 5, sync_moments="reset"),
    "in a chain": lambda inner: optax.chain(optax.identity(), snoo(inner, None)),
}


@functools.cache
def inner_program(inner):
    return compiled_step(INNER[inner])[0]


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", WRAPPED)
def test_a_plain_step_is_the_program_of_the_inner_optimizer(name, inner):
    program, arguments = compiled_step(WRAPPED[name](INNER[inner]), sync=False)
    alone = inner_program(inner)
    accessed, expected = (p.cost_analysis()["bytes accessed"] for p in (program, alone))
    assert accessed <= expected + SCALARS
    temporary, expected = (p.memory_analysis().temp_size_in_bytes for p in (program, alone))
    assert temporary <= expected + SCALARS

    grads, state, params = arguments
    # Every donated buffer becomes the output in its place.
    donated = sum(leaf.nbytes for leaf in jax.tree.leaves((state, params)))
    assert program.memory_analysis().alias_size_in_bytes >= donated - SCALARS
    assert "input_output_alias" in program.as_text()
    held = untouched(state)
    assert len(held) >= len(LEAVES)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in held]
    state, _ = program(grads, state, params)
    assert [leaf.unsafe_buffer_pointer() for leaf in untouched(state)] == pointers


@pytest.mark.parametrize("inner", INNER)
def test_an_automatic_two_loop_of_sgd_costs_what_lookahead_costs(inner):
    ours, _ = compiled_step(two_loop(INNER[inner], optax.sgd(0.8), 5))
    lookaheads, _ = compiled_step(lookahead(INNER[inner], 5, 0.8))
    for cost in (
        lambda program: program.cost_analysis()["bytes accessed"],
        lambda program: program.memory_analysis().temp_size_in_bytes,
    ):
        assert cost(ours) <= cost(lookaheads) + SCALARS
    assert "conditional" not in ours.as_text()


@pytest.mark.parametrize("make", [lookahead, snoo])
def test_params_and_slow_weights_can_both_be_donated_after_a_manual_sync(make):
    tx = make(sgd(), None, 0.5)
    step = jax.jit(step_of(tx), static_argnums=3, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.array, PARAMS)
    state = tx.init(params)
    for n in range(6):
        given = jax.tree.leaves((untouched(state), params))
        state, params = step(state, params, n, n % 3 != 1)
        assert all(leaf.is_deleted() for leaf in given)
