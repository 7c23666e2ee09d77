"""Replicas that meet at syncs only: `diloco` on eight devices, against a loop over replicas."""

import re

import jax
import numpy as np
import optax
import pytest
import references
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from replicas import (
    AXIS,
    COLLECTIVE,
    INITIAL,
    INNER,
    NOISE,
    SIZE,
    STEPS,
    SYNCS,
    WAYS,
    K,
    R,
    assert_same_bits,
    by_hand,
    common_state,
    computations,
    every_inner,
    every_kind_of_sync,
    every_way,
    flat,
    mesh,
    numbers_in_collectives,
    of_replicas,
    parts,
    slope,
    step_of,
    trained,
    tree,
)
from transforms_table import quick_jit

from slrla_jax import diloco, slow_params, snoo, stagewise_prox, two_loop


@pytest.fixture(autouse=True, scope="module")
def eight_devices():
    assert jax.device_count() == R, "see tests/conftest.py"


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
        state = of_replicas(state, lambda x: x[0])
        own = jax.tree.map(lambda p: jax.lax.pcast(p, AXIS, to="varying"), params)
        most, last = (jax.tree.map(lambda x, at=at: x[at], noise) for at in (np.s_[:-1], -1))
        # The counters of the inner optimizer vary as well once the params do.
        (own, state), _ = jax.lax.scan(plain, (own, state), most)
        own, state, slow = step(own, state, last, True)
        state = of_replicas(state, lambda x: x[None])
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


# Replicas with a regulariser: each is pulled to an anchor of its own


BETA = 0.8
# Anchors at every sync, and anchors that are set in the middle of a cycle as well.
every_anchor_period = pytest.mark.parametrize("anchor_period", [K, 2])


@every_anchor_period
@every_kind_of_sync
@every_way
def test_each_replica_is_pulled_to_its_own_anchor(way, syncs, anchor_period):
    fast, slow = by_hand("momentum", BETA, anchor_period)
    assert np.abs(fast - by_hand("momentum")[0]).max() > 0.05
    tx = diloco(optax.chain(stagewise_prox(BETA, anchor_period), INNER["momentum"][0]()), AXIS, K)
    before = np.stack([INITIAL] * R)
    for n, params, state, theta in trained(tx, way, syncs):
        np.testing.assert_allclose(flat(params), fast[n - 1], rtol=1e-4, atol=2e-5)
        expected = slow[n - 1] if way != "pmap" else np.stack([slow[n - 1]] * R)
        np.testing.assert_allclose(flat(theta), expected, rtol=1e-4, atol=2e-5)
        # The anchors are the params before the first step of a stage.
        anchors = flat(state.inner_state[0].anchor_params)
        if (n - 1) % anchor_period == 0:
            start = before
        np.testing.assert_array_equal(anchors, np.float32(start))
        before = flat(params)
    if anchor_period == K:
        # After a sync it is θ that they are pulled to, all to the same.
        np.testing.assert_allclose(anchors, np.stack([slow[n - K - 1]] * R), rtol=1e-4, atol=2e-5)
    else:
        assert np.ptp(anchors, axis=0).max() > 1e-2


# Collectives in the compiled programs


def numbers_averaged(text):
    """How many numbers of float32 the only collective of a program averages."""
    assert len([line for line in text.splitlines() if re.search(COLLECTIVE, line)]) == 1
    ((kind, numbers),) = numbers_in_collectives(text).items()
    assert kind == ("all-reduce", "f32")
    return numbers


@every_way
def test_a_plain_step_has_no_collective(way):
    tx = diloco(optax.adam(0.1), AXIS, None)
    _, text = computations(tx, way, False)
    assert "fusion" in text
    assert not re.search(COLLECTIVE, text)


@every_way
def test_a_sync_step_has_one_averaging(way):
    """Of all params together, and nothing else: 36 numbers in float32."""
    tx = diloco(optax.adam(0.1), AXIS, None)
    _, text = computations(tx, way, True)
    assert numbers_averaged(text) == SIZE


@every_way
def test_automatic_syncs_have_their_collective_in_a_branch(way):
    tx = diloco(optax.adam(0.1), AXIS, K)
    blocks, text = computations(tx, way, None)
    holding = [name for name, block in blocks.items() if re.search(COLLECTIVE, block)]
    branches = re.findall(r"branch_computations=\{(.*?)\}|(?:true|false)_computation=(\S+)", text)
    assert len(holding) == 1
    assert re.search(re.escape(holding[0]) + r"\b", str(branches))


# Replicas of several devices each, among which the params are split

PARTS = 4
REPLICAS = R // PARTS
VECTOR = np.random.default_rng(1).normal(size=32)
DATA = 0.5 * np.random.default_rng(2).normal(size=(STEPS, REPLICAS, 32))
every_way_of_one_program = pytest.mark.parametrize("way", ["shard_map", "vmap"])


