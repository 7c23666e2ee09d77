"""What a sync does to the inner optimizer's state, and how a state declares its moments."""

import collections
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from transforms_table import quick_jit

from slrla_jax import (
    Stage,
    declare_moments,
    lookahead,
    lookbehind,
    multilayer_lookahead,
    slow_params,
    slrla,
    stagewise_prox,
)

PARAMS = {"w": np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], np.float32)}


def gradient(params, step):
    return jax.tree.map(lambda p: p - 2 * jnp.cos(step + jnp.arange(6.0).reshape(2, 3)), params)


# A reset is a restart

DIRECTIONS = {
    "momentum": optax.trace(0.9),
    "nesterov": optax.trace(0.9, nesterov=True),
    "ema": optax.ema(0.9),
    "adam": optax.scale_by_adam(),
    "amsgrad": optax.scale_by_amsgrad(),
    "belief": optax.scale_by_belief(),
    "yogi": optax.scale_by_yogi(),
    "radam": optax.scale_by_radam(threshold=1.0),
    "adan": optax.scale_by_adan(),
    "adadelta": optax.scale_by_adadelta(),
    "ademamix": optax.contrib.scale_by_ademamix(),
    "factored": optax.scale_by_factored_rms(min_dim_size_to_factor=2),
    "unfactored": optax.scale_by_factored_rms(),
    "lion": optax.scale_by_lion(),
    "novograd": optax.scale_by_novograd(),
    "optimistic": optax.scale_by_optimistic_gradient(),
    "stddev": optax.scale_by_stddev(),
    "stddev with a count": optax.scale_by_stddev(bias_correction=True),
    "rms": optax.scale_by_rms(),
    "rms with a count": optax.scale_by_rms(bias_correction=True),
    "rss": optax.scale_by_rss(),
    "sm3": optax.scale_by_sm3(),
}


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_reset_restarts_the_moments(name):
    """With α = 1, the steps after a sync are those of a new optimizer started there."""
    inner = optax.chain(DIRECTIONS[name], optax.scale(-0.1))
    tx = lookahead(inner, 3, 1.0, sync_moments="reset")
    params = expected = jax.tree.map(jnp.asarray, PARAMS)
    state, update, alone = tx.init(params), quick_jit(tx.update), quick_jit(inner.update)
    for step in range(8):
        if step % 3 == 0:
            inner_state = inner.init(expected)
        updates, inner_state = alone(gradient(expected, step), inner_state, expected)
        expected = optax.apply_updates(expected, updates)
        updates, state = update(gradient(params, step), state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5, atol=1e-6)


class Centre(NamedTuple):
    """A moment that starts at the params, and one that does not."""

    centre: Any
    sum: Any


declare_moments("centre", "sum")(Centre)


def centred():
    def init(params):
        return Centre(jax.tree.map(jnp.array, params), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params):
        total = jax.tree.map(lambda s, g: s + g, state.sum, updates)
        return jax.tree.map(lambda g: -g, updates), Centre(state.centre, total)

    return optax.GradientTransformation(init, update)


def test_a_reset_makes_the_moments_of_the_params_after_the_sync():
    tx = lookahead(centred(), 2, 0.25, sync_moments="reset")
    params = jnp.array(0.0)
    state, seen = tx.init(params), []
    for _ in range(5):
        updates, state = tx.update(jnp.array(1.0), state, params)
        params = optax.apply_updates(params, updates)
        seen.append((float(params), float(state.inner_state.centre)))
    # −1 → −2 ⇒ −½ → −1½ → −2½ ⇒ −1 → −2
    assert seen == [(-1, 0), (-0.5, -0.5), (-1.5, -0.5), (-1, -1), (-2, -1)]


