"""Which parts of an optimizer state are moments, and which parts a sync leaves unchanged."""

import dataclasses
import inspect
import re
import sys
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from transforms_table import assert_close, quick_jit, run

from slrla_jax import Stage, declare_moments, lookahead, multilayer_lookahead, slow_params, slrla
from slrla_jax._moments import OPTAX_STATES

# All states of optax.

# NamedTuples of optax that no optimizer stores between steps, or that hold no arrays.
NO_STATES = {
    *("EmptyState", "MaskedNode", "GradientTransformation", "GradientTransformationExtraArgs"),
    *("LookaheadParams", "BacktrackingLineSearchState", "BacktrackingLinesearchInfo"),
    *("ZoomLinesearchInfo", "ZoomLinesearchState", "_UpdateResult", "NamedTupleKey"),
    *("GaLoreDimensionNumbers", "MuonDimensionNumbers", "SplitRealAndImaginaryArrays"),
    # From optax.experimental and optax.microbatching, which are not optimizers.
    *("AccumulateAvgUpdatesState", "Aggregator", "PerElementMeanAndSumSqDiffGradsState"),
    *("PerElementMeanAndVarianceEMAState", "Accumulator", "Aux"),
}


def classes_of_optax():
    """Every NamedTuple and dataclass that optax and optax.contrib define, by name."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "optax":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about deprecated names
                members = list(vars(module).values())
            for member in members:
                if inspect.isclass(member) and member.__module__.startswith("optax"):
                    is_tuple = issubclass(member, tuple) and hasattr(member, "_fields")
                    if is_tuple or dataclasses.is_dataclass(member):
                        found[member.__name__] = member
    return found


def test_every_state_of_optax_is_classified():
    found = classes_of_optax()
    assert {"ScaleByAdamState", "ProdigyState", "WrappedScheduleState"} <= set(found)
    assert set(found) - NO_STATES - set(OPTAX_STATES) == set()


def test_every_classified_field_exists():
    found = classes_of_optax()
    assert set(OPTAX_STATES) - set(found) == set()
    for name, fields in OPTAX_STATES.items():
        assert {*fields.moments, *fields.inner_states} <= set(found[name]._fields), name


def a_loss(params):
    return sum(jnp.sum((x - 1.0) ** 2) for x in jax.tree.leaves(params))


CONTRIB = {
    "acprop": lambda: optax.contrib.acprop(0.1),
    "ademamix": lambda: optax.contrib.ademamix(0.1),
    "adopt": lambda: optax.contrib.adopt(0.1),
    "cocob": optax.contrib.cocob,
    "dadapt_adamw": optax.contrib.dadapt_adamw,
    "dog": optax.contrib.dog,
    "dowg": optax.contrib.dowg,
    "galore": lambda: optax.contrib.galore(0.1, rank=1),
    "madgrad": lambda: optax.contrib.madgrad(0.1),
    "mechanize": lambda: optax.contrib.mechanize(optax.sgd(0.1, momentum=0.9)),
    "momo": lambda: optax.contrib.momo(0.1),
    "momo_adam": lambda: optax.contrib.momo_adam(0.1),
    "muon": lambda: optax.contrib.muon(0.1),
    "prodigy": optax.contrib.prodigy,
    "schedule_free_sgd": lambda: optax.contrib.schedule_free_sgd(0.1),
    "simplified_ademamix": lambda: optax.contrib.simplified_ademamix(0.01),
    "split_real_and_imaginary": lambda: optax.contrib.split_real_and_imaginary(optax.adam(0.1)),
    "adadelta": lambda: optax.adadelta(1.0),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "adagrad": lambda: optax.adagrad(0.5),
    "adamax": lambda: optax.adamax(0.1),
    "adan": lambda: optax.adan(0.1),
    "amsgrad": lambda: optax.amsgrad(0.1),
    "lion": lambda: optax.lion(0.05),
    "nadam by schedule": lambda: optax.nadam(optax.constant_schedule(0.1)),
    "noisy_sgd": lambda: optax.noisy_sgd(0.05, key=0),
    "novograd": lambda: optax.novograd(0.1),
    "optimistic": lambda: optax.optimistic_gradient_descent(0.05),
    "radam": lambda: optax.radam(0.1),
    "rmsprop": lambda: optax.rmsprop(0.05, centered=True),
    "rprop": lambda: optax.rprop(0.01),
    "sm3": lambda: optax.sm3(0.1),
    "reduce_on_plateau": lambda: optax.chain(
        optax.adam(0.1), optax.contrib.reduce_on_plateau(patience=3)
    ),
    "zero_nans and apply_every": lambda: optax.chain(
        optax.zero_nans(), optax.adam(0.1), optax.apply_every(1)
    ),
    "freeze": lambda: optax.partition(
        {"train": optax.adam(0.1), "freeze": optax.set_to_zero()},
        lambda params: {name: "train" if name == "w" else "freeze" for name in params},
    ),
}


@pytest.mark.parametrize("sync_moments", ["reset", "pullback"])
@pytest.mark.parametrize("name", CONTRIB)
def test_optimizers_of_optax_descend(name, sync_moments):
    tx = lookahead(CONTRIB[name](), 5, 0.5, sync_moments=sync_moments)
    params = {"w": jnp.array([[3.0, -2.0], [0.5, 2.0]]), "b": jnp.array([1.0, 1.0])}
    path = run(
        tx,
        params,
        30,
        grads=lambda params, i: jax.grad(a_loss)(params),
        extra=lambda params, i: {"value": a_loss(params)},
    )
    assert np.isfinite(jax.tree.leaves(path.params)[0]).all()
    assert a_loss(jax.tree.map(lambda x: x[-1], path.params)) < a_loss(params)


@pytest.mark.parametrize(
    "name", ["prodigy", "dadapt_adamw", "dog", "dowg", "mechanize", "momo", "rprop"]
)
def test_an_estimated_learning_rate_survives_a_sync(name):
    """Resetting moments at every sync gets as far as keeping them."""
    params = {"w": jnp.array([[3.0, -2.0]]), "b": jnp.array([0.5])}

    def left(sync_moments):
        tx = lookahead(CONTRIB[name](), 5, 0.5, sync_moments=sync_moments)
        path = run(
            tx,
            params,
            300,
            grads=lambda params, i: jax.grad(a_loss)(params),
            extra=lambda params, i: {"value": a_loss(params)},
        )
        return float(a_loss(jax.tree.map(lambda x: x[-1], path.params)))

    start = float(a_loss(params))
    assert left("keep") < 0.05 * start
    assert left("reset") < 0.05 * start


# The moments inside each wrapper of optax.


def wrapped(name, inner):
    return {
        "chain": lambda: optax.chain(optax.identity(), inner),
        "named_chain": lambda: optax.named_chain(("a", optax.identity()), ("b", inner)),
        "MultiSteps": lambda: optax.MultiSteps(inner, 1).gradient_transformation(),
        "apply_if_finite": lambda: optax.apply_if_finite(inner, 3),
        "conditionally_mask": lambda: optax.conditionally_mask(inner, lambda step: True),
        "conditionally_transform": lambda: optax.conditionally_transform(inner, lambda step: True),
        "inject_hyperparams": lambda: optax.inject_hyperparams(lambda unused: inner)(1.0),
        "masked": lambda: optax.masked(inner, {"w": True}),
        "partition": lambda: optax.partition({"a": inner}, {"w": "a"}),
        "flatten": lambda: optax.flatten(inner),
        "lookahead": lambda: lookahead(inner, 100),
        "multilayer_lookahead": lambda: multilayer_lookahead(inner, (50, 2)),
        "slrla": lambda: slrla(lambda lr: inner, [Stage(100, 1.0, beta=0.1)]),
    }[name]()


@pytest.mark.parametrize("sync_moments", ["keep", "reset", "pullback"])
@pytest.mark.parametrize(
    "name",
    [
        *("chain", "named_chain", "MultiSteps", "apply_if_finite", "conditionally_mask"),
        *("conditionally_transform", "inject_hyperparams", "masked", "partition", "flatten"),
        *("lookahead", "multilayer_lookahead", "slrla"),
    ],
)
def test_a_sync_changes_the_moments_inside_a_wrapper_and_nothing_else(name, sync_moments):
    """After three gradients of 1 and a sync, Adam's m is 0.271, 0, or half of 0.271."""
    params = {"w": jnp.zeros(2)}

    def states(tx):
        state = tx.init(params)
        update = quick_jit(tx.update)
        for _ in range(3):
            _, state = update({"w": jnp.ones(2)}, state, params)
        return state

    inner = wrapped(name, optax.scale_by_adam())
    alone = states(inner)
    after = states(lookahead(inner, 3, 0.5, sync_moments=sync_moments)).inner_state

    factor = {"keep": 1.0, "reset": 0.0, "pullback": 0.5}[sync_moments]
    count = {"keep": 3, "reset": 0, "pullback": 3}[sync_moments]
    (adam,) = (s for _, s in optax.tree.get_all_with_path(after, "ScaleByAdamState"))
    (adam_alone,) = (s for _, s in optax.tree.get_all_with_path(alone, "ScaleByAdamState"))
    np.testing.assert_allclose(jax.tree.leaves(adam.mu)[0], 0.271 * factor, rtol=1e-5)
    assert adam.count == count
    # Everything else is as without a sync.
    assert_close(with_adam(after, adam_alone), alone)


