"""What every transform owes to the rest of optax, Flax and JAX.

Each contract is one test over the whole of `transforms_table.TABLE`, and compares with
a run of the same transform alone, or with a path written down.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import linen, nnx, struct
from flax.core import FrozenDict
from flax.training import train_state
from transforms_table import (
    PARAMS,
    STEPS,
    TABLE,
    Row,
    Run,
    adam,
    assert_close,
    assert_same_run,
    at_steps,
    device_params,
    differ,
    evaluated,
    gradients,
    no_extra,
    plain,
    quick_jit,
    run,
    run_row,
    same,
    sgd,
    target,
)

from slrla_jax import lookahead, multilayer_lookahead, slow_params, slrla_sgd, stagewise_prox


def rows(holds: Callable[[Row], bool] = lambda row: True) -> Any:
    """Runs a test on the rows of the table for which `holds(row)`."""
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
    """`run_row` without any compilation, one update after the other."""
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
    """What a run's path holds after step i."""
    return jax.tree.map(lambda path: path[i], tree)


def avals(tree: Any) -> list[Any]:
    return [(x.shape, x.dtype, x.weak_type) for x in map(jax.typeof, jax.tree.leaves(tree))]


@functools.cache
def _with_value(name: str, value: float | None) -> Run:
    row = next(row for row in TABLE if row.name == name)
    kwargs = {} if value is None else {row.hyperparameter: value}
    return run_row(row, row.inject(same, **kwargs), steps=12)


def with_value(row: Row, value: float | None = None) -> Run:
    """A run with a value of the row's hyperparameter, or its default."""
    return _with_value(row.name, value)


# An injected hyperparameter is a float32, where a number would be rounded later.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


# The table itself.


def test_the_rows_are_different_transforms():
    runs = [plain(row) for row in TABLE]
    for i, a in enumerate(runs):
        for b in runs[:i]:
            assert differ(a.params, b.params)


@rows(lambda row: row.has_slow)
def test_the_rows_sync_and_part(row):
    at_slow = jax.tree.map(lambda p, s: np.asarray(p == s), plain(row).params, plain(row).slow)
    together = np.logical_and(at_slow["w"].all((1, 2)), at_slow["b"].all(1))
    assert together.sum() >= 2
    assert not together.all()


# optax: other transformations around and inside.


@every_row
def test_chain_with_clipping_before(row):
    def clipped(params, i):
        return jax.tree.map(lambda g: jnp.clip(g, -0.5, 0.5), gradients(params, i))

    tx = row.build(same)
    chained = run_row(row, optax.chain(optax.clip(0.5), tx))
    assert_same_run(chained, run_row(row, tx, grads=clipped))
    assert differ(chained.params, plain(row).params)


