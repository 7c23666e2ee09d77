"""Where the state is kept, and how much of it there is: `memory_kind`, and docs/memory.md."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transforms_table import PARAMS, device_params, gradients

import slrla_jax
from slrla_jax import diloco, lookahead, multilayer_lookahead, slow_params, snoo, two_loop

HOST = "pinned_host"
K, STEPS = 3, 8

MAKERS = {
    "lookahead": lambda **kept: lookahead(optax.adam(0.1), None, 0.5, **kept),
    "lookahead-pullback": lambda **kept: lookahead(
        optax.adam(0.1), None, 0.5, sync_moments="pullback", **kept
    ),
    "lookahead-float32": lambda **kept: lookahead(
        optax.sgd(0.1, 0.9), None, 0.5, slow_dtype="float32", **kept
    ),
    "multilayer_lookahead": lambda **kept: multilayer_lookahead(
        optax.sgd(0.1, 0.9), None, (0.5, 0.7), **kept
    ),
    "snoo": lambda **kept: snoo(optax.adam(0.1), None, **kept),
    "snoo-reset": lambda **kept: snoo(optax.adam(0.1), None, sync_moments="reset", **kept),
    "two_loop-adam": lambda **kept: two_loop(optax.adam(0.1), optax.adam(0.1), None, **kept),
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def sync_at(make, n):
    """At every third step; of two layers the outer one at every second of these."""
    if make is MAKERS["multilayer_lookahead"]:
        return (n % K == 0) + (n % (2 * K) == 0)
    return n % K == 0


def shardings(tree):
    return jax.tree.map(lambda x: x.sharding, tree)


def kinds(tree):
    """The kind of memory of each leaf."""
    return [leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)]


def step_of(tx):
    """A training step."""

    def step(state, params, n, sync):
        updates, state = tx.update(gradients(params, n), state, params, sync=sync)
        return state, optax.apply_updates(params, updates)

    return step


def program(tx, state, params):
    """The compiled step, with donated state and params."""
    return jax.jit(
        step_of(tx),
        donate_argnums=(0, 1),
        static_argnums=3,
        out_shardings=shardings((state, params)),
    )


def train(make, params, **kept):
    """Yields state, params and slow weights after each step."""
    tx = make(**kept)
    state = tx.init(params)
    step = program(tx, state, params)
    for n in range(1, STEPS + 1):
        state, params = step(state, params, n, sync_at(make, n))
        # Copies: a view of the host's memory would keep the next step from being given it.
        yield jax.tree.map(np.array, (state, params, slow_params(state, params)))
        assert kinds(slow_params(state, params)) == ["device"] * 2
        assert (HOST in kinds(state)) == bool(kept)


@every_maker
def test_the_memory_of_the_host_changes_no_bit(make):
    dtype = jnp.bfloat16 if make is MAKERS["lookahead-float32"] else jnp.float32
    start = jax.tree.map(lambda x: x.astype(dtype), device_params())
    runs = [
        train(make, jax.tree.map(jnp.copy, start), **kept) for kept in ({}, {"memory_kind": HOST})
    ]
    for device, host in zip(*runs, strict=True):
        jax.tree.map(np.testing.assert_array_equal, host, device)


@every_maker
def test_what_syncs_alone_read_is_on_the_host(make):
    """Every array that is as large as a param, beside the inner optimizer's; no scalar."""
    tx = make(memory_kind=HOST)
    state = tx.init(device_params())
    layers = [state]
    while hasattr(layers[-1].inner_state, "cycle_start_params"):
        layers.append(layers[-1].inner_state)
    innermost = layers[-1].inner_state
    assert set(kinds(innermost)) == {"device"}
    own = jax.tree.leaves([layer._replace(inner_state=()) for layer in layers])
    for leaf in own:
        assert leaf.sharding.memory_kind == (HOST if leaf.ndim else "device")