def with_adam(state, adam):
    """Replaces the state of Adam inside a state."""

    def is_adam(node):
        return isinstance(node, optax.ScaleByAdamState)

    return jax.tree.map(lambda node: adam if is_adam(node) else node, state, is_leaf=is_adam)


# Custom states.


class Undeclared(NamedTuple):
    anchor: Any


@declare_moments("average", inner_states=("inner",))
class Declared(NamedTuple):
    step: Any
    average: Any
    inner: Any


@declare_moments("average")
@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DeclaredDataclass:
    step: Any
    average: Any


def keeping(make_state):
    """Uses the gradient as the update, and adds 1 to every array of its state."""
    return optax.GradientTransformation(
        lambda params: make_state(params),
        lambda updates, state, params=None: (
            jax.tree.map(lambda g: -g, updates),
            jax.tree.map(lambda x: x + 1, state),
        ),
    )


MAKERS = {
    "NamedTuple": lambda params: Declared(
        jnp.zeros(()), optax.tree.zeros_like(params), optax.trace(0.9).init(params)
    ),
    "dataclass": lambda params: DeclaredDataclass(jnp.zeros(()), optax.tree.zeros_like(params)),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("sync_moments", "end"), [("keep", 2), ("reset", 0), ("pullback", 1)])
def test_a_declared_state(name, sync_moments, end):
    params = {"w": jnp.ones(2)}
    tx = lookahead(keeping(MAKERS[name]), 2, 0.5, sync_moments=sync_moments)
    state = tx.init(params)
    for _ in range(2):
        _, state = tx.update({"w": jnp.ones(2)}, state, params)
    assert state.inner_state.step == 2
    np.testing.assert_array_equal(state.inner_state.average["w"], end)
    if name == "NamedTuple":
        np.testing.assert_array_equal(state.inner_state.inner.trace["w"], end)


