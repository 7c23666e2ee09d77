"""Replicas that meet at syncs only: `diloco` on eight devices, against a loop over replicas."""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transforms_table import quick_jit

from slrla_jax import TwoLoopState, diloco, slow_params, snoo, two_loop

R = 8
STEPS = 9
K = 3
AXIS = "replica"
TREE = {"b": (4,), "w": (2, 3)}
SIZE = 10
RNG = np.random.default_rng(0)
INITIAL = RNG.normal(size=SIZE)
INITIAL[:4] = 0  # a bias, whose sign differs between replicas soon
NOISE = 0.5 * RNG.normal(size=(STEPS, R, SIZE))

INNER = {
    "momentum": (lambda: optax.sgd(0.1, 0.9), references.Momentum),
    "adam": (lambda: optax.adam(0.1), references.Adam),
}
every_inner = pytest.mark.parametrize("inner", INNER)


@pytest.fixture(autouse=True, scope="module")
def eight_devices():
    assert jax.device_count() == R, "see tests/conftest.py"


# The problem: every replica has data of its own


def slope(x, noise, xp=np):
    return x + 0.3 * xp.sin(x) + noise


@functools.cache
def by_hand(inner):
    """Fast and slow weights of all replicas, from a loop over them in NumPy."""
    replicas = [INNER[inner][1]() for _ in range(R)]
    return references.diloco(
        lambda v, s, r: slope(v, NOISE[s, r]), 0.1, K, INITIAL, replicas, 0.7, 0.9, STEPS
    )


def tree(vector):
    b, w = jnp.split(jnp.asarray(vector, jnp.float32), [4], axis=-1)
    return {"b": b, "w": jnp.reshape(w, (*w.shape[:-1], 2, 3))}


def flat(params):
    w = np.asarray(params["w"])
    return np.concatenate([np.asarray(params["b"]), w.reshape(*w.shape[:-2], 6)], axis=-1)


def stacked(params):
    return jax.tree.map(lambda x: jnp.stack([x] * R), params)


def step_of(tx):
    """One replica's step, which also returns its slow weights."""

    def step(params, state, noise, sync=None):
        grads = jax.tree.map(lambda p, n: slope(p, n, jnp), params, noise)
        updates, state = tx.update(grads, state, params, sync=sync)
        params = optax.apply_updates(params, updates)
        return params, state, slow_params(state, params)

    return step


# Three ways to map the step over replicas. Each has params of shape (R, …) and takes `sync`.


def under_pmap(tx):
    """A state for each replica."""
    compiled = {
        sync: jax.pmap(functools.partial(step_of(tx), sync=sync), axis_name=AXIS)
        for sync in (None, False, True)
    }

    def step(params, state, noise, sync):
        return compiled[sync](params, state, noise)

    return step, stacked(tx.init(tree(INITIAL)))


# Which parts of the state differ between replicas, as a tree prefix.
def parts(replicas, common):
    return TwoLoopState(replicas, common, common, common, common, None)


def common_state(tx):
    """The state of `tx.init`, with an inner state for each replica."""
    state = tx.init(tree(INITIAL))
    return state._replace(inner_state=stacked(state.inner_state))


def mesh():
    return jax.make_mesh((R,), (AXIS,), axis_types=(AxisType.Auto,))


def under_shard_map(tx):
    """θ and the outer state are P(), and JAX checks that they are the same on all devices."""

    def one(tree):
        return jax.tree.map(lambda x: x[0], tree)

    def several(tree):
        return jax.tree.map(lambda x: x[None], tree)

    def mapped(params, state, noise, sync):
        state = state._replace(inner_state=one(state.inner_state))
        params, state, slow = step_of(tx)(one(params), state, one(noise), sync)
        state = state._replace(inner_state=several(state.inner_state))
        return several(params), state, slow

    @functools.partial(quick_jit, static_argnums=3)
    def step(params, state, noise, sync):
        split, specs = P(AXIS), parts(P(AXIS), P())
        return jax.shard_map(
            functools.partial(mapped, sync=sync),
            mesh=mesh(),
            in_specs=(split, specs, split),
            out_specs=(split, specs, P()),
        )(params, state, noise)

    return step, common_state(tx)


def under_vmap(tx):
    """One program for all devices, which the compiler splits along the mapped axis."""
    axes = parts(0, None)

    @functools.partial(quick_jit, static_argnums=3)
    def step(params, state, noise, sync):
        return jax.vmap(
            functools.partial(step_of(tx), sync=sync),
            in_axes=(0, axes, 0),
            out_axes=(0, axes, None),
            axis_name=AXIS,
            spmd_axis_name=AXIS,
        )(params, state, noise)

    return step, common_state(tx)