@every_maker
def test_a_step_that_does_not_sync_returns_them_as_they_came(make):
    tx = make(memory_kind=HOST)
    params = device_params()
    state = tx.init(params)
    compiled = program(tx, state, params).lower(state, params, 1, sync_at(make, 1)).compile()
    text = compiled.as_text()
    entry = re.search(r"^ENTRY .*?^\}", text, re.MULTILINE | re.DOTALL)[0]
    layout = re.search(r"entry_computation_layout=\{(.*?)\}, \w+=", text)[1]
    in_places, out_places = (
        ["S(5)" in place for place in re.findall(r"\w+\[[\d,]*\](?:\{\S*\})?", part)]
        for part in layout.split(")->(")
    )
    assert sum(in_places) == sum(out_places) == kinds(state).count(HOST)
    # Of each, the program only puts the parameter into the results.
    for number in np.flatnonzero(in_places):
        (name,) = re.findall(rf"(%\S+) = \S+ parameter\({number}\)", entry)
        (use,) = (line for line in entry.splitlines() if re.search(rf"{re.escape(name)}[,)]", line))
        assert use.lstrip().startswith("ROOT %")


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
@every_maker
def test_each_keeps_the_sharding_of_its_param(make, axes):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(axes,))
    specs = {"w": P("x"), "b": P()}
    with jax.set_mesh(mesh):
        params = {
            name: jax.device_put(PARAMS[name], NamedSharding(mesh, spec))
            for name, spec in specs.items()
        }
        tx = make(memory_kind=HOST)
        state = tx.init(params)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
        )
        for found in (
            shardings(state),
            shardings(jax.jit(tx.init)(params)),
            jax.jit(tx.init).lower(abstract).compile().output_shardings,
        ):
            assert [s.memory_kind for s in jax.tree.leaves(found)] == kinds(state)
            for name, sharding in found.cycle_start_params.items():
                assert sharding.memory_kind == HOST
                assert sharding.is_equivalent_to(
                    params[name].sharding.with_memory_kind(HOST), params[name].ndim
                )
        step = jax.jit(step_of(tx), static_argnums=3)
        wanted = shardings((state, params))
        for n in range(1, K + 2):
            state, params = step(state, params, n, sync_at(make, n))
        for leaf, want in zip(*map(jax.tree.leaves, ((state, params), wanted)), strict=True):
            assert leaf.sharding.is_equivalent_to(want, leaf.ndim)
            assert leaf.sharding.memory_kind == want.memory_kind


def test_a_cycle_in_one_program():
    tx = snoo(optax.adam(0.1), None, memory_kind=HOST)
    params = device_params()
    state = tx.init(params)

    def step(carry, n, sync=False):
        state, params = carry
        updates, state = tx.update(gradients(params, n), state, params, sync=sync)
        return (state, optax.apply_updates(params, updates)), None

    @functools.partial(jax.jit, out_shardings=shardings((state, params)))
    def cycle(state, params, first):
        carry, _ = jax.lax.scan(step, (state, params), first + jnp.arange(K - 1))
        return step(carry, first + K - 1, sync=True)[0]

    for first in (1, 1 + K):
        state, params = cycle(state, params, first)
    *_, (_, expected, _) = list(train(MAKERS["snoo"], device_params()))[: 2 * K]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), params, expected)


