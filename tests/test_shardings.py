"""Sharded params: what a state holds is where its param is, and an update does not communicate."""

import collections
import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts import every_row
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from transforms_table import TABLE, Row, assert_close, quick_jit, same

from slrla_jax import TwoLoopState, adabound, lookahead, slow_params, slrla_sgd

STEPS = 7
AXES = ("data", "model")
DEVICES = (4, 2)

# An embedding and two dense layers. No two leaves have the same shape, so that a leaf of the
# state tells by its shape which param it belongs to.
SHAPES = {
    "embedding": (16, 8),
    "up": {"kernel": (8, 24), "bias": (24,)},
    "down": {"kernel": (24, 8), "bias": (8,)},
}
LAYOUTS = {
    # Every param in parts along one axis.
    "fsdp": {
        "embedding": P("data", None),
        "up": {"kernel": P("data", None), "bias": P("data")},
        "down": {"kernel": P("data", None), "bias": P("data")},
    },
    # The first kernel by columns, the second by rows.
    "tensor": {
        "embedding": P("model", None),
        "up": {"kernel": P(None, "model"), "bias": P("model")},
        "down": {"kernel": P("model", None), "bias": P(None)},
    },
    "both": {
        "embedding": P("model", "data"),
        "up": {"kernel": P("data", "model"), "bias": P("model")},
        "down": {"kernel": P("model", "data"), "bias": P("data")},
    },
}
# The sets of axes along which the leaves of a layout are split.
GROUPS = {"fsdp": 1, "tensor": 1, "both": 3}


class Case(NamedTuple):
    """A row of the table with sharded params."""

    row: str
    layout: str
    axis_type: AxisType

    def __str__(self) -> str:
        return f"{self.row}-{self.layout}-{self.axis_type}"


FAMILY = [
    *("lookahead-pullback-adam", "multilayer_lookahead-adam", "primal_averaging-sgd", "snoo-sgd"),
    *("slrla-sgd", "lookbehind-sgd", "sam-adam", "adagrad_norm", "adabound"),
]
CASES = [
    *(Case(row.name, "both", kind) for row in TABLE for kind in (AxisType.Auto, AxisType.Explicit)),
    *(Case(name, layout, AxisType.Auto) for name in FAMILY for layout in ("fsdp", "tensor")),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True, scope="module")
def eight_devices():
    assert jax.device_count() == np.prod(DEVICES), "see tests/conftest.py"


def row_of(case: Case) -> Row:
    return next(row for row in TABLE if row.name == case.row)


@functools.cache
def mesh_of(axis_type):
    return jax.make_mesh(DEVICES, AXES, axis_types=(axis_type,) * 2)


def is_spec(node):
    return isinstance(node, P)


def shardings(case):
    return jax.tree.map(
        lambda spec: NamedSharding(mesh_of(case.axis_type), spec),
        LAYOUTS[case.layout],
        is_leaf=is_spec,
    )


@functools.cache
def values(seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        SHAPES,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def params_on_the_host():
    return values(0)


def gradients_on_the_host(n):
    return values(1 + n)


def sharded_params(case):
    return jax.device_put(params_on_the_host(), shardings(case))


def abstract_params(case):
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        params_on_the_host(),
        shardings(case),
    )


def arrays_of(tree):
    """The arrays of a tree that are not numbers."""
    return [x for x in jax.tree.leaves(tree) if x.ndim]


def assert_placed(case, shapes, places):
    """Asserts that every array, except for numbers, has the sharding of the param of its shape."""
    params, parts = map(jax.tree.leaves, (params_on_the_host(), shardings(case)))
    wanted = {p.shape: sharding for p, sharding in zip(params, parts, strict=True)}
    for (path, x), place in zip(
        jax.tree_util.tree_leaves_with_path(shapes), jax.tree.leaves(places), strict=True
    ):
        if x.ndim == 0:
            continue
        name = jax.tree_util.keystr(path)
        assert place.mesh.axis_names == AXES, name
        assert place.mesh.axis_types == (case.axis_type,) * 2, name
        # Equivalent specs may differ in how they are written, as P("data") and P("data", None).
        assert place.is_equivalent_to(wanted[x.shape], x.ndim), f"{name}: {place.spec}"
    assert len(arrays_of(shapes)) % len(wanted) == 0


def placed(tree):
    return jax.tree.map(lambda x: x.sharding, tree)


# At the start


MOMENTS_OF_OPTAX = (optax.TraceState, optax.ScaleByAdamState)