@pytest.mark.parametrize("sync_moments", ["keep", "reset", "pullback"])
def test_a_model_may_hold_functions(sync_moments):
    """The state is made for the arrays alone, and `update` receives the whole model."""
    tx = lookahead(optax.adam(0.1), 2, 0.5, sync_moments=sync_moments)
    arrays = {"w": jnp.array([1.0, -2.0]), "activation": None}
    expected = {"w": arrays["w"]}
    alone = lookahead(optax.adam(0.1), 2, 0.5, sync_moments=sync_moments)
    state, expected_state = tx.init(arrays), alone.init(expected)
    for _ in range(5):
        model = {"w": arrays["w"], "activation": jnp.tanh}
        updates, state = tx.update({"w": model["w"], "activation": None}, state, model)
        assert updates["activation"] is None
        arrays = {"w": arrays["w"] + updates["w"], "activation": None}
        updates, expected_state = alone.update(expected, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
        np.testing.assert_array_equal(arrays["w"], expected["w"])


@pytest.mark.parametrize("slow_dtype", [None, "float32"])
def test_a_part_of_the_params_without_gradients_stays(slow_dtype):
    tx = lookahead(optax.sgd(1.0), 2, 0.5, slow_dtype=slow_dtype)
    params = {"w": jnp.zeros((), jnp.bfloat16), "frozen": jnp.ones(3, jnp.bfloat16)}
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update({"w": jnp.ones((), jnp.bfloat16), "frozen": None}, state, params)
        assert updates["frozen"] is None
        params = params | {"w": params["w"] + updates["w"]}
    assert params["w"] == -1
    slow = slow_params(state, params)
    assert slow["w"] == -1
    np.testing.assert_array_equal(np.asarray(slow["frozen"], float), [1, 1, 1])


# A pullback


def test_a_pullback_of_half_precision_is_computed_in_float32():
    """Half of the way back from 60,000 to −60,000: the difference overflows float16."""
    inner = optax.chain(optax.trace(0.0), optax.scale(0.0))
    tx = lookahead(inner, 1, lambda step: jnp.where(step == 0, 1.0, 0.5), sync_moments="pullback")
    params = jnp.zeros(2, jnp.float16)
    state = tx.init(params)
    for slope in (-60_000, 60_000):
        _, state = tx.update(jnp.array([slope, slope / 2], jnp.float16), state, params)
    trace = state.inner_state[0].trace
    assert trace.dtype == jnp.float16
    np.testing.assert_array_equal(trace, [0, 0])


def test_a_pullback_of_half_precision_is_rounded_once():
    """0.998 of the way from 1 to −2⁻⁹; bfloat16 would round the difference itself to −1."""
    inner = optax.chain(optax.trace(0.0), optax.scale(0.0))
    alpha = 0.998
    tx = lookahead(inner, 1, lambda step: jnp.where(step == 0, 1.0, alpha), sync_moments="pullback")
    params = jnp.zeros((), jnp.bfloat16)
    state = tx.init(params)
    for slope in (1.0, -(2.0**-9)):
        _, state = tx.update(jnp.array(slope, jnp.bfloat16), state, params)
    want = jnp.asarray(1 - alpha * (1 + 2.0**-9), jnp.bfloat16)
    np.testing.assert_allclose(float(state.inner_state[0].trace), float(want), rtol=2**-7)


# Declarations


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Dataclass:
    step: Any
    moment: Any


declare_moments("moment")(Dataclass)


class TraceState(NamedTuple):
    """A state with the name of one of optax's states."""

    trace: Any


class Undeclared:
    """Neither a NamedTuple nor a dataclass."""


def counting(make_state):
    """Counts its steps in every field of its state, and does not move the params."""

    def update(updates, state, params=None):
        return jax.tree.map(jnp.zeros_like, updates), jax.tree.map(lambda x: x + 1, state)

    return optax.GradientTransformation(lambda params: make_state(), update)


def test_a_dataclass_may_be_a_state():
    tx = lookahead(
        counting(lambda: Dataclass(jnp.zeros(()), jnp.zeros(()))), 2, sync_moments="reset"
    )
    params = jnp.zeros(())
    state, seen = tx.init(params), []
    for _ in range(3):
        _, state = tx.update(params, state, params)
        seen.append((float(state.inner_state.step), float(state.inner_state.moment)))
    assert seen == [(1, 1), (2, 0), (3, 1)]


def test_optax_states_are_known_by_their_module_too():
    tx = lookahead(counting(lambda: TraceState(jnp.zeros(()))), sync_moments="reset")
    with pytest.raises(ValueError, match=r"TraceState is not declared: decorate it"):
        tx.init(jnp.ones(2))


@pytest.mark.parametrize("sync_moments", ["reset", "pullback"])
def test_bare_arrays_are_not_declared(sync_moments):
    tx = lookahead(counting(lambda: jnp.zeros(())), sync_moments=sync_moments)
    with pytest.raises(ValueError, match=rf"{sync_moments}.*a bare \w+ is not declared"):
        tx.init(jnp.ones(2))
    # "keep" does not need the moments.
    lookahead(counting(lambda: jnp.zeros(())), sync_moments="keep").init(jnp.ones(2))


def test_only_fields_can_be_declared():
    with pytest.raises(ValueError, match=r"`momentum` is not a field of TraceState, .* trace"):
        declare_moments("momentum")(TraceState)
    with pytest.raises(ValueError, match="`inside` is not a field of TraceState"):
        declare_moments(inner_states=("inside",))(TraceState)
    with pytest.raises(TypeError, match="NamedTuple or a dataclass"):
        declare_moments()(Undeclared)


# The order of a dict's keys


def test_a_plain_dict_is_read_in_the_order_that_a_compiled_function_gives_it_too():
    """A compiled function returns the keys in another order than they were inserted."""
    inner = optax.partition(
        {"z": optax.sgd(0.1, 0.5), "a": optax.sgd(0.1, 0.9)}, {"w": "z", "b": "a"}
    )
    tx = lookahead(inner, 2, 0.5, sync_moments="pullback")
    params = {"w": jnp.array(1.0), "b": jnp.array(-3.0)}
    update, ends = jax.jit(tx.update), []
    for updates_by in ((tx.update,) * 4, (tx.update, update, update, tx.update)):
        now, state = params, tx.init(params)
        for one in updates_by:
            updates, state = one(now, state, now)
            now = optax.apply_updates(now, updates)
        ends.append(now)
    for name in params:
        np.testing.assert_allclose(ends[0][name], ends[1][name], rtol=1e-6)


def test_an_ordered_dict_is_read_in_its_own_order():
    """JAX does not sort its keys, so they may be of any types."""
    trace = optax.trace(0.5)

    def init(params):
        return collections.OrderedDict([("b", trace.init(params)), (1, trace.init(params))])

    def update(updates, state, params=None):
        updates, first = trace.update(updates, state["b"])
        return updates, collections.OrderedDict([("b", first), (1, first)])

    tx = lookahead(optax.GradientTransformation(init, update), 1, 0.5, sync_moments="reset")
    _, state = tx.update(jnp.ones(()), tx.init(jnp.ones(())), jnp.ones(()))
    assert list(state.inner_state) == ["b", 1]
    assert state.inner_state["b"].trace == state.inner_state[1].trace == 0


# States of other transformations


@pytest.mark.parametrize(("made_for", "used_by"), [("keep", "pullback"), ("pullback", "reset")])
def test_a_state_of_another_setting_is_named(made_for, used_by):
    inner, params = optax.adam(0.1), jnp.ones(2)
    state = lookahead(inner, sync_moments=made_for).init(params)
    with pytest.raises(
        ValueError, match=f"`opt_state` was made with another `sync_moments`.*{used_by}"
    ):
        lookahead(inner, sync_moments=used_by).update(params, state, params)


@pytest.mark.parametrize("tx", [lookahead(optax.identity()), stagewise_prox(0.1, 5)])
def test_a_state_of_other_params_is_named(tx):
    state = tx.init({"w": jnp.ones(2), "b": None})
    for params, have in (
        ({"w": jnp.ones(3), "b": None}, r"params\['w'\].*\(3,\).*a copy of shape \(2,\)"),
        ({"w": jnp.ones(2), "b": jnp.ones(4)}, r"params\['b'\].*\(4,\).*no copy"),
    ):
        with pytest.raises(ValueError, match=f"`opt_state` was made for other params.*{have}"):
            tx.update(params, state, params)
    # A param without an update may be unknown to the state.
    tx.update({"w": jnp.ones(2), "b": None}, state, {"w": jnp.ones(2), "b": jnp.ones(4)})


def test_what_a_sync_stores_is_the_start_of_the_cycle_that_ended():
    tx = lookahead(optax.sgd(1.0), 2, 0.5)
    params = jnp.array(3.0)
    state, seen = tx.init(params), []
    for _ in range(5):
        updates, state = tx.update(jnp.array(1.0), state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(state.cycle_start_params))
    assert seen == [3, 3, 2, 2, 1]


# Line searches, which store the loss at the params they return

SEARCHES = {
    "backtracking": lambda: optax.scale_by_backtracking_linesearch(5, store_grad=True),
    "zoom": lambda: optax.scale_by_zoom_linesearch(5, initial_guess_strategy="one"),
}

every_search = pytest.mark.parametrize("search", SEARCHES)


def loss(params):
    return jnp.sum((params - 3.0) ** 2)


def remembered(tx, steps=4):
    """Whether the loss is stored after each step; if so, it must be the loss at the params."""

    @quick_jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": grads, "value_fn": loss}
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params = jnp.array([1.0, -1.0])
    state, seen = tx.init(params), []
    for _ in range(steps):
        params, state = step(params, state)
        value = optax.tree.get(state, "value")
        seen.append(bool(jnp.isfinite(value)))
        if seen[-1]:
            np.testing.assert_allclose(value, loss(params), rtol=1e-5)
    return seen


def searching(search, learning_rate=0.1):
    return optax.chain(optax.sgd(learning_rate), SEARCHES[search]())


@every_search
def test_the_loss_before_a_step_back_is_discarded(search):
    inner = searching(search)
    assert remembered(lookahead(inner, 2, 0.5)) == [True, False, True, False]
    assert remembered(lookahead(inner, 2, 1.0)) == [True] * 4
    assert remembered(multilayer_lookahead(inner, (1, 2), (1.0, 0.5))) == [True, False, True, False]


@pytest.mark.parametrize(("alpha", "kept"), [(1.0, True), (0.5, False), ("adaptive", False)])
@every_search
def test_the_loss_before_the_step_back_of_lookbehind_is_discarded(search, alpha, kept):
    params = jnp.array([1.0, -1.0])
    tx = lookbehind(searching(search), 1, 0.0, alpha)

    @quick_jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        extra = {"value": value, "grad": grads, "value_fn": loss}
        return tx.update(
            grads, state, params, grad_fn=lambda params, i: jax.grad(loss)(params), **extra
        )[1]

    state = step(params, tx.init(params))
    assert bool(jnp.isfinite(optax.tree.get(state, "value"))) == kept


@every_search
def test_the_loss_with_the_regulariser_is_not_stored_as_the_loss_without(search):
    def tx(betas):
        stages = [Stage(2, 0.1, beta, sync_period=1, slow_step_size=1.0) for beta in betas]
        return slrla(lambda lr: optax.chain(optax.sgd(lr), SEARCHES[search]()), stages)

    assert remembered(tx([0.0, 0.3])) == [True, True, False, False]
    assert remembered(tx([0.3, 0.0])) == [False, False, True, True]


def test_slrla_passes_on_the_regularised_loss():
    """`value`, `grad`, `value_fn` and `grad_fn` all refer to F + (β/2) ‖· − a‖²."""
    heard = []

    def listening(learning_rate):
        inner = optax.sgd(learning_rate)

        def update(updates, state, params, **extra):
            heard.append((params, extra))
            return inner.update(updates, state, params)

        return optax.GradientTransformationExtraArgs(inner.init, update)

    beta = 0.7
    tx = slrla(listening, [Stage(3, 0.1, beta, sync_period=5)])
    params = np.array([1.0, -1.0], np.float32)
    anchor, state = params.astype(float), tx.init(jnp.asarray(params))
    for _ in range(3):
        grads = 2 * (params - 3)
        updates, state = tx.update(
            grads,
            state,
            params,
            value=((params - 3) ** 2).sum(),
            grad=grads,
            value_fn=lambda params, weight=1.0: weight * loss(params),
            grad_fn=lambda params, weight=1.0: weight * jax.grad(loss)(params),
        )
        params = np.asarray(params + updates)
    for at, extra in heard:
        at, there = np.asarray(at, float), np.array([2.0, 5.0])
        away, away_there = at - anchor, there - anchor
        value = ((at - 3) ** 2).sum() + beta / 2 * (away**2).sum()
        np.testing.assert_allclose(extra["value"], value, rtol=1e-5)
        np.testing.assert_allclose(extra["grad"], 2 * (at - 3) + beta * away, rtol=1e-5)
        value = 2 * ((there - 3) ** 2).sum() + beta / 2 * (away_there**2).sum()
        np.testing.assert_allclose(extra["value_fn"](jnp.asarray(there), 2.0), value, rtol=1e-5)
        grad = 4 * (there - 3) + beta * away_there
        np.testing.assert_allclose(extra["grad_fn"](jnp.asarray(there), 2.0), grad, rtol=1e-5)


def test_the_loss_is_passed_on_unchanged_if_beta_is_zero():
    """Even if the penalty would not be finite."""
    heard = []

    def listening(learning_rate):
        def update(updates, state, params, value):
            heard.append(float(value))
            return updates, state

        return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)

    tx = slrla(listening, [Stage(5, 0.1, 0.0, 3), Stage(1, 0.1, 0.5, 3)])
    state, big = tx.init(jnp.zeros(2)), jnp.full(2, 1e30)
    for params in (jnp.zeros(2), big):
        _, state = tx.update(jnp.zeros(2), state, params, value=1.5)
    assert heard == [1.5, 1.5]