@pytest.mark.parametrize("mapped", ["vmap", "shard_map"])
def test_replicas_share_what_is_on_the_host(mapped):
    tx = diloco(optax.sgd(0.1), "replica", None, memory_kind=HOST)
    mesh = jax.make_mesh((4,), ("replica",), axis_types=(AxisType.Auto,))
    params = {"w": jnp.arange(8.0).reshape(4, 2)}  # A row for each replica.
    state = tx.init({"w": jnp.ones(2)})

    def one(params, state):
        updates, state = tx.update({"w": jnp.ones(2)}, state, params, sync=True)
        return optax.apply_updates(params, updates), state

    def shard(params, state):
        params, state = one(jax.tree.map(lambda x: x[0], params), state)
        return jax.tree.map(lambda x: x[None], params), state

    with jax.set_mesh(mesh):
        if mapped == "vmap":
            step = jax.vmap(
                one, (0, None), (0, None), axis_name="replica", spmd_axis_name="replica"
            )
        else:
            specs = P("replica"), P()
            step = jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=specs)
        params = jax.device_put(params, NamedSharding(mesh, P("replica")))
        state = jax.device_put(
            state,
            jax.tree.map(
                lambda x: NamedSharding(mesh, P(), memory_kind=x.sharding.memory_kind), state
            ),
        )
        params, state = jax.jit(step)(params, state)
    # s = 1 − mean of (p − 0.1); θ ← 1 − 0.7 (0.9 s + s)
    pseudo = 1 - (np.arange(8.0).reshape(4, 2).mean(axis=0) - 0.1)
    np.testing.assert_allclose(state.cycle_start_params["w"], 1 - 0.7 * 1.9 * pseudo, rtol=1e-6)
    np.testing.assert_allclose(params["w"], [state.cycle_start_params["w"]] * 4, rtol=1e-5)
    assert kinds(state.cycle_start_params) == [HOST]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: lookahead(optax.sgd(0.1), None, memory_kind="host"), "memory_kind.*'host'"),
        (lambda: lookahead(optax.sgd(0.1), 5, memory_kind=HOST), "sync period must be None, got 5"),
        (lambda: snoo(optax.sgd(0.1), memory_kind=HOST), "sync period must be None, got 100"),
        (
            lambda: multilayer_lookahead(optax.sgd(0.1), memory_kind=HOST),
            r"sync period must be None, got \(5, 5\)",
        ),
    ],
)
def test_what_cannot_be(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_a_version_of_jax_without_memories(monkeypatch):
    monkeypatch.delattr(jax, "memory")
    with pytest.raises(ValueError, match=r"memory_kind.*jax\.memory"):
        lookahead(optax.sgd(0.1), None, memory_kind=HOST)
    tx = lookahead(optax.sgd(0.1), None)
    params = device_params()
    tx.update(params, tx.init(params), params, sync=True)


# docs/memory.md

PAGE = (Path(slrla_jax.__file__).parent.parent / "docs/memory.md").read_text(encoding="utf-8")
SIZE = 1 << 18
NAMES = {name: getattr(slrla_jax, name) for name in slrla_jax.__all__} | {
    "optax": optax,
    "inner": optax.adamw(0.01),
    "make_inner": optax.adamw,
    "stages": [slrla_jax.Stage(10, 0.1, 0.1), slrla_jax.Stage(10, 0.01, 0.1)],
}
ROWS = [
    re.match(r"\| `(.+?)`[^|]*\|(.*)\|$", line).groups()
    for line in PAGE.splitlines()
    if line.startswith("| `")
]


def measured(tx, sync):
    """Bytes per parameter of the state on device and host, and of the temporaries."""
    params = {name: jnp.ones(SIZE // 8) for name in "abcdefgh"}
    state = tx.init(params)

    def step(state, params, grads):
        told = {} if sync is None else {"sync": sync}
        updates, state = optax.with_extra_args_support(tx).update(
            grads,
            state,
            params,
            value=1.0,
            grad_fn=lambda p, _=0: jax.tree.map(lambda x: 0.1 * x, p),
            **told,
        )
        return state, optax.apply_updates(params, updates)

    step = jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings((state, params)))
    memory = step.lower(state, params, params).compile().memory_analysis()
    places = dict.fromkeys(("device", HOST), 0)
    for leaf in jax.tree.leaves(state):
        places[leaf.sharding.memory_kind] += leaf.nbytes
    # The program's own figure counts both memories together: on CPU they are one.
    whole = memory.argument_size_in_bytes - 2 * 4 * SIZE
    assert whole <= sum(places.values()) <= whole + 64
    return places["device"] / SIZE, places[HOST] / SIZE, memory.temp_size_in_bytes / SIZE


@pytest.mark.parametrize(("code", "figures"), ROWS, ids=[code for code, _ in ROWS])
def test_bytes_per_parameter(code, figures):
    tx = eval(code, NAMES)
    device, *others = figures.replace("–", "nan").split("|")
    host, automatic, manual = map(float, others if len(others) == 3 else [0, *others, "nan"])
    beyond = 8 if "inner" in code else 0
    for sync, temporaries in ((None, automatic), (True, manual)):
        if np.isnan(temporaries):
            continue
        told = 2 if sync and code.startswith("multilayer") else sync
        have = measured(tx, told)
        np.testing.assert_allclose(have[:2], (float(device) + beyond, host), atol=1e-2)
        np.testing.assert_allclose(have[2], temporaries, atol=0.3)
    if not np.isnan(manual):
        told = 0 if code.startswith("multilayer") else False
        assert measured(tx, told)[2] < 1e-2