WAYS = {"pmap": under_pmap, "shard_map": under_shard_map, "vmap": under_vmap}
every_way = pytest.mark.parametrize("way", WAYS)
SYNCS = {
    "automatic": lambda n: None,
    "manual": lambda n: n % K == 0,
}
every_kind_of_sync = pytest.mark.parametrize("syncs", SYNCS)


def trained(tx, way, syncs):
    """Yields the number of each step, the params, the state and the slow weights after it."""
    step, state = WAYS[way](tx)
    params = stacked(tree(INITIAL))
    if way != "pmap":
        params = jax.device_put(params, NamedSharding(mesh(), P(AXIS)))
    for n in range(1, STEPS + 1):
        with contextlib.nullcontext() if way == "pmap" else jax.set_mesh(mesh()):
            params, state, slow = step(params, state, tree(NOISE[n - 1]), SYNCS[syncs](n))
        yield n, params, state, slow


def assert_same_bits(x, y):
    np.testing.assert_array_equal(np.asarray(x).view(np.uint32), np.asarray(y).view(np.uint32))


@every_inner
@every_kind_of_sync
@every_way
def test_replicas_follow_a_loop_over_them(way, syncs, inner):
    """And where they are equal, they are so bit-for-bit."""
    tx = diloco(INNER[inner][0](), AXIS, K)
    fast, slow = by_hand(inner)
    for n, params, state, theta in trained(tx, way, syncs):
        np.testing.assert_allclose(flat(params), fast[n - 1], rtol=1e-4, atol=2e-5)
        expected = slow[n - 1] if way != "pmap" else np.stack([slow[n - 1]] * R)
        np.testing.assert_allclose(flat(theta), expected, rtol=1e-4, atol=2e-5)
        for leaf in jax.tree.leaves((state.cycle_start_params, state.outer_state)):
            shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
            for shard in shards:
                assert_same_bits(shard, shards[0])
        if n % K == 0:
            # The params are θ, but for the rounding of p + (θ − p).
            before = np.abs(fast[n - 2]).max()
            error = np.abs(flat(params) - flat(theta)).max()
            assert error <= 2 * np.finfo(np.float32).eps * max(before, np.abs(slow[n - 1]).max())
        else:
            assert np.ptp(flat(params), axis=0).max() > 1e-2


@every_way
def test_inner_states_are_each_replicas_own(way):
    tx = diloco(INNER["adam"][0](), AXIS, K)
    *_, (_, _, state, _) = trained(tx, way, "automatic")
    mu = optax.tree.get(state.inner_state, "mu")
    assert np.ptp(flat(mu), axis=0).min() > 1e-3


@every_kind_of_sync
def test_params_can_be_made_equal_bit_for_bit_after_a_sync(syncs):
    """One addition cannot take every param to θ; `slow_params` is θ itself."""
    tx = diloco(optax.sgd(0.5), AXIS, K)
    differed = False
    for n, params, state, _ in trained(tx, "pmap", syncs):
        if n % K:
            continue
        differed |= bool((params["b"] != params["b"][0]).any())
        params = jax.pmap(slow_params)(state, params)
        for leaf in jax.tree.leaves(params):
            for replica in leaf:
                assert_same_bits(replica, leaf[0])
    assert differed


def test_a_whole_cycle_in_one_shard_map():
    """The params enter and leave as P(): JAX can tell that θ is the same on all devices."""
    tx = diloco(INNER["adam"][0](), AXIS, None)
    step = step_of(tx)

    def cycle(params, state, noise):
        def plain(carry, noise):
            params, state, _ = step(*carry, noise, False)
            return (params, state), None

        noise = jax.tree.map(lambda x: x[:, 0], noise)
        state = state._replace(inner_state=jax.tree.map(lambda x: x[0], state.inner_state))
        own = jax.tree.map(lambda p: jax.lax.pcast(p, AXIS, to="varying"), params)
        most, last = (jax.tree.map(lambda x, at=at: x[at], noise) for at in (np.s_[:-1], -1))
        # The counters of the inner optimizer vary as well once the params do.
        (own, state), _ = jax.lax.scan(plain, (own, state), most)
        own, state, slow = step(own, state, last, True)
        state = state._replace(inner_state=jax.tree.map(lambda x: x[None], state.inner_state))
        return slow, state

    specs = parts(P(AXIS), P())
    run = quick_jit(
        jax.shard_map(
            cycle, mesh=mesh(), in_specs=(P(), specs, P(None, AXIS)), out_specs=(P(), specs)
        )
    )
    params, state = tree(INITIAL), common_state(tx)
    for end in range(K, STEPS + 1, K):
        params, state = run(params, state, tree(NOISE[end - K : end]))
        np.testing.assert_allclose(flat(params), by_hand("adam")[1][end - 1], rtol=1e-4, atol=2e-5)


# Limits


