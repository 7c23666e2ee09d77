"""Contracts of every transform with the other transformations of optax.

Each contract is one test over `transforms_table.TABLE`. It compares with a run of the same
transform alone, or with a path that is written out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from contracts import (
    ROUNDING,
    every_row,
    rows,
    rows_with_inner,
    with_value,
)
from transforms_table import (
    PARAMS,
    STEPS,
    TABLE,
    Row,
    adam,
    assert_close,
    assert_same_run,
    at_steps,
    device_params,
    differ,
    gradients,
    plain,
    quick_jit,
    run,
    run_row,
    same,
    sgd,
    target,
)

from slrla_jax import adabound, adaloss, lookahead, multilayer_lookahead, slrla_sgd, stagewise_prox

# The table itself.


def test_the_rows_are_different_transforms():
    runs = [plain(row) for row in TABLE]
    for i, a in enumerate(runs):
        for b in runs[:i]:
            assert differ(a.params, b.params)


@rows(lambda row: row.has_slow and not row.averages)
def test_the_rows_sync_and_differ_between_syncs(row):
    at_slow = jax.tree.map(lambda p, s: np.asarray(p == s), plain(row).params, plain(row).slow)
    together = np.logical_and(at_slow["w"].all((1, 2)), at_slow["b"].all(1))
    assert together.sum() >= 2
    assert not together.all()


# Other transformations of optax, around and inside.


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
        # `gradient_transformation()` accepts no extra arguments.
        optax.GradientTransformationExtraArgs(steps.init, steps.update),
        grads=grads,
        steps=3 * STEPS,
        extra=lambda params, i: row.extra(params, i // 3),
    )
    assert_same_run(at_steps(accumulated, np.arange(2, 3 * STEPS, 3)), plain(row))
    # In between, nothing moves.
    for part in (0, 1):
        within = at_steps(accumulated, np.arange(3 + part, 3 * STEPS, 3))
        assert_same_run(within, at_steps(plain(row), np.arange(STEPS - 1)))


@rows_with_inner
def test_multi_steps_of_one_inside(row):
    tx = row.build(lambda inner: optax.MultiSteps(inner, 1).gradient_transformation())
    assert_same_run(run_row(row, tx), plain(row))


LOOKAHEADS = {
    "keep": lambda inner, k: lookahead(inner, 2 * k, 0.5),
    "reset": lambda inner, k: lookahead(inner, 2 * k, 0.5, sync_moments="reset"),
    "pullback": lambda inner, k: lookahead(inner, 2 * k, 0.5, sync_moments="pullback"),
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


@pytest.mark.parametrize("sync_moments", ["keep", "reset", "pullback"])
def test_a_sync_does_not_lose_half_an_accumulation(sync_moments):
    # SGD steps at 2, 4 and 6; syncs at 3 and 6.
    inner = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    path = run(
        lookahead(inner, 3, 0.5, sync_moments=sync_moments),
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
    # For masked leaves the update is the gradient itself, which is constant here.
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
def test_apply_if_finite_around_skips_the_step(row):
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
    # With the state made outside a compiled program.
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


@every_row
def test_optaxs_own_contract_for_inject_hyperparams(row):
    """The updates are the same, and the inner state is that of the transformation itself."""
    params = device_params()
    grads, extra = gradients(params, 0), row.extra(params, 0)

    def updated(tx):
        tx = optax.with_extra_args_support(tx)
        return quick_jit(lambda: tx.update(grads, tx.init(params), params, **extra))()

    updates, state = updated(row.inject(same))
    injected_updates, injected = updated(row.inject(optax.inject_hyperparams))

    def is_injected(node):
        return isinstance(node, optax.InjectStatefulHyperparamsState)

    inside = jax.tree.map(
        lambda node: node.inner_state if is_injected(node) else node, injected, is_leaf=is_injected
    )
    assert_close(injected_updates, updates, **ROUNDING)
    assert_close(inside, state, **ROUNDING)


@pytest.mark.parametrize("kwargs", [{}, {"momentum": 0.0}, {"weight_decay": 0.1}, {"beta": 0.0}])
@pytest.mark.parametrize("anchor_period", [None, 5])
def test_the_structure_of_slrla_sgd_depends_on_no_number(kwargs, anchor_period):
    kwargs = {"anchor_period": anchor_period} | kwargs
    state = slrla_sgd(0.1, **kwargs).init(device_params())
    injected = optax.inject_hyperparams(slrla_sgd)(0.1, **kwargs).init(device_params())
    assert jax.tree.structure(injected.inner_state) == jax.tree.structure(state)
    assert jax.tree.structure(state) == jax.tree.structure(
        slrla_sgd(0.3, anchor_period=anchor_period).init(device_params())
    )


NARROW = ["bfloat16", "float16", "float8_e4m3fn"]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
@rows(lambda row: row.name != "adabound" and "slow_dtype" not in row.name and not row.averages)
def test_hyperparameters_in_the_params_narrow_dtype(row, dtype, jitted):
    """As `inject_hyperparams` makes them: checks and steps accept every real dtype."""
    params = jax.tree.map(lambda p: p.astype(dtype), device_params())
    tx = optax.with_extra_args_support(row.inject(optax.inject_hyperparams))
    grads = jax.tree.map(jnp.ones_like, params)
    extra = {"value": 0.0, "grad_fn": lambda params, i: grads}
    init = quick_jit(tx.init) if jitted else tx.init
    updates, _ = tx.update(grads, init(params), params, **extra)
    for leaf in jax.tree.leaves(updates):
        assert leaf.dtype == dtype
        assert jnp.isfinite(leaf.astype(jnp.float32)).all()


def test_the_settings_of_adabound_in_half_precision():
    params = jnp.ones(3, jnp.float16)
    # ε = 1e-8 rounds to 0 there, which is a valid value.
    tx = optax.inject_hyperparams(adabound)(0.25)
    updates, _ = tx.update(params, tx.init(params), params)
    assert (updates < 0).all()
    # β₂ = 0.999 rounds to 1 in bfloat16, which is not.
    with pytest.raises(ValueError, match=r"`b2`.*\[0, 1\).*bfloat16.*`hyperparam_dtype`"):
        optax.inject_hyperparams(adabound)(0.25).init(params.astype(jnp.bfloat16))
    kept = optax.inject_hyperparams(adabound, hyperparam_dtype=jnp.float32)(0.25)
    kept.init(params.astype(jnp.bfloat16))


def test_long_periods_are_not_rounded_with_the_params():
    """Counts are compared with injected periods in full precision; bfloat16 cannot hold 257."""
    params = jnp.ones(1, jnp.bfloat16)

    def syncs(tx):
        def step(state, _):
            _, state = tx.update(params, state, params)
            return state, optax.tree.get(state, "synced")

        return np.flatnonzero(jax.lax.scan(step, tx.init(params), length=600)[1]) + 1

    tx = optax.inject_hyperparams(lookahead)(optax.sgd(0.0), sync_period=258)
    np.testing.assert_array_equal(syncs(tx), [258, 516])

    def anchors(tx):
        def step(state, n):
            now = n * jnp.ones(1)
            _, state = tx.update(now, state, now)
            return state, optax.tree.get(state, "anchor_params")[0]

        state = tx.init(jnp.ones(1, jnp.bfloat16))
        state = optax.tree.set(state, anchor_params=jnp.zeros(1))
        return np.unique(jax.lax.scan(step, state, jnp.arange(600.0))[1])

    tx = optax.inject_hyperparams(stagewise_prox)(0.1, stage_length=258)
    np.testing.assert_array_equal(anchors(tx), [0, 258, 516])


# Extra arguments.


def loss(params: Any) -> jax.Array:
    """A loss steeper than a quadratic, so that Polyak's step size depends on its value."""
    return sum(jnp.sum((p - target(0, p)) ** 4) for p in jax.tree.leaves(params)) / 4