@every_row
def test_multi_steps_around(row):
    def grads(params, i):  # parts 0, 1, 2 of one batch
        return jax.tree.map(lambda g: (i % 3) * g, gradients(params, i // 3))

    steps = optax.MultiSteps(row.build(same), 3)
    accumulated = run_row(
        row,
        # Its own `gradient_transformation()` takes no extra arguments.
        optax.GradientTransformationExtraArgs(steps.init, steps.update),
        grads=grads,
        steps=3 * STEPS,
        extra=lambda params, i: row.extra(params, i // 3),
    )
    assert_same_run(at_steps(accumulated, np.arange(2, 3 * STEPS, 3)), plain(row))
    # Between, nothing moves.
    for part in (0, 1):
        within = at_steps(accumulated, np.arange(3 + part, 3 * STEPS, 3))
        assert_same_run(within, at_steps(plain(row), np.arange(STEPS - 1)))


@rows_with_inner
def test_multi_steps_of_one_inside(row):
    tx = row.build(lambda inner: optax.MultiSteps(inner, 1).gradient_transformation())
    assert_same_run(run_row(row, tx), plain(row))


LOOKAHEADS = {
    "keep": lambda inner, k: lookahead(inner, 2 * k, 0.5),
    "reset": lambda inner, k: lookahead(inner, 2 * k, 0.5, inner_state="reset"),
    "pullback": lambda inner, k: lookahead(inner, 2 * k, 0.5, inner_state="pullback"),
    "multilayer": lambda inner, k: multilayer_lookahead(inner, (k, 2), (0.5, 0.6)),
    "stagewise_prox": lambda inner, k: optax.chain(stagewise_prox(0.8, 2 * k), inner),
}


@pytest.mark.parametrize("inner", [sgd, adam])
@pytest.mark.parametrize("name", LOOKAHEADS)
def test_multi_steps_inside_with_the_periods_multiplied(name, inner):
    build = LOOKAHEADS[name]
    plain_run = run(build(inner(), 1), observe=lambda state, params: params)
    accumulated = run(
        build(optax.MultiSteps(inner(), 2).gradient_transformation(), 2),
        grads=lambda params, i: gradients(params, i // 2),
        steps=2 * STEPS,
        observe=lambda state, params: params,
    )
    assert_same_run(at_steps(accumulated, np.arange(1, 2 * STEPS, 2)), plain_run)


@pytest.mark.parametrize("inner_state", ["keep", "reset", "pullback"])
def test_a_sync_does_not_lose_half_an_accumulation(inner_state):
    # SGD steps at 2, 4 and 6; syncs at 3 and 6.
    inner = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    path = run(
        lookahead(inner, 3, 0.5, inner_state=inner_state),
        jnp.array(0.0),
        steps=6,
        grads=lambda params, i: jnp.ones_like(params),
    )
    np.testing.assert_array_equal(path.params, [0, -1, -0.5, -1.5, -1.5, -1.5])
    np.testing.assert_array_equal(path.slow, [0, 0, -0.5, -0.5, -0.5, -1.5])


@every_row
def test_one_group_of_a_partition(row):
    divided = optax.partition(
        {"this": row.build(same), "other": optax.sgd(0.3)}, {"w": "this", "b": "other"}
    )
    both = run_row(row, divided, extra=extra_for_w(row))
    this, other = plain(row, ["w"]), run(optax.sgd(0.3), observe=lambda state, params: params)
    assert_close(both.params, {"w": this.params["w"], "b": other.params["b"]})
    assert_close(both.slow, {"w": this.slow["w"], "b": other.params["b"]})


@every_row
def test_masked(row):
    # What is masked out gets its gradient for an update, so here a constant.
    def grads(params, i):
        return {"w": gradients(params, i)["w"], "b": jnp.full_like(params["b"], 0.25)}

    tx = optax.masked(row.build(same), {"w": True, "b": False})
    masked, this = run_row(row, tx, grads=grads, extra=extra_for_w(row)), plain(row, ["w"])
    b = jnp.array(PARAMS["b"]) + 0.25 * jnp.arange(1, STEPS + 1)[:, None]
    assert_close(masked.params, {"w": this.params["w"], "b": b})
    assert_close(masked.slow, {"w": this.slow["w"], "b": b})


def extra_for_w(row: Row) -> Callable[[Any, Any], dict[str, Any]]:
    return lambda params, i: row.extra({"w": params["w"]}, i)


@every_row
def test_apply_if_finite_around_leaves_the_step_out(row):
    bad = 3

    def step(i):
        return jnp.where(i > bad, i - 1, i)

    def grads(params, i):
        good = gradients(params, step(i))
        return good | {"b": jnp.where(i == bad, jnp.nan, good["b"])}

    guarded = run_row(
        row,
        optax.apply_if_finite(row.build(same), 5),
        grads=grads,
        steps=STEPS + 1,
        extra=lambda params, i: row.extra(params, step(i)),
    )
    assert_same_run(at_steps(guarded, np.delete(np.arange(STEPS + 1), bad)), plain(row))
    assert_same_run(at_steps(guarded, [bad]), at_steps(plain(row), [bad - 1]))


@rows_with_inner
def test_apply_if_finite_inside_is_a_step_without_movement(row):
    def is_bad(i):  # a sync of periods of 2 and 3, and a step between the syncs
        return (i == 2) | (i == 5)

    def grads(params, i):
        return gradients(params, i) | {"b": jnp.where(is_bad(i), jnp.nan, params["b"])}

    guarded = run_row(row, row.build(lambda inner: optax.apply_if_finite(inner, 5)), grads=grads)
    for leaf in jax.tree.leaves((guarded.params, guarded.slow)):
        assert np.isfinite(leaf).all()

    def finite_grads(params, i):
        return gradients(params, i) | {"b": params["b"]}

    skipping = row.build(lambda inner: optax.conditionally_mask(inner, lambda i: ~is_bad(i)))
    assert_same_run(guarded, run_row(row, skipping, grads=finite_grads))


@every_row
def test_inject_hyperparams(row):
    tx = row.inject(optax.inject_hyperparams)
    assert_same_run(run_row(row, tx, steps=12), with_value(row), **ROUNDING)
    # With the state made outside of a compiled program.
    state = tx.init(device_params())
    assert_same_run(run_row(row, tx, steps=12, state=state), with_value(row), **ROUNDING)


@pytest.mark.parametrize(
    "factory",
    [
        lambda inject: inject(lookahead)(optax.sgd(0.1)),
        lambda inject: inject(multilayer_lookahead)(adam()),
        lambda inject: inject(slrla_sgd)(0.1),
        lambda inject: optax.chain(inject(stagewise_prox)(0.1, 5), optax.sgd(0.1)),
    ],
    ids=["lookahead", "multilayer_lookahead", "slrla_sgd", "stagewise_prox"],
)
def test_inject_hyperparams_with_the_default_arguments(factory):
    def final(tx, state):
        return run(tx, steps=26, state=state, observe=lambda state, params: params).params

    tx = factory(optax.inject_hyperparams)
    assert_close(final(tx, tx.init(device_params())), final(factory(same), None))


@every_row
def test_an_injected_hyperparameter_can_be_changed(row):
    tx = row.inject(optax.inject_hyperparams)
    state = optax.tree.set(tx.init(device_params()), **{row.hyperparameter: jnp.array(row.value)})
    changed = run_row(row, tx, steps=12, state=state)
    assert_same_run(changed, with_value(row, row.value), **ROUNDING)
    assert differ(changed.params, with_value(row).params)


@rows(lambda row: row.takes_schedule)
def test_a_schedule_is_a_hyperparameter_changed_during_training(row):
    name, value = row.hyperparameter, row.value
    tx = row.inject(optax.inject_hyperparams)
    state = tx.init(device_params())
    default = optax.tree.get(state, name)
    scheduled = row.inject(same, **{name: lambda count: jnp.where(count < 6, default, value)})

    first = run_row(row, tx, steps=6, state=state)
    second = run_row(
        row,
        tx,
        jax.tree.map(lambda path: path[-1], first.params),
        steps=6,
        state=optax.tree.set(first.state, **{name: jnp.array(value)}),
        grads=lambda params, i: gradients(params, i + 6),
        extra=lambda params, i: row.extra(params, i + 6),
    )
    whole = run_row(row, scheduled, steps=12)
    assert_same_run(first, at_steps(whole, np.arange(6)), **ROUNDING)
    assert_same_run(second, at_steps(whole, np.arange(6, 12)), **ROUNDING)


# Extra arguments.


def loss(params: Any) -> jax.Array:
    """Steeper than a quadratic, so that Polyak's step size depends on its value."""
    return sum(jnp.sum((p - target(0, p)) ** 4) for p in jax.tree.leaves(params)) / 4


def loss_gradients(params: Any, i: Any) -> Any:
    return jax.grad(loss)(params)


def knowing(tx: Any, extra: Callable[[Any, Any], dict[str, Any]]) -> Any:
    """`tx`, where it works its extra arguments out by itself."""

    def update(updates, state, params):
        return tx.update(updates, state, params, **extra(params, 0))

    return optax.GradientTransformation(tx.init, update)


@rows(lambda row: row.has_inner and not row.stages)
@pytest.mark.parametrize(
    ("inner", "extra"),
    [
        (optax.polyak_sgd(0.5), lambda params, i: {"value": loss(params)}),
        (
            optax.contrib.sam(
                optax.sgd(0.02),
                optax.chain(optax.contrib.normalize(), optax.sgd(0.05)),
                opaque_mode=True,
            ),
            lambda params, i: {"grad_fn": loss_gradients},
        ),
    ],
    ids=["value-polyak_sgd", "grad_fn-sam"],
)
def test_inner_optimizers_that_need_extra_arguments(row, inner, extra):
    passed = run_row(row, row.build(lambda _: inner), grads=loss_gradients, extra=extra)
    knew = run_row(row, row.build(lambda _: knowing(inner, extra)), grads=loss_gradients)
    assert_same_run(passed, knew)


@rows_with_inner
def test_extra_arguments_speak_of_what_the_inner_optimizer_minimises(row):
    heard = []
    value_of, grads_of = quick_jit(loss), quick_jit(loss_gradients)

    def listening(inner):
        def update(updates, state, params, **extra):
            heard.append((params, extra))
            return inner.update(updates, state, params)

        return optax.GradientTransformationExtraArgs(inner.init, update)

    params = device_params()
    tx = row.build(listening)
    state, path = tx.init(params), []
    for i in range(STEPS):
        extra = {"value": value_of(params), "grad_fn": grads_of, "unheard_of": "x"}
        updates, state = tx.update(gradients(params, i), state, params, **extra)
        path.append(params)
        params = optax.apply_updates(params, updates)

    assert len(heard) == STEPS
    ends = np.cumsum([stage.length for stage in row.stages])
    for i, (params, extra) in enumerate(heard):
        assert params is path[i]
        assert extra["unheard_of"] == "x"
        # F + (β/2) ‖v − a‖², with the anchor a at the beginning of the stage.
        stage = min(int(np.sum(ends <= i)), len(ends) - 1)
        beta = row.stages[stage].beta if row.stages else 0.0
        anchor = path[ends[stage - 1] if stage > 0 else 0]
        away = jax.tree.map(lambda v, a: v - a, params, anchor)
        value = value_of(params) + beta / 2 * sum(jnp.sum(d**2) for d in jax.tree.leaves(away))
        assert_close(extra["value"], value)

        there = jax.tree.map(lambda p: p + 0.1, params)
        expected = jax.tree.map(
            lambda g, v, a, beta=beta: g + beta * (v - a), grads_of(there, 0), there, anchor
        )
        assert_close(extra["grad_fn"](there, 0), expected, rtol=1e-4)


@every_row
def test_extra_arguments_that_nobody_knows_are_ignored(row):
    def extra(params, i):
        return {"unheard_of": "x", "batch_stats": {"mean": jnp.nan}} | row.extra(params, i)

    assert_same_run(run_row(row, row.build(same), extra=extra), plain(row))


# The state as a tree.


@every_row
def test_map_params_sees_every_leaf_like_a_param(row):
    tx = row.build(same)
    state = tx.init(device_params())
    mapped = optax.tree.map_params(
        tx, lambda x: x + 1, state, transform_non_params=lambda x: ("not a param", x)
    )
    expected = jax.tree.map(
        lambda x: x + 1 if x.shape in [(2, 3), (2,)] else ("not a param", x), state
    )
    assert jax.tree.structure(mapped) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, mapped, expected)
    assert any(leaf.shape == (2, 3) for leaf in jax.tree.leaves(state))

    # With a tree like the params beside it.
    names = {"w": "of w", "b": "of b"}
    named = optax.tree.map_params(tx, lambda x, name: name, state, names)
    for leaf, name in zip(jax.tree.leaves(state), jax.tree.leaves(named), strict=True):
        assert (
            leaf.shape not in [(2, 3), (2,)] or name == {(2, 3): "of w", (2,): "of b"}[leaf.shape]
        )


@every_row
def test_eval_shape_of_init(row):
    tx = row.build(same)
    concrete = tx.init(device_params())
    abstract = jax.eval_shape(tx.init, device_params())
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    assert avals(abstract) == avals(concrete)


@every_row
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_update_keeps_shapes_dtypes_and_weak_types(row, dtype):
    tx = row.build(same)
    params = jax.tree.map(lambda p: jnp.array(p, dtype), PARAMS)
    state = tx.init(params)
    tx, extra = optax.with_extra_args_support(tx), row.extra(params, 0)
    grads = gradients(params, 0)
    updates, later = tx.update(grads, state, params, **extra)
    assert jax.tree.structure(later) == jax.tree.structure(state)
    assert avals(later) == avals(state)
    assert avals(updates) == avals(params)
    updates, later = jax.eval_shape(lambda *args: tx.update(*args, **extra), grads, state, params)
    assert jax.tree.structure(later) == jax.tree.structure(state)
    assert avals(later) == avals(state)
    assert avals(updates) == avals(params)


@every_row
@pytest.mark.parametrize("empty", [{}, (), {"a": ()}], ids=repr)
def test_empty_trees(row, empty):
    tx = optax.with_extra_args_support(row.build(same))
    params, state = empty, tx.init(empty)
    if row.has_slow:
        assert slow_params(state, params) == empty
    for _ in range(3):
        updates, state = tx.update(empty, state, params, **row.extra(params, 0))
        params = optax.apply_updates(params, updates)
        assert params == empty
        if row.has_slow:
            assert slow_params(state, params) == empty


@every_row
def test_leaves_that_are_none(row):
    with_none = run_row(row, row.build(same), {"none": None, **device_params()})
    for tree in (with_none.params, with_none.slow):
        assert tree["none"] is None
    without = {key: with_none.params[key] for key in PARAMS}
    slow = {key: with_none.slow[key] for key in PARAMS}
    assert_same_run(Run(without, slow, None), plain(row))


class Pair(NamedTuple):
    value: Any
    key: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    value: Any
    idx: Any


@struct.dataclass
class FlaxBox:
    value: Any
    name: Any


CONTAINERS = {
    "all in one": lambda w, b: FrozenDict({"a": Box(Pair([w], ()), FlaxBox({"value": b}, None))}),
    "none": lambda w, b: w,
}


@every_row
@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(row, name):
    leaves = ["w"] if name == "none" else ["w", "b"]

    def contained(tree):
        return CONTAINERS[name](**({"b": None} | tree))

    actual, expected = run_row(row, row.build(same), contained(device_params())), plain(row, leaves)
    assert_close(actual.params, contained(expected.params))
    assert_close(actual.slow, contained(expected.slow))


# The params as numbers.


@every_row
def test_numpy_params(row):
    assert_same_run(by_hand(row, row.build(same), PARAMS, gradients_of_arrays), plain(row))


def gradients_of_arrays(params: Any, i: int) -> Any:
    return jax.tree.map(np.asarray, gradients(params, i))


@every_row
def test_python_floats_as_params(row):
    floats = {"w": 0.5, "b": -2.0}
    arrays = jax.tree.map(lambda x: jnp.array(x, jnp.float32), floats)
    assert_same_run(by_hand(row, row.build(same), floats), run_row(row, row.build(same), arrays))


@rows(lambda row: row.splits)
def test_complex_params_are_two_real_ones(row):
    # Adam's second moment joins the two parts of a number, so momentum instead.
    tx = row.build(lambda inner: sgd())
    real = {"re": jnp.array([0.5, 2.0]), "im": jnp.array([-1.0, 0.25])}
    apart = run_row(row, tx, real)
    together = run_row(row, tx, {"z": real["re"] + 1j * real["im"]})
    assert_close(together.params, {"z": apart.params["re"] + 1j * apart.params["im"]})
    assert_close(together.slow, {"z": apart.slow["re"] + 1j * apart.slow["im"]})


@every_row
def test_bfloat16_params(row):
    narrow = run_row(
        row, row.build(same), jax.tree.map(lambda p: jnp.array(p, jnp.bfloat16), PARAMS)
    )
    slow_dtype = jnp.float32 if "slow_dtype" in row.name else jnp.bfloat16
    wide = plain(row)
    expected = jax.tree.map(lambda p: p.astype(jnp.bfloat16), wide.params)
    assert_close(narrow.params, expected, rtol=0.05, atol=0.05)
    expected = jax.tree.map(lambda p: p.astype(slow_dtype), wide.slow)
    assert_close(narrow.slow, expected, rtol=0.05, atol=0.05)


def test_integer_params_are_left_to_the_inner_optimizer():
    # They go as they are told, by 1 and by 2; between integers there is nothing to take.
    grads = {"int": jnp.array([1, 2]), "float": jnp.array(-1.0)}
    params = {"int": jnp.array([0, 10]), "float": jnp.array(0.0)}
    told = np.array([0, 10]) + np.arange(1, 7)[:, None] * [1, 2]
    at_syncs = [[0, 10], [0, 10], told[2], told[2], told[2], told[5]]
    inner = optax.GradientTransformation(optax.init_empty_state, lambda g, state, p: (g, state))
    for tx in (
        lookahead(inner, 3, 0.5),
        lookahead(inner, 3, 0.5, inner_state="reset", slow_dtype="float32"),
        multilayer_lookahead(inner, (1, 3), (1.0, 0.5)),
        optax.chain(stagewise_prox(0.25, 3), lookahead(inner, 3, 0.5)),
    ):
        moved = run(tx, params, steps=6, grads=lambda params, i: grads)
        assert moved.params["int"].dtype == moved.slow["int"].dtype == jnp.int32
        np.testing.assert_array_equal(moved.params["int"], told)
        np.testing.assert_array_equal(moved.slow["int"], at_syncs)


# Integers, flags and random keys in the inner optimizer's state.


@rows_with_inner
def test_noise_never_repeats_and_goes_on_fading(row):
    noise = optax.add_noise(0.1, 0.5, jax.random.key(7))

    def seen(tx):
        def observe(state, params):
            _, state = optax.tree.get_all_with_path(state, "AddNoiseState")[0]
            return jax.random.key_data(state.rng_key), state.count

        return by_hand(row, tx, device_params(), observe=observe).slow

    keys, counts = seen(row.build(lambda inner: optax.chain(noise, inner)))
    np.testing.assert_array_equal(keys, seen(optax.chain(noise))[0])
    assert len(np.unique(keys, axis=0)) == STEPS
    np.testing.assert_array_equal(counts, np.arange(1, STEPS + 1))


@rows_with_inner
def test_schedules_inside_go_on(row):
    def counts(state, params):
        found = optax.tree.get_all_with_path(state, "ScaleByScheduleState")
        # The moments kept for a pullback have None in its place.
        return jnp.stack([s.count for _, s in found if s.count is not None])

    scaled = optax.scale_by_schedule(lambda count: 0.01 * (count + 1))
    tx = row.build(lambda inner: optax.chain(inner, scaled))
    seen = run(tx, observe=counts).slow
    np.testing.assert_array_equal(
        seen, np.broadcast_to(np.arange(1, STEPS + 1)[:, None], seen.shape)
    )


class MixedState(NamedTuple):
    key: jax.Array
    raw_key: jax.Array
    flag: jax.Array
    count: jax.Array
    moment: Any


def mixed() -> optax.GradientTransformation:
    """Adds one to its moment every step, and moves by nothing."""

    def init(params):
        return MixedState(
            key=jax.random.key(1),
            raw_key=jax.random.key_data(jax.random.key(2)),
            flag=jnp.array(False),
            count=jnp.array(0),
            moment=optax.tree.zeros_like(params),
        )

    def update(updates, state, params=None):
        return optax.tree.zeros_like(updates), MixedState(
            key=jax.random.split(state.key)[0],
            raw_key=jax.random.key_data(
                jax.random.split(jax.random.wrap_key_data(state.raw_key))[0]
            ),
            flag=~state.flag,
            count=state.count + 1,
            moment=jax.tree.map(lambda m: m + 1, state.moment),
        )

    return optax.GradientTransformation(init, update)


@pytest.mark.parametrize(
    ("inner_state", "counts", "moments"),
    [
        ("keep", [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7]),
        ("reset", [1, 2, 0, 1, 2, 0, 1], [1, 2, 0, 1, 2, 0, 1]),
        # 3 → 1.5, then 4.5 → 1.5 + (4.5 − 1.5) / 2.
        ("pullback", [1, 2, 3, 4, 5, 6, 7], [1, 2, 1.5, 2.5, 3.5, 3, 4]),
    ],
)
@pytest.mark.parametrize("wrapped", ["alone", "multi_steps", "inject_hyperparams", "masked"])
def test_moments_flags_counts_and_keys_at_a_sync(inner_state, counts, moments, wrapped):
    around = {
        "alone": lambda inner: inner,
        "multi_steps": lambda inner: optax.MultiSteps(inner, 1).gradient_transformation(),
        "inject_hyperparams": lambda inner: optax.inject_hyperparams(lambda one: inner)(1.0),
        "masked": lambda inner: optax.masked(inner, {"w": True, "b": False}),
    }[wrapped]

    def seen(state, params):
        # The one in use comes before those moments of it that are kept for a pullback.
        _, state = optax.tree.get_all_with_path(state, "MixedState")[0]
        keys = jax.random.key_data(state.key), state.raw_key
        return *keys, state.flag, state.count, state.moment["w"][0, 0]

    def path(tx):
        return run(tx, steps=7, observe=seen).slow

    tx = lookahead(around(mixed()), 3, 0.5, inner_state=inner_state)
    *keys, flag, count, moment = path(tx)
    np.testing.assert_array_equal(count, counts)
    np.testing.assert_array_equal(flag, np.array(counts) % 2)
    np.testing.assert_array_equal(moment, moments)
    for key, expected in zip(keys, path(mixed())[:2], strict=True):
        np.testing.assert_array_equal(key, expected)
        assert len(np.unique(key, axis=0)) == 7


# Flax.


@rows(lambda row: row.extra is no_extra)  # which a TrainState passes on none of
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
def test_scan_is_one_update_after_the_other(row):
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