@pytest.mark.parametrize("sync_moments", ["reset", "pullback"])
@pytest.mark.parametrize(
    ("make_state", "what"),
    [
        (lambda params: Undeclared(params), "Undeclared is not declared"),
        (lambda params: (optax.EmptyState(), [Undeclared(params)]), "Undeclared is not declared"),
        (lambda params: {"mine": jnp.ones(2)}, "a bare ArrayImpl is not declared"),
    ],
)
def test_an_undeclared_state_is_an_error_that_names_it(make_state, what, sync_moments):
    tx = lookahead(keeping(make_state), sync_moments=sync_moments)
    message = f"`sync_moments` = {sync_moments!r}.*{what}.*declare_moments"
    with pytest.raises(ValueError, match=message):
        tx.init({"w": jnp.ones(2)})
    # "keep" needs no declaration.
    lookahead(keeping(make_state)).init({"w": jnp.ones(2)})


def test_a_state_without_arrays_needs_no_declaration():
    tx = lookahead(keeping(lambda params: Undeclared(None)), sync_moments="reset")
    assert tx.init({"w": jnp.ones(2)}).inner_state == Undeclared(None)


def test_invalid_declarations():
    with pytest.raises(ValueError, match=r"`momentum` is not a field of Undeclared.*anchor"):
        declare_moments("momentum")(Undeclared)
    with pytest.raises(ValueError, match=r"`inner` is not a field of Undeclared.*anchor"):
        declare_moments(inner_states=("inner",))(Undeclared)
    with pytest.raises(TypeError, match=r"NamedTuple or a dataclass.*int"):
        declare_moments()(int)
    with pytest.raises(TypeError, match=r"names of fields.*@declare_moments\(\)"):
        declare_moments(Undeclared)
    with pytest.raises(TypeError, match=r"`inner_states` must be a tuple.*'inner'"):
        declare_moments(inner_states="inner")