def test_one_replica_is_snoo():
    def train(tx, params):
        state, seen = tx.init(params), []
        for n in range(STEPS):
            params, state, slow = step_of(tx)(params, state, tree(NOISE[n, 0]))
            seen.append((params, slow))
        return seen

    alone = jax.jit(lambda p: train(snoo(optax.adam(0.1), K, 0.7, 0.9), p))(tree(INITIAL))
    mapped = jax.vmap(
        lambda p: train(diloco(optax.adam(0.1), AXIS, K), p), axis_name=AXIS, axis_size=1
    )
    one = jax.tree.map(
        lambda x: x[0], jax.jit(mapped)(jax.tree.map(lambda x: x[None], tree(INITIAL)))
    )
    for have, want in zip(jax.tree.leaves(one), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


def test_averaging_after_every_step_is_one_optimizer_on_the_mean_gradient():
    tx = diloco(optax.sgd(0.1), AXIS, 1, learning_rate=1.0, momentum=0.0)
    assert jax.tree.leaves(tx.init(tree(INITIAL)).outer_state) == []
    expected = INITIAL
    for n, params, _, _ in trained(tx, "pmap", "automatic"):
        expected = expected - 0.1 * slope(expected, NOISE[n - 1]).mean(axis=0)
        np.testing.assert_allclose(flat(params), np.stack([expected] * R), rtol=1e-4, atol=1e-5)


def test_any_outer_optimizer_takes_the_mean():
    tx = two_loop(optax.sgd(0.1), optax.sgd(lambda sync: 1.0 / (1 + sync)), 2, axis_name=AXIS)
    theta = INITIAL
    for n, _, _, slow in trained(tx, "vmap", "automatic"):
        v = theta if n % 2 else v  # noqa: F821
        v = v - 0.1 * slope(v, NOISE[n - 1])
        if n % 2 == 0:
            theta = theta - (theta - v).mean(axis=0) / (n // 2)
        np.testing.assert_allclose(flat(slow), theta, rtol=1e-4, atol=1e-5)


def test_two_axes():
    """Replicas along two axes are averaged over both."""
    tx = diloco(optax.sgd(0.1), ("x", "y"), 1, learning_rate=1.0, momentum=0.0)

    def one(noise):
        params = tree(INITIAL)
        return step_of(tx)(params, tx.init(params), noise)[0]

    noise = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), tree(NOISE[0]))
    params = jax.vmap(jax.vmap(one, axis_name="y"), axis_name="x")(noise)
    expected = INITIAL - 0.1 * slope(INITIAL, NOISE[0]).mean(axis=0)
    np.testing.assert_allclose(flat(params), np.tile(expected, (2, 4, 1)), rtol=1e-4, atol=1e-5)


# Collectives in the compiled programs

COLLECTIVE = r"\b(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("


def computations(tx, way, sync):
    """The computations of the compiled step, by name, each as its text."""
    step, state = WAYS[way](tx)
    params = stacked(tree(INITIAL))
    if way == "pmap":
        lowered = jax.pmap(functools.partial(step_of(tx), sync=sync), axis_name=AXIS).lower(
            params, state, tree(NOISE[0])
        )
        text = lowered.compile().as_text()
    else:
        with jax.set_mesh(mesh()):
            split = NamedSharding(mesh(), P(AXIS))
            params, noise = jax.device_put((params, tree(NOISE[0])), split)
            state = jax.device_put(state, NamedSharding(mesh(), P()))
            inner = jax.device_put(state.inner_state, split)
            state = state._replace(inner_state=inner)
            text = step.lower(params, state, noise, sync).compile().as_text()
    blocks = re.findall(r"^(?:ENTRY )?(%\S+) [^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return dict(blocks), text


@every_way
def test_a_plain_step_has_no_collective(way):
    tx = diloco(optax.adam(0.1), AXIS, None)
    _, text = computations(tx, way, False)
    assert "fusion" in text
    assert not re.search(COLLECTIVE, text)


@every_way
def test_a_sync_step_has_one_averaging(way):
    """Of all params together, and nothing else: 10 numbers in float32."""
    tx = diloco(optax.adam(0.1), AXIS, None)
    _, text = computations(tx, way, True)
    (made,) = (line for line in text.splitlines() if re.search(COLLECTIVE, line))
    shapes = re.findall(r"f32\[([\d,]*)\]", re.search(r"= (.*?) all-reduce", made)[1])
    sizes = [np.prod([int(d) for d in shape.split(",")]) for shape in shapes]
    assert sum(sizes) == SIZE


@every_way
def test_automatic_syncs_have_their_collective_in_a_branch(way):
    tx = diloco(optax.adam(0.1), AXIS, K)
    blocks, text = computations(tx, way, None)
    holding = [name for name, block in blocks.items() if re.search(COLLECTIVE, block)]
    branches = re.findall(r"branch_computations=\{(.*?)\}|(?:true|false)_computation=(\S+)", text)
    assert len(holding) == 1
    assert re.search(re.escape(holding[0]) + r"\b", str(branches))
