"""Numbers passed to the transforms: they must not be rounded, and invalid ones are rejected."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import slrla_jax
from slrla_jax import Stage, lookahead, slrla, slrla_sgd, stagewise_prox

INF, NAN = float("inf"), float("nan")


# Counts


def test_a_count_is_not_rounded_to_an_injected_period():
    """`inject_hyperparams` converts 260 to bfloat16, which cannot represent 259."""
    tx = lookahead(optax.sgd(1.0), jnp.array(260, jnp.bfloat16), 0.5)
    params = jnp.zeros(())
    state, syncs = tx.init(params)._replace(steps_since_sync=jnp.array(257)), []
    for _ in range(3):
        _, state = tx.update(jnp.ones(()), state, params)
        syncs.append(bool(state.synced))
    assert syncs == [False, False, True]


def test_a_narrow_number_is_explained():
    """bfloat16 rounds numbers just below 1 to 1, which is a moving average that never decays."""
    with pytest.raises(ValueError, match=r"`momentum`.*`hyperparam_dtype`"):
        slrla_sgd(0.1, momentum=jnp.array(0.999, jnp.bfloat16))
    with pytest.raises(ValueError, match=r"`momentum`") as error:
        slrla_sgd(0.1, momentum=jnp.array(1.5))
    assert "hyperparam_dtype" not in str(error.value)


@pytest.mark.parametrize("length", [3.0, np.float32(3.0), jnp.array(3.0)])
def test_stages_begin_at_counts_that_float32_cannot_represent(length):
    """2²⁴ + 5 is a multiple of 3, but float32 rounds it to 2²⁴ + 4."""
    tx = stagewise_prox(1.0, length)
    state = tx.init(jnp.zeros(()))._replace(steps_taken=jnp.array(2**24 + 5))
    updates, _ = tx.update(jnp.zeros(()), state, jnp.ones(()))
    assert updates == 0  # the params, and not 0, are the anchor


def test_stages_are_told_apart_without_a_reduction():
    """A reduction would be a fusion of its own on TPU, for which it reports temporaries."""
    stages = [Stage(1, 0.1, 0.5, 2, 0.5), Stage(1, 0.2, 1.5, 3, 0.8), Stage(1, 0.05, 1.0, 2, 0.4)]
    tx, params = slrla(optax.sgd, stages), jnp.ones(3)
    program = str(jax.make_jaxpr(tx.update)(params, tx.init(params), params))
    assert "select_n" in program
    assert "reduce" not in program
    assert "gather" not in program


def test_counts_stay_at_their_largest():
    top = jnp.array(2**31 - 1)
    tx = lookahead(optax.sgd(1.0), 2, 0.5)
    _, state = tx.update(
        jnp.ones(()), tx.init(jnp.ones(()))._replace(steps_taken=top), jnp.ones(())
    )
    assert state.steps_taken == top
    tx = stagewise_prox(0.5, 3)
    _, state = tx.update(
        jnp.ones(()), tx.init(jnp.ones(()))._replace(steps_taken=top), jnp.ones(())
    )
    assert state.steps_taken == top


# Lists


def test_the_entries_of_an_array_are_looked_at_in_a_compiled_function_too():
    beta = jnp.array([0.5, -1.0])

    @jax.jit
    def build(params):
        return stagewise_prox(beta, [3, 3]).init(params)

    with pytest.raises(ValueError, match=r"`beta\[1\]`"):
        build(jnp.ones(2))


def test_a_period_of_stages_beside_a_list_of_betas():
    """The last stage continues: its anchor is from step 4, not from step 6."""
    tx = optax.chain(stagewise_prox([0.5, 0.25, 1.0], 2), optax.sgd(1.0))
    params, path = 0.0, []
    state = tx.init(jnp.array(params))
    for _ in range(8):
        updates, state = tx.update(jnp.array(1.0), state, jnp.array(params))
        params = params + float(updates)
        path.append(params)
    # The anchors are 0, −1½ and −3¼; slope and pull cancel after a step.
    assert path == [-1, -1.5, -2.5, -3.25, -4.25, -4.25, -4.25, -4.25]


# Rejected values


@pytest.mark.parametrize("value", [optax.sgd, 0.1, None])
def test_values_that_are_not_transformations(value):
    shown = "sgd" if value is optax.sgd else str(value)
    with pytest.raises(ValueError, match=f"`inner`.*{shown}"):
        lookahead(value)
    with pytest.raises(ValueError, match=f"`inner`.*{shown}"):
        slrla_jax.multilayer_lookahead(value)
    with pytest.raises(ValueError, match=rf"`make_inner\(learning_rate\)`.*{shown}"):
        slrla(lambda learning_rate: value, [Stage(1, 0.1)])
    with pytest.raises(ValueError, match="`make_inner`"):
        slrla(optax.sgd(0.1), [Stage(1, 0.1)])


def test_values_that_are_not_stages():
    with pytest.raises(ValueError, match=r"`stages\[1\]` must be a slrla_jax.Stage, got 5"):
        slrla(optax.sgd, [Stage(1, 0.1), 5])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -0.1),
        ("learning_rate", NAN),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -0.1),
        ("weight_decay", INF),
    ],
)
@pytest.mark.parametrize("make", ["slrla_sgd", "adaloss", "adagrad_norm"])
def test_invalid_numbers_of_complete_optimizers(make, name, value):
    with pytest.raises(ValueError, match=f"`{name}`.*{value}"):
        getattr(slrla_jax, make)(**{"learning_rate": 0.1, name: value})
    if name != "learning_rate":
        with pytest.raises(ValueError, match=f"`{name}`.*function"):
            getattr(slrla_jax, make)(0.1, **{name: optax.constant_schedule(0.1)})


def test_complex_numbers_are_rejected():
    for build in (
        lambda: lookahead(optax.sgd(0.1), 2 + 1j),
        lambda: lookahead(optax.sgd(0.1), 2, np.complex64(0.5 + 1j)),
        lambda: stagewise_prox(0.5 + 1j, 3),
    ):
        with pytest.raises(ValueError, match=r"must be .*, got .*1j"):
            build()


def test_a_stages_learning_rate():
    with pytest.raises(ValueError, match=r"`learning_rate`.*-0.1"):
        Stage(1, -0.1)


def test_an_anchor_dtype_without_an_anchor():
    with pytest.raises(ValueError, match=r"`anchor_dtype` must be None.*bfloat16"):
        slrla_sgd(0.1, anchor_dtype="bfloat16")


@pytest.mark.parametrize(
    ("build", "name", "shown"),
    [
        (lambda: slrla_jax.scale_by_adaloss(c=INF), "c", "inf"),
        (lambda: slrla_jax.scale_by_adaloss(c=optax.constant_schedule(0.1)), "c", "function"),
        (lambda: slrla_jax.scale_by_adaloss(b0=INF), "b0", "inf"),
        (lambda: slrla_jax.adaloss(0.1, alpha=0.0), "alpha", "0.0"),
        (lambda: slrla_jax.decay_sqrt_schedule(-0.1, 1.0, 1.0), "learning_rate", "-0.1"),
        (lambda: slrla_jax.decay_sqrt_schedule(0.1, 1.0, 0.0), "alpha", "0.0"),
        (
            lambda: slrla_jax.decay_sqrt_schedule(optax.constant_schedule(0.1), 1.0, 1.0),
            "learning_rate",
            "function",
        ),
        (lambda: slrla_jax.adabound(0.0), "learning_rate", "0.0"),
        (lambda: slrla_jax.adabound(-0.1, base_lr=0.1), "learning_rate", "-0.1"),
        (lambda: slrla_jax.adabound(0.1, base_lr=0.0), "base_lr", "0.0"),
        (lambda: slrla_jax.adabound(optax.constant_schedule(0.1)), "base_lr", "None"),
        (lambda: slrla_jax.adabound(0.1, b2=1.0), "b2", "1.0"),
    ],
)
def test_numbers_of_step_size_rules(build, name, shown):
    with pytest.raises(ValueError, match=f"`{name}`.*{shown}"):
        build()


# Step-size rules at the limits of number formats


def test_a_loss_that_is_not_finite_leaves_the_norm_as_it_is():
    tx = slrla_jax.scale_by_adaloss(b0=2.0, c=1.0)
    state, seen = tx.init(jnp.ones(())), []
    for value in (4.0, NAN, INF, -INF, 0.0):
        updates, state = tx.update(jnp.ones(()), state, value=value)
        seen.append((float(state.b_squared), float(updates)))
    np.testing.assert_allclose(seen, [(b, b**-0.5) for b in (7, 7, 7, 7, 8)], rtol=1e-6)


def test_a_gradient_that_is_not_finite_leaves_the_norm_as_it_is():
    tx = slrla_jax.scale_by_adagrad_norm(b0=3.0)
    state = tx.init(jnp.ones(()))
    for bad, step in ((NAN, NAN), (1e30, 0.0)):
        updates, state = tx.update(jnp.array(bad), state)
        np.testing.assert_equal(float(updates), step)
        assert state.b_squared == 9
    updates, state = tx.update(jnp.array(4.0), state)
    assert state.b_squared == 25
    np.testing.assert_allclose(updates, 0.8, rtol=1e-6)


def test_norms_of_half_precision_are_computed_in_float32():
    """300² overflows float16, and it cannot sum 2¹² ones exactly."""
    gradient = jnp.full(2**12, 300.0, jnp.float16)
    tx = slrla_jax.scale_by_adagrad_norm(b0=1.0)
    updates, state = tx.update(gradient, tx.init(gradient))
    np.testing.assert_allclose(state.b_squared, 1 + 2**12 * 9e4, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(updates, float), 2.0**-6, rtol=1e-3)
    # bfloat16 rounds √65.51, which is 8.0938, to 8.0625 or 8.125.
    tx = slrla_jax.scale_by_adaloss(b0=np.sqrt(64.51))
    updates, _ = tx.update(jnp.array(251.0, jnp.bfloat16), tx.init(jnp.ones(())), value=1.0)
    assert float(updates) == float(jnp.asarray(251 / np.sqrt(65.51), jnp.bfloat16))


def test_a_loss_of_half_precision_is_measured_from_c_in_float32():
    """bfloat16 rounds 256 − ½ to 256 or 255."""
    tx = slrla_jax.scale_by_adaloss(b0=1.0, c=0.5)
    loss = jnp.array(256.0, jnp.bfloat16)
    _, state = tx.update(jnp.ones(()), tx.init(jnp.ones(())), value=loss)
    assert state.b_squared == 256.5


def test_without_weight_decay_the_params_need_not_be_known():
    updates = {}
    for make in (slrla_jax.adaloss, slrla_jax.adagrad_norm):
        tx = make(0.5)
        updates[make], _ = tx.update(jnp.ones(()), tx.init(jnp.ones(())), value=1.0)
        np.testing.assert_allclose(updates[make], -0.5 / np.sqrt(2), rtol=1e-6)
    tx = slrla_jax.adabound(0.1)
    tx.update(jnp.ones(()), tx.init(jnp.ones(())))


def test_adaloss_counts_its_parameters_by_name():
    """b² = b0² + α |f − c| = 9 + 2 · |5 − 1.5|"""
    tx = slrla_jax.adaloss(1.0, b0=3.0, alpha=2.0, c=1.5)
    updates, _ = tx.update(jnp.ones(()), tx.init(jnp.ones(())), value=5.0)
    np.testing.assert_allclose(updates, -0.25, rtol=1e-6)


def test_adabound_with_a_gradient_that_has_always_been_zero():
    """Also with ε = 0: the step size is the upper bound, and m is 0."""
    tx = slrla_jax.adabound(0.1, eps=0.0)
    updates, _ = tx.update(jnp.array([0.0, 1.0]), tx.init(jnp.ones(2)), jnp.ones(2))
    assert updates[0] == 0
    np.testing.assert_allclose(updates[1], -0.1, rtol=1e-5)


def test_adabounds_second_moment_of_half_precision_is_float32():
    """In bfloat16, 0.999 v + 0.001 g² would stay v instead of decaying."""
    tx = slrla_jax.adabound(0.1)
    params = jnp.ones(2, jnp.bfloat16)
    state = tx.init(params)
    assert state.nu.dtype == jnp.float32
    v = 0.0
    for n in range(20):
        g = jnp.full(2, 8.0 if n == 0 else 0.5, jnp.bfloat16)
        updates, state = tx.update(g, state, params)
        v = 0.999 * v + 0.001 * float(g[0]) ** 2
    assert updates.dtype == state.mu.dtype == jnp.bfloat16
    np.testing.assert_allclose(state.nu, v, rtol=1e-5)
    # Squares that overflow float16.
    state = tx.init(jnp.ones(2, jnp.float16))
    _, state = tx.update(jnp.full(2, 300.0, jnp.float16), state, params)
    np.testing.assert_allclose(state.nu, 90, rtol=1e-5)


def test_adabounds_first_moment_of_half_precision_is_rounded_once():
    tx, params = slrla_jax.adabound(0.1, b1=0.7), jnp.ones((), jnp.bfloat16)
    state = tx.init(params)
    for first, second in ((1.0, 3.0), (1.5, -0.7), (0.37, 2.9), (251.0, 3.0)):
        old, g = (jnp.asarray(x, jnp.bfloat16) for x in (first, second))
        _, later = tx.update(g, state._replace(mu=old), params)
        want = np.float32(0.7) * np.float32(old) + np.float32(1 - 0.7) * np.float32(g)
        assert float(later.mu) == float(jnp.asarray(want, jnp.bfloat16))


def test_adabounds_epsilon_is_added_to_the_root():
    """After one step s = η √(1 − β₂) / ((1 − β₁) (√v + ε)), with √v = √(1 − β₂) |g|."""
    tx = slrla_jax.adabound(0.1, eps=0.5, gamma=1e-9)
    updates, _ = tx.update(jnp.array(2.0), tx.init(jnp.ones(())), jnp.ones(()))
    size = 0.1 * np.sqrt(0.001) / (0.1 * (np.sqrt(0.001) * 2 + 0.5))
    np.testing.assert_allclose(updates, -size * 0.1 * 2, rtol=1e-4)


def test_adabound_without_a_step_size_and_without_a_gradient():
    """A warm-up from 0, and ε = 0: neither may lead to 0/0."""
    tx = slrla_jax.adabound(optax.linear_schedule(0.0, 0.1, 10), eps=0.0, base_lr=0.1)
    updates, _ = tx.update(jnp.array([0.0, 1.0]), tx.init(jnp.ones(2)), jnp.ones(2))
    np.testing.assert_array_equal(updates, [0, 0])