@pytest.mark.parametrize(
    ("before", "now"), [("keep", "pullback"), ("reset", "pullback"), ("pullback", "keep")]
)
def test_a_state_made_with_other_sync_moments(before, now):
    params = {"w": jnp.ones(2)}
    state = lookahead(optax.adam(0.1), sync_moments=before).init(params)
    with pytest.raises(ValueError, match=f"another `sync_moments`.*{now!r}.*`init`"):
        lookahead(optax.adam(0.1), sync_moments=now).update(params, state, params)


# What optax's functions find in our states.


@pytest.mark.parametrize("sync_moments", ["keep", "reset", "pullback"])
@pytest.mark.parametrize(
    "around",
    [
        lambda inner, way: lookahead(inner, 2, 0.5, sync_moments=way),
        lambda inner, way: multilayer_lookahead(inner, (2, 2), (0.5, 0.5), sync_moments=way),
        lambda inner, way: slrla(lambda lr: inner, [Stage(2, 1.0, 0.1)], sync_moments=way),
    ],
    ids=["lookahead", "multilayer_lookahead", "slrla"],
)
def test_tree_get_and_tree_set(around, sync_moments):
    params = {"w": jnp.ones(2)}
    tx = around(optax.adam(0.1), sync_moments)
    state = tx.init(params)
    _, state = tx.update({"w": jnp.ones(2)}, state, params)
    np.testing.assert_allclose(optax.tree.get(state, "mu")["w"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(optax.tree.get(state, "nu")["w"], 1e-3, rtol=1e-6)
    assert optax.tree.get(state, "count") == 1
    assert optax.tree.get(state, "slow_params") is None  # there is a function to read them
    assert optax.tree.get(optax.tree.set(state, count=jnp.array(7)), "count") == 7

    tx = around(optax.inject_hyperparams(optax.sgd)(0.5), sync_moments)
    state = optax.tree.set(tx.init(params), learning_rate=jnp.array(0.25))
    updates, _ = tx.update({"w": jnp.ones(2)}, state, params)
    np.testing.assert_allclose(updates["w"], -0.25)


LINE_SEARCHES = {
    "lbfgs": optax.lbfgs,
    "backtracking": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20, store_grad=True)
    ),
}


@pytest.mark.parametrize("name", LINE_SEARCHES)
@pytest.mark.parametrize(
    "around",
    [
        lambda inner: lookahead(inner, 2, 0.5),
        lambda inner: multilayer_lookahead(inner, (2, 2), (0.5, 0.5)),
        lambda inner: slrla(lambda lr: inner, [Stage(2, 1.0, 0.3, 2, 0.5)]),
        lambda inner: slrla(lambda lr: inner, [Stage(2, 0.1, 0.3, 2, 0.5)], decoupled=True),
    ],
    ids=["lookahead", "multilayer_lookahead", "slrla", "slrla-decoupled"],
)
def test_a_line_search_stores_the_loss_at_the_params(around, name):
    def loss(params):
        return jnp.sum(jnp.array([1.0, 5.0]) * (params["w"] - 1.0) ** 2) + params["w"][0] ** 4

    tx = around(LINE_SEARCHES[name]())
    params = {"w": jnp.array([3.0, -2.0])}
    state = tx.init(params)
    value_and_grad = optax.value_and_grad_from_state(loss)

    @quick_jit
    def step(params, state):
        value, grads = value_and_grad(params, state=state)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        return optax.apply_updates(params, updates), state, value, grads

    for _ in range(6):
        expected = jax.value_and_grad(loss)(params)
        params, state, *found = step(params, state)
        assert_close(found, list(expected), rtol=1e-4, atol=1e-5)
    assert loss(slow_params(state, params)) < loss({"w": jnp.array([3.0, -2.0])})


def test_a_line_search_keeps_its_loss_if_the_params_were_not_moved():
    """Then value_and_grad_from_state needs no evaluation, which is its purpose."""

    def loss(params):
        return jnp.sum(params**2)

    for tx in (
        lookahead(LINE_SEARCHES["backtracking"](), 2, 0.5),
        lookahead(LINE_SEARCHES["backtracking"](), 1, 1.0),
    ):
        params = jnp.array([3.0, -2.0])
        state = tx.init(params)
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value, grad=grads, value_fn=loss)
        np.testing.assert_allclose(
            optax.tree.get(state, "value"), loss(params + updates), rtol=1e-5
        )


def test_the_message_names_what_to_do():
    with pytest.raises(ValueError, match=re.escape("`slrla_jax.declare_moments`")):
        lookahead(keeping(Undeclared), sync_moments="reset").init({"w": jnp.ones(2)})