def without_inner(state):
    """A state without the moments of inner optimizers.

    optax makes them as zeros, of which every device holds all if a compiled `init` with Auto
    axes does not say otherwise.
    """

    def kept(node):
        if isinstance(node, TwoLoopState):
            return node._replace(inner_state=without_inner(node.inner_state))
        return () if isinstance(node, MOMENTS_OF_OPTAX) else node

    special = (TwoLoopState, *MOMENTS_OF_OPTAX)
    return jax.tree.map(kept, state, is_leaf=lambda node: isinstance(node, special))


@every_case
def test_an_eager_init(case):
    with jax.set_mesh(mesh_of(case.axis_type)):
        state = row_of(case).build(same).init(sharded_params(case))
    assert_placed(case, state, placed(state))


@every_case
def test_a_compiled_init(case):
    with jax.set_mesh(mesh_of(case.axis_type)):
        state = quick_jit(row_of(case).build(same).init)(sharded_params(case))
    state = state if case.axis_type == AxisType.Explicit else without_inner(state)
    assert_placed(case, state, placed(state))


@every_case
def test_an_abstract_init(case):
    """With Explicit axes, types tell the shardings; with Auto axes, the compiled program does."""
    init, params = row_of(case).build(same).init, abstract_params(case)
    mesh = mesh_of(case.axis_type)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(init, params)
        if case.axis_type == AxisType.Explicit:
            assert {x.sharding.mesh for x in arrays_of(state)} <= {mesh.abstract_mesh}
            specs = jax.tree.map(lambda x: x.sharding.spec if x.ndim else P(), state)
            places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)
        else:
            state, places = map(
                without_inner, (state, quick_jit(init).lower(params).compile().output_shardings)
            )
    assert_placed(case, state, places)


@every_row
def test_a_compiled_init_that_is_told_all_shardings(row):
    """The moments of inner optimizers as well, with Auto axes."""
    case, tx = Case(row.name, "both", AxisType.Auto), row.build(same)
    everywhere = NamedSharding(mesh_of(case.axis_type), P())
    wanted = optax.tree.map_params(
        tx,
        lambda _, sharding: sharding,
        jax.eval_shape(tx.init, abstract_params(case)),
        shardings(case),
        transform_non_params=lambda _: everywhere,
    )
    state = quick_jit(tx.init, out_shardings=wanted)(sharded_params(case))
    assert_placed(case, state, placed(state))


# Updates


def update(tx, grads, state, params, **sync):
    """An update with all extra arguments that a row may need."""
    extra = {"value": 2.0, "grad_fn": lambda params, i: jax.tree.map(jnp.sin, params)}
    return optax.with_extra_args_support(tx).update(grads, state, params, **extra, **sync)


def step_of(tx):
    def step(params, state, grads, sync=None):
        updates, state = update(
            tx, grads, state, params, **({} if sync is None else {"sync": sync})
        )
        return optax.apply_updates(params, updates), state

    return quick_jit(step, static_argnames="sync", donate_argnums=(0, 1))


def sharded_gradients(case, n):
    return jax.device_put(gradients_on_the_host(n), shardings(case))


@functools.cache
def compiled(case, sync=None):
    tx, params = row_of(case).build(same), sharded_params(case)
    arguments = (params, tx.init(params), sharded_gradients(case, 0))
    return step_of(tx).lower(*arguments, sync=sync).compile()


@functools.cache
def on_one_device(name):
    """The params and the slow weights after the last step."""
    row = next(row for row in TABLE if row.name == name)
    tx, params = row.build(same), jax.tree.map(jnp.array, params_on_the_host())
    step, state = step_of(tx), tx.init(params)
    for n in range(STEPS):
        params, state = step(params, state, gradients_on_the_host(n))
    return jax.device_get((params, slow_params(state, params) if row.has_slow else params))


@every_case
def test_updates_keep_all_shardings(case):
    with jax.set_mesh(mesh_of(case.axis_type)):
        params = sharded_params(case)
        state = row_of(case).build(same).init(params)
        for n in range(STEPS):
            given = arrays_of((params, state))
            params, state = compiled(case)(params, state, sharded_gradients(case, n))
            assert all(x.is_deleted() for x in given)
            assert_placed(case, (params, state), placed((params, state)))
        slow = slow_params(state, params) if row_of(case).has_slow else params
        assert_placed(case, slow, placed(slow))
    assert_close(jax.device_get((params, slow)), on_one_device(case.row), rtol=1e-5, atol=2e-6)


SYNCING = ("lookahead", "two_loop", "snoo", "slrla")
MANUAL = [
    (case, sync)
    for case in CASES
    if any(name in case.row for name in SYNCING) and case.layout == "both"
    for sync in (False, 2 if "multilayer" in case.row else True)
]
every_manual_step = pytest.mark.parametrize(
    ("case", "sync"), MANUAL, ids=[f"{case}-{sync}" for case, sync in MANUAL]
)