def loss_gradients(params: Any, i: Any) -> Any:
    return jax.grad(loss)(params)


def knowing(tx: Any, extra: Callable[[Any, Any], dict[str, Any]]) -> Any:
    """Wraps `tx` so that it computes its extra arguments itself."""

    def update(updates, state, params):
        return tx.update(updates, state, params, **extra(params, 0))

    return optax.GradientTransformation(tx.init, update)


@rows(lambda row: row.has_inner and not row.stages and not row.averages)
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


@rows(lambda row: row.has_inner and not row.averages)
def test_extra_arguments_refer_to_the_loss_that_the_inner_optimizer_minimises(row):
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
        # F + (β/2) ‖v − a‖², with the anchor a at the start of the stage.
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
def test_unknown_extra_arguments_are_ignored(row):
    def extra(params, i):
        return {"unheard_of": "x", "batch_stats": {"mean": jnp.nan}} | row.extra(params, i)

    assert_same_run(run_row(row, row.build(same), extra=extra), plain(row))


def test_extra_arguments_reach_multi_steps_inside():
    """The wrapper itself accepts them; its `gradient_transformation()` does not."""
    params = jnp.ones(2)
    tx = lookahead(optax.MultiSteps(adaloss(0.5), 2), 2, 0.5)
    state = tx.init(params)
    for value in (1.0, 3.0):
        updates, state = tx.update(params, state, params, value=value)
    assert optax.tree.get(state, "b_squared") == 4
    np.testing.assert_allclose(updates, 0.5 * -0.5 / np.sqrt(4), rtol=1e-6)