def to_tree(vector):
    b, w = np.split(np.float32(vector), [8], axis=-1)
    return {"b": b, "w": w.reshape(*w.shape[:-1], 4, 6)}


def to_vector(params):
    w = np.asarray(params["w"])
    return np.concatenate([np.asarray(params["b"]), w.reshape(*w.shape[:-2], 24)], axis=-1)


def mesh_of_replicas():
    axes = (AXIS, "data")
    return jax.make_mesh((REPLICAS, PARTS), axes, axis_types=(AxisType.Auto,) * 2)


def place(tree, *axes):
    """Puts arrays in parts along the axes; those with fewer dimensions along the first of them."""
    places = jax.tree.map(lambda x: NamedSharding(mesh_of_replicas(), P(*axes[: np.ndim(x)])), tree)
    return jax.device_put(tree, places)


def for_each_replica(tree):
    return place(jax.tree.map(lambda x: np.stack([x] * REPLICAS), tree), AXIS, "data")


def starting(tx):
    """The params of all replicas, and a state with parts of their own."""
    params = place(to_tree(VECTOR), "data")
    state = tx.init(params)
    state = of_replicas(state, for_each_replica)
    return for_each_replica(params), state


@every_kind_of_sync
@every_way_of_one_program
def test_params_in_parts_follow_a_loop_over_replicas(way, syncs):
    tx = diloco(optax.adam(0.1), AXIS, K)
    fast, slow = references.diloco(
        lambda v, s, r: slope(v, DATA[s, r]),
        *(0.1, K, VECTOR, [references.Adam() for _ in range(REPLICAS)], 0.7, 0.9, STEPS),
    )
    step, _ = WAYS[way](tx)
    with jax.set_mesh(mesh_of_replicas()):
        params, state = starting(tx)
        places = jax.tree.map(lambda x: x.sharding, (params, state))
        for n in range(1, STEPS + 1):
            noise = place(to_tree(DATA[n - 1]), AXIS, "data")
            params, state, theta = step(params, state, noise, SYNCS[syncs](n))
            np.testing.assert_allclose(to_vector(params), fast[n - 1], rtol=1e-4, atol=2e-5)
            np.testing.assert_allclose(to_vector(theta), slow[n - 1], rtol=1e-4, atol=2e-5)
            for x, place_of_x in zip(
                jax.tree.leaves((params, state)), jax.tree.leaves(places), strict=True
            ):
                assert x.ndim == 0 or x.sharding.is_equivalent_to(place_of_x, x.ndim)


@every_way_of_one_program
def test_params_in_parts_are_averaged_part_by_part(way):
    """A plain step has no collective, and a sync one: each device averages its part."""
    tx = diloco(optax.adam(0.1), AXIS, None)
    step, _ = WAYS[way](tx)
    with jax.set_mesh(mesh_of_replicas()):
        noise = place(to_tree(DATA[0]), AXIS, "data")
        plain, sync = (
            step.lower(*starting(tx), noise, sync).compile().as_text() for sync in (False, True)
        )
    assert not re.search(COLLECTIVE, plain)
    assert numbers_averaged(sync) == VECTOR.size / PARTS


@every_way_of_one_program
def test_params_in_parts_are_sent_in_few_bits(way):
    """With vmap part by part, as they are averaged; the largest dimension is cut into chunks."""
    b, w = np.arange(8), 8 + np.arange(24).reshape(4, 6)
    chunks = [[x[..., c::REPLICAS].ravel() for c in range(REPLICAS)] for x in (b, w)]
    mean = references.CompressedMean(chunks, references.rounded_to_int8)
    _, slow = references.diloco(
        lambda v, s, r: slope(v, DATA[s, r]),
        *(0.1, 1, VECTOR, [references.SGD() for _ in range(REPLICAS)], 0.7, 0.9, 3),
        mean=mean,
    )
    tx = diloco(optax.sgd(0.1), AXIS, None, pseudo_gradient_dtype="int8")
    step, _ = WAYS[way](tx)
    with jax.set_mesh(mesh_of_replicas()):
        params, state = starting(tx)
        places = jax.tree.map(lambda x: x.sharding, state.residual)
        noise = [place(to_tree(data), AXIS, "data") for data in DATA[:3]]
        program = step.lower(params, state, noise[0], True).compile()
        for n in range(3):
            params, state, theta = program(params, state, noise[n])
            np.testing.assert_allclose(to_vector(theta), slow[n], rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(to_vector(state.residual), mean.residuals, atol=2e-5)
        for e, place_of_e in zip(*map(jax.tree.leaves, (state.residual, places)), strict=True):
            assert e.sharding.is_equivalent_to(place_of_e, e.ndim)
    numbers = numbers_in_collectives(program.as_text())
    if way == "vmap":
        assert numbers["all-to-all", "s8"] == numbers["all-gather", "s8"] == VECTOR.size / PARTS