@every_manual_step
def test_manual_syncs_keep_all_shardings(case, sync):
    with jax.set_mesh(mesh_of(case.axis_type)):
        params = sharded_params(case)
        state = row_of(case).build(same).init(params)
        given = arrays_of((params, state))
        params, state = compiled(case, sync)(params, state, sharded_gradients(case, 0))
    assert all(x.is_deleted() for x in given)
    assert_placed(case, (params, state), placed((params, state)))


# Collectives in the compiled updates

COLLECTIVE = (
    r"= (.*) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)
# The norms over all leaves that a step takes.
NORMS = {"lookbehind-sgd": 2, "sam-adam": 1, "adagrad_norm": 1}


def collectives(program):
    """How many collectives of each kind there are, and the shapes of their results."""
    found = re.findall(COLLECTIVE, program.as_text())
    shapes = {shape for made, _ in found for shape in re.findall(r"\w+\[[\d,]*\]", made)}
    return collections.Counter(kind for _, kind in found), shapes


@every_case
def test_an_update_communicates_for_norms_only(case):
    """A norm costs one number per set of axes along which there are leaves in parts."""
    with jax.set_mesh(mesh_of(case.axis_type)):
        counts, shapes = collectives(compiled(case))
    reductions = NORMS.get(case.row, 0) * GROUPS[case.layout]
    assert counts == ({"all-reduce": reductions} if reductions else {})
    assert shapes == ({"f32[]"} if reductions else set())


@every_manual_step
def test_manual_syncs_do_not_communicate(case, sync):
    with jax.set_mesh(mesh_of(case.axis_type)):
        counts, _ = collectives(compiled(case, sync))
    assert not counts


def with_plain_sgd(case):
    """The transform of a case whose inner optimizer is stateless, so that it places nothing."""
    return row_of(case).build(lambda inner: optax.sgd(0.1))


every_row_of_both = pytest.mark.parametrize(
    "case", [case for case in CASES if case.layout == "both"], ids=str
)


@every_row_of_both
def test_gradients_on_every_device_are_cut_and_nothing_else(case):
    with jax.set_mesh(mesh_of(case.axis_type)):
        tx, params = with_plain_sgd(case), sharded_params(case)
        everywhere = NamedSharding(mesh_of(case.axis_type), P())
        grads = jax.device_put(gradients_on_the_host(0), everywhere)
        arguments = (params, tx.init(params), grads)
        program = step_of(tx).lower(*arguments).compile()
        counts, _ = collectives(program)
        assert set(counts) <= ({"all-reduce"} if case.row in NORMS else set())
        params, state = program(*arguments)
    assert_placed(case, (params, state), placed((params, state)))


@every_row_of_both
def test_gradients_in_parts_beside_params_on_every_device_stay_in_parts(case):
    """ZeRO-2, in which only the updates are gathered, by the addition to the params."""
    with jax.set_mesh(mesh_of(case.axis_type)):
        tx = with_plain_sgd(case)
        state, grads = tx.init(sharded_params(case)), sharded_gradients(case, 0)
        everywhere = NamedSharding(mesh_of(case.axis_type), P())
        params = jax.device_put(params_on_the_host(), everywhere)
        step = quick_jit(lambda *arguments: update(tx, *arguments))
        program = step.lower(grads, state, params).compile()
        counts, _ = collectives(program)
        assert set(counts) <= ({"all-reduce"} if case.row in NORMS else set())
        updates, state = program(grads, state, params)
    assert_placed(case, (updates, state), placed((updates, state)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: lookahead(optax.sgd(0.25), 2, 0.5),
        lambda: slrla_sgd(0.25, 0.5, 3, 2, 0.5),
        lambda: slrla_sgd(0.25, 0.5, None, 2, 0.5),
        lambda: adabound(0.25),
    ],
    ids=["lookahead", "slrla_sgd-own", "slrla_sgd-shared", "adabound"],
)
def test_gradients_on_every_device_for_params_in_parts(make):
    start, slope = np.arange(16.0, dtype=np.float32), np.ones(16, np.float32)

    def train(place, places):
        params, gradients = place(start, places[0]), place(slope, places[1])
        tx = make()
        state, path = tx.init(params), []
        for _ in range(4):
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            path.append(np.asarray(params))
        return path

    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spread = train(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), (P("x"), P()))
    np.testing.assert_allclose(spread, train(lambda x, _: jnp.asarray(x), (None, None)), rtol=1e-6)
