"""Eight replicas with data of their own, and three ways to map a step over them."""

import collections
import contextlib
import functools
import math
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

from slrla_jax import TwoLoopState, slow_params

R = 8
STEPS = 9
K = 3
AXIS = "replica"
SIZE = 36
RNG = np.random.default_rng(0)
INITIAL = RNG.normal(size=SIZE)
INITIAL[:12] = 0  # a bias, whose sign differs between replicas soon
NOISE = 0.5 * RNG.normal(size=(STEPS, R, SIZE))

INNER = {
    "momentum": (lambda: optax.sgd(0.1, 0.9), references.Momentum),
    "adam": (lambda: optax.adam(0.1), references.Adam),
}
every_inner = pytest.mark.parametrize("inner", INNER)

# The problem: every replica has data of its own


def slope(x, noise, xp=np):
    return x + 0.3 * xp.sin(x) + noise


@functools.cache
def by_hand(inner, beta=0.0, anchor_period=1):
    """Fast and slow weights of all replicas, from a loop over them in NumPy."""

    def gradient(v, s, r):
        return slope(v, NOISE[s, r])

    replicas, outer = [INNER[inner][1]() for _ in range(R)], (0.7, 0.9)
    return references.diloco(
        gradient, 0.1, K, INITIAL, replicas, *outer, STEPS, beta, anchor_period
    )


def tree(vector):
    b, w = jnp.split(jnp.asarray(vector, jnp.float32), [12], axis=-1)
    return {"b": b, "w": jnp.reshape(w, (*w.shape[:-1], 3, 8))}


def flat(params):
    w = np.asarray(params["w"])
    return np.concatenate([np.asarray(params["b"]), w.reshape(*w.shape[:-2], 24)], axis=-1)


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


def assert_same_bits(x, y):
    np.testing.assert_array_equal(np.asarray(x).view(np.uint32), np.asarray(y).view(np.uint32))


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
    return TwoLoopState(replicas, common, common, common, common, None, replicas)


def of_replicas(state, f):
    """Changes the parts of a state that are each replica's own."""
    own = jax.tree.map(f, (state.inner_state, state.residual))
    return state._replace(inner_state=own[0], residual=own[1])


def common_state(tx):
    """The state of `tx.init`, with an inner state and a residual for each replica."""
    return of_replicas(tx.init(tree(INITIAL)), lambda x: jnp.stack([x] * R))


def mesh():
    return jax.make_mesh((R,), (AXIS,), axis_types=(AxisType.Auto,))


def under_shard_map(tx):
    """θ and the outer state are P(), and JAX checks that they are the same on all devices."""

    def mapped(params, state, noise, sync):
        params, noise = jax.tree.map(lambda x: x[0], (params, noise))
        state = of_replicas(state, lambda x: x[0])
        params, state, slow = step_of(tx)(params, state, noise, sync)
        return jax.tree.map(lambda x: x[None], params), of_replicas(state, lambda x: x[None]), slow

    @functools.partial(quick_jit, static_argnums=3)
    def step(params, state, noise, sync):
        split, specs = P(AXIS), parts(P(AXIS), P())
        return jax.shard_map(
            functools.partial(mapped, sync=sync),
            in_specs=(split, specs, split),
            out_specs=(split, specs, P()),
            axis_names={AXIS},
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
            state = of_replicas(state, lambda x: jax.device_put(x, split))
            text = step.lower(params, state, noise, sync).compile().as_text()
    blocks = re.findall(r"^(?:ENTRY )?(%\S+) [^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return dict(blocks), text


def numbers_in_collectives(text):
    """How many numbers the collectives of a program give a device, by their kind and dtype."""
    numbers = collections.Counter()
    for line in text.splitlines():
        if made := re.search(rf"= (.*?) {COLLECTIVE}", line):
            for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", made[1]):
                numbers[made[2], dtype] += math.prod(int(d) for d in shape.split(",") if d)
    return numbers
