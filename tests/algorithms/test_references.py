"""Compares every transform with the loops of its paper, at every step.

The loops are in `references`. The two must agree up to the rounding of float64 or float32, for
all settings that are drawn.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from transforms_table import quick_jit
from x64 import enable_x64

import slrla_jax
from slrla_jax import LookaheadState, Stage, StagewiseProxState, slow_params

STEPS = 40
ONE = np.ones(STEPS)
TREE = {"b": (4,), "w": (2, 3)}
SIZE = 10
INITIAL, *NOISE = np.random.default_rng(0).normal(size=(1 + STEPS, SIZE))
CURVATURE = np.linspace(0.4, 1.5, SIZE)
NOISE = 0.5 * np.array(NOISE)

# The gradient below belongs to a strongly convex loss (more precisely, it is a monotone map),
# so that rounding errors are not amplified along the path. In float32 a step rounds weights of
# at most 3 by about 2^-22 a few times, which is less than 5e-5 in 40 steps. Where an outer step is
# so large that the weights grow, it rounds in proportion.
TOLERANCE = {"float64": 1e-10, "float32": 5e-5}
USUAL_WEIGHTS = 3

OPTIMIZERS = {
    "sgd": (lambda lr: optax.sgd(lr), references.SGD),
    "momentum": (lambda lr: optax.sgd(lr, 0.9), references.Momentum),
    "adam": (lambda lr: optax.adam(lr), references.Adam),
}
SYNC_MOMENTS = ("keep", "reset", "pullback")

every_sync_moments = pytest.mark.parametrize("sync_moments", SYNC_MOMENTS)
every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def few(examples):
    """Draws the same examples in every run, without shrinking, because they are small already."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
    )


# The problem, for NumPy and for JAX


def gradient(x, s, xp=np):
    """A quadratic, a sine, a skew coupling of neighbours, and the noise of step s."""
    curvature, noise = xp.asarray(CURVATURE, x.dtype), xp.asarray(NOISE, x.dtype)
    return curvature * x + 0.3 * xp.sin(x) + 0.2 * xp.roll(x, 1) + noise[s]


def flat(tree):
    return jnp.concatenate([jnp.ravel(tree[name]) for name in sorted(TREE)])


def tree(vector):
    sizes = [int(np.prod(TREE[name])) for name in sorted(TREE)]
    parts = jnp.split(vector, np.cumsum(sizes)[:-1])
    return {name: jnp.reshape(x, TREE[name]) for name, x in zip(sorted(TREE), parts, strict=True)}


def trained(tx, initial, slow=slow_params):
    """Fast and slow weights after every step of a training loop, each of shape (STEPS, SIZE)."""

    def step(carry, s):
        params, state = carry
        gradients = tree(gradient(flat(params), s, jnp))
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (flat(params), flat(slow(state, params)))

    params = tree(initial)
    return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(STEPS))[1]


def no_slow(state, params):
    """For transforms without slow weights."""
    del state
    return params


@functools.cache
def compiled(make, *structure, slow=slow_params):
    """`trained(make(*structure, **numbers))` as a compiled function of the numbers."""
    return quick_jit(lambda initial, numbers: trained(make(*structure, **numbers), initial, slow))


def train(make, *structure, dtype="float64", slow=slow_params, **numbers):
    """Runs with the numbers traced, so that each structure is compiled once."""
    with enable_x64(dtype == "float64"):
        path = compiled(make, *structure, slow=slow)(INITIAL.astype(dtype), numbers)
        return [np.asarray(x) for x in path]


def train_static(tx, dtype="float64", slow=slow_params):
    """Runs a transform whose numbers are part of the program."""
    with enable_x64(dtype == "float64"):
        path = quick_jit(lambda initial: trained(tx, initial, slow))(INITIAL.astype(dtype))
        return [np.asarray(x) for x in path]


def expect(path, algorithm, dtype="float64", amplified=1.0, **arguments):
    """Raises unless the path equals that of the reference, up to so many times its rounding."""
    want = references.trace(
        STEPS, lambda path: algorithm(path, gradient=gradient, **{"theta": INITIAL, **arguments})
    )
    for name, have, wanted in zip(("fast", "slow"), path, want, strict=True):
        assert have.dtype == dtype
        grown = max(1, np.abs(wanted).max() / USUAL_WEIGHTS)
        atol = amplified * grown * TOLERANCE[dtype]
        np.testing.assert_allclose(have, wanted, rtol=0, atol=atol, err_msg=f"{name} weights")


def assert_same_bits(path, want):
    for have, wanted in zip(path, want, strict=True):
        assert have.dtype == wanted.dtype
        np.testing.assert_array_equal(have, wanted)


# Settings to draw


def tables(values):
    """A value for every step, constant or changing occasionally."""
    return st.builds(
        lambda pieces, width: np.resize(np.repeat(pieces, width), STEPS),
        st.lists(values, min_size=1, max_size=4),
        st.integers(1, 12),
    )


def looked_up(table):
    """The schedule given by a table, for JAX and for NumPy."""
    return lambda s: table[s]


def always(value):
    return lambda s: value


learning_rates = st.floats(0.01, 0.3)
step_sizes = st.one_of(st.floats(0.05, 1.0), st.sampled_from([0.5, 1.0]))
betas = st.one_of(st.floats(0.0, 1.0), st.just(0.0))


# Algorithm 1 and Algorithm 2


def lookahead_by_tables(optimizer, sync_moments, lr, k, alpha):
    inner = OPTIMIZERS[optimizer][0](looked_up(lr))
    return slrla_jax.lookahead(inner, looked_up(k), looked_up(alpha), sync_moments=sync_moments)


def lookahead_by_numbers(optimizer, sync_moments, lr, k, alpha):
    return slrla_jax.lookahead(OPTIMIZERS[optimizer][0](lr), k, alpha, sync_moments=sync_moments)


@every_optimizer
@few(5)
@given(lr=tables(learning_rates), k=st.integers(1, 7))
def test_alpha_of_one_is_algorithm_1(optimizer, lr, k):
    fast, _ = train(lookahead_by_tables, optimizer, "keep", lr=lr, k=np.repeat(k, STEPS), alpha=ONE)
    want, _ = references.trace(
        STEPS,
        lambda path: references.sgd(
            path, gradient, looked_up(lr), INITIAL, OPTIMIZERS[optimizer][1]()
        ),
    )
    np.testing.assert_allclose(fast, want, rtol=0, atol=TOLERANCE["float64"])


@every_sync_moments
@every_optimizer
@few(15)
@given(lr=tables(learning_rates), k=tables(st.integers(1, 7)), alpha=tables(step_sizes))
def test_lookahead_with_schedules(optimizer, sync_moments, lr, k, alpha):
    expect(
        train(lookahead_by_tables, optimizer, sync_moments, lr=lr, k=k, alpha=alpha),
        references.lookahead,
        eta=looked_up(lr),
        k=looked_up(k),
        alpha=looked_up(alpha),
        A=OPTIMIZERS[optimizer][1](),
        sync_moments=sync_moments,
    )


@every_optimizer
@few(10)
@given(
    sync_moments=st.sampled_from(SYNC_MOMENTS),
    lr=learning_rates,
    k=st.integers(1, 7),
    alpha=step_sizes,
)
def test_lookahead_in_float32(optimizer, sync_moments, lr, k, alpha):
    expect(
        train(
            lookahead_by_numbers, optimizer, sync_moments, dtype="float32", lr=lr, k=k, alpha=alpha
        ),
        references.lookahead,
        dtype="float32",
        eta=always(lr),
        k=always(k),
        alpha=always(alpha),
        A=OPTIMIZERS[optimizer][1](),
        sync_moments=sync_moments,
    )


@few(5)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    sync_moments=st.sampled_from(SYNC_MOMENTS),
    lr=learning_rates,
    k=st.integers(1, 7),
    alpha=step_sizes,
)
def test_lookahead_with_plain_numbers(optimizer, sync_moments, lr, k, alpha):
    expect(
        train_static(lookahead_by_numbers(optimizer, sync_moments, lr, k, alpha)),
        references.lookahead,
        eta=always(lr),
        k=always(k),
        alpha=always(alpha),
        A=OPTIMIZERS[optimizer][1](),
        sync_moments=sync_moments,
    )


# Primal averaging

train_interpolations = st.one_of(st.floats(0.2, 1.0), st.sampled_from([0.5, 1.0]))
eval_interpolations = st.one_of(st.floats(0.0, 0.99), st.sampled_from([0.0, 0.5]))


def averaging_by_tables(optimizer, lr, train_mu, eval_mu):
    inner = OPTIMIZERS[optimizer][0](looked_up(lr))
    return slrla_jax.primal_averaging(inner, looked_up(train_mu), looked_up(eval_mu))


@every_optimizer
@few(15)
@given(
    lr=tables(learning_rates),
    train_mu=tables(train_interpolations),
    eval_mu=tables(eval_interpolations),
)
def test_primal_averaging_with_schedules(optimizer, lr, train_mu, eval_mu):
    expect(
        train(averaging_by_tables, optimizer, lr=lr, train_mu=train_mu, eval_mu=eval_mu),
        references.primal_averaging,
        eta=looked_up(lr),
        train_interpolation=looked_up(train_mu),
        eval_interpolation=looked_up(eval_mu),
        A=OPTIMIZERS[optimizer][1](),
    )


@few(5)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    dtype=st.sampled_from(sorted(TOLERANCE)),
    train_mu=train_interpolations,
    eval_mu=eval_interpolations,
)
def test_primal_averaging_with_plain_numbers(optimizer, dtype, train_mu, eval_mu):
    tx = slrla_jax.primal_averaging(OPTIMIZERS[optimizer][0](0.1), train_mu, eval_mu)
    expect(
        train_static(tx, dtype),
        references.primal_averaging,
        dtype,
        eta=always(0.1),
        train_interpolation=always(train_mu),
        eval_interpolation=always(eval_mu),
        A=OPTIMIZERS[optimizer][1](),
    )


@every_optimizer
@pytest.mark.parametrize("train_mu", [0.3, 1.0])
def test_without_eval_interpolation_primal_averaging_is_the_inner_optimizer(optimizer, train_mu):
    fast, slow = train_static(
        slrla_jax.primal_averaging(OPTIMIZERS[optimizer][0](0.1), train_mu, 0.0)
    )
    want, _ = references.trace(
        STEPS,
        lambda path: references.sgd(
            path, gradient, always(0.1), INITIAL, OPTIMIZERS[optimizer][1]()
        ),
    )
    np.testing.assert_allclose(fast, want, rtol=0, atol=TOLERANCE["float64"])
    np.testing.assert_allclose(slow, want, rtol=0, atol=TOLERANCE["float64"])


# Multilayer Lookahead


def multilayer(optimizer, sync_moments, lr, ks, alphas):
    return slrla_jax.multilayer_lookahead(
        OPTIMIZERS[optimizer][0](looked_up(lr)),
        [looked_up(k) for k in ks],
        [looked_up(alpha) for alpha in alphas],
        sync_moments=sync_moments,
    )


@every_sync_moments
@pytest.mark.parametrize(
    ("optimizer", "depth"), [("sgd", 1), ("adam", 2), ("momentum", 2), ("momentum", 3)]
)
@few(12)
@given(data=st.data())
def test_multilayer_with_schedules(optimizer, depth, sync_moments, data):
    lr = data.draw(tables(learning_rates))
    ks = [data.draw(tables(st.integers(1, 4 if depth < 3 else 3))) for _ in range(depth)]
    alphas = [data.draw(tables(step_sizes)) for _ in range(depth)]
    expect(
        train(multilayer, optimizer, sync_moments, lr=lr, ks=ks, alphas=alphas),
        references.multilayer_lookahead,
        eta=looked_up(lr),
        ks=[looked_up(k) for k in ks],
        alphas=[looked_up(alpha) for alpha in alphas],
        A=OPTIMIZERS[optimizer][1](),
        sync_moments=sync_moments,
    )


@few(6)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    sync_moments=st.sampled_from(SYNC_MOMENTS),
    lr=learning_rates,
    layers=st.lists(st.tuples(st.integers(1, 4), step_sizes), min_size=1, max_size=3),
    dtype=st.sampled_from(sorted(TOLERANCE)),
)
def test_multilayer_with_plain_numbers(optimizer, sync_moments, lr, layers, dtype):
    ks, alphas = zip(*layers, strict=True)
    tx = slrla_jax.multilayer_lookahead(
        OPTIMIZERS[optimizer][0](lr), ks, alphas, sync_moments=sync_moments
    )
    expect(
        train_static(tx, dtype),
        references.multilayer_lookahead,
        dtype=dtype,
        eta=always(lr),
        ks=[always(k) for k in ks],
        alphas=[always(alpha) for alpha in alphas],
        A=OPTIMIZERS[optimizer][1](),
        sync_moments=sync_moments,
    )


def nested_by_hand(optimizer, sync_moments, lr, ks, alphas):
    tx, period = OPTIMIZERS[optimizer][0](looked_up(lr)), 1
    for k, alpha in zip(ks, alphas, strict=True):
        period = period * k
        tx = slrla_jax.lookahead(tx, period, alpha, sync_moments=sync_moments)
    return tx


def multilayer_by_numbers(optimizer, sync_moments, lr, ks, alphas):
    return slrla_jax.multilayer_lookahead(
        OPTIMIZERS[optimizer][0](looked_up(lr)), ks, alphas, sync_moments=sync_moments
    )


@every_sync_moments
@pytest.mark.parametrize(("optimizer", "depth"), [("momentum", 2), ("adam", 3)])
@few(8)
@given(data=st.data())
def test_multilayer_is_lookahead_nested_by_hand(optimizer, depth, sync_moments, data):
    numbers = {
        "lr": data.draw(tables(learning_rates)),
        "ks": [data.draw(st.integers(1, 4)) for _ in range(depth)],
        "alphas": [data.draw(step_sizes) for _ in range(depth)],
    }
    assert_same_bits(
        train(multilayer_by_numbers, optimizer, sync_moments, dtype="float32", **numbers),
        train(nested_by_hand, optimizer, sync_moments, dtype="float32", **numbers),
    )


# The local regulariser alone


def prox_by_schedule(position, optimizer, lr, beta, length):
    return prox_at(position, optimizer, looked_up(lr), looked_up(beta), length)


def prox_by_stages(position, optimizer, lr, beta, lengths):
    return prox_at(position, optimizer, looked_up(lr), list(beta), list(lengths))


def prox_at(position, optimizer, lr, beta, length):
    """`stagewise_prox` before the direction of an optimizer, or between it and the −η scaling."""
    direction = {
        "sgd": optax.identity(),
        "momentum": optax.trace(0.9),
        "adam": optax.scale_by_adam(),
    }[optimizer]
    prox = slrla_jax.stagewise_prox(beta, length)
    links = (prox, direction) if position == "coupled" else (direction, prox)
    return optax.chain(*links, optax.scale_by_learning_rate(lr))


every_position = pytest.mark.parametrize("position", ["coupled", "decoupled"])


def expect_prox(path, position, optimizer, **arguments):
    expect(
        path,
        lambda *args, theta, **kwargs: references.stagewise_prox(*args, v=theta, **kwargs),
        A=OPTIMIZERS[optimizer][1](),
        decoupled=position == "decoupled",
        **arguments,
    )


@every_position
@every_optimizer
@few(8)
@given(lr=tables(learning_rates), beta=tables(betas), length=st.integers(1, 11))
def test_prox_with_a_period_and_a_schedule(position, optimizer, lr, beta, length):
    expect_prox(
        train(prox_by_schedule, position, optimizer, slow=no_slow, lr=lr, beta=beta, length=length),
        position,
        optimizer,
        eta=looked_up(lr),
        beta=looked_up(beta),
        lengths=[length] * STEPS,
    )


@every_position
@every_optimizer
@few(8)
@given(
    lr=tables(learning_rates),
    stages=st.lists(st.tuples(betas, st.integers(1, 15)), min_size=3, max_size=3),
)
def test_prox_with_stages(position, optimizer, lr, stages):
    beta, lengths = zip(*stages, strict=True)
    expect_prox(
        train(prox_by_stages, position, optimizer, slow=no_slow, lr=lr, beta=beta, lengths=lengths),
        position,
        optimizer,
        eta=looked_up(lr),
        beta=looked_up(np.repeat([*beta, beta[-1]], [*lengths, STEPS])),
        lengths=lengths,
    )


@every_position
@pytest.mark.parametrize(
    ("beta", "length", "beta_table", "lengths"),
    [
        (0.7, 6, [0.7] * STEPS, [6] * STEPS),
        (0.7, [6, 9, 2], [0.7] * STEPS, [6, 9, 2]),
        ([0.7], [3], [0.7] * STEPS, [3]),
        ([0.7, 0.0, 0.3], 9, [0.7] * 9 + [0.0] * 9 + [0.3] * 22, [9, 9, 9]),
        ([0.7, 0.0, 0.3], (5, 1, 9), [0.7] * 5 + [0.0] + [0.3] * 34, [5, 1, 9]),
        (lambda s: 0.02 * s, [5, 12], [0.02 * s for s in range(STEPS)], [5, 12]),
        (np.array([0.7, 0.3]), np.array([5, 12]), [0.7] * 5 + [0.3] * 35, [5, 12]),
    ],
)
def test_prox_with_plain_numbers(position, beta, length, beta_table, lengths):
    expect_prox(
        train_static(prox_at(position, "adam", 0.1, beta, length), slow=no_slow),
        position,
        "adam",
        eta=always(0.1),
        beta=looked_up(beta_table),
        lengths=lengths,
    )


# Algorithm 3


def our_stage(T, k, eta, alpha, beta):
    learning_rate = eta if np.ndim(eta) == 0 else looked_up(jnp.asarray(eta))
    return Stage(T, learning_rate, beta=beta, sync_period=k, slow_step_size=alpha)


def reference_stage(T, k, eta, alpha, beta):
    rate = always(eta) if np.ndim(eta) == 0 else looked_up(eta)
    return references.Stage(T, rate, beta, k, alpha)


def slrla(lengths, optimizer, sync_moments, decoupled, stages):
    return slrla_jax.slrla(
        OPTIMIZERS[optimizer][0],
        [our_stage(*length, **stage) for length, stage in zip(lengths, stages, strict=True)],
        sync_moments=sync_moments,
        decoupled=decoupled,
    )


def expect_slrla(path, lengths, optimizer, sync_moments, decoupled, stages, dtype="float64"):
    expect(
        path,
        references.slrla,
        dtype=dtype,
        stages=[
            reference_stage(*length, **stage) for length, stage in zip(lengths, stages, strict=True)
        ],
        A=OPTIMIZERS[optimizer][1](),
        sync_moments=sync_moments,
        decoupled=decoupled,
    )


# T and k of each stage, and its other settings. With k = 1 the α and β of a stage show up in
# its first or second step already.
SHORT_STAGES = ((3, 4), (4, 1), (3, 3))
lengths = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), min_size=1, max_size=3)
numbers_of_stage = st.fixed_dictionaries(
    {
        "eta": st.one_of(learning_rates, tables(learning_rates)),
        "alpha": step_sizes,
        "beta": betas,
    }
)
schedules_of_stage = st.fixed_dictionaries(
    {"eta": tables(learning_rates), "alpha": step_sizes, "beta": betas}
)


@every_sync_moments
@every_optimizer
@pytest.mark.parametrize("decoupled", [False, True])
@few(6)
@given(stages=st.lists(schedules_of_stage, min_size=3, max_size=3))
def test_slrla_with_traced_numbers(decoupled, optimizer, sync_moments, stages):
    structure = (SHORT_STAGES, optimizer, sync_moments, decoupled)
    expect_slrla(train(slrla, *structure, stages=stages), *structure, stages)


@few(6)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    sync_moments=st.sampled_from(SYNC_MOMENTS),
    decoupled=st.booleans(),
    lengths=lengths,
    data=st.data(),
)
def test_slrla_with_plain_numbers(optimizer, sync_moments, decoupled, lengths, data):
    stages = [data.draw(numbers_of_stage) for _ in lengths]
    structure = (lengths, optimizer, sync_moments, decoupled, stages)
    with enable_x64(True):
        tx = slrla(*structure)
    expect_slrla(train_static(tx), *structure)


@pytest.mark.parametrize(
    ("optimizer", "sync_moments", "decoupled"),
    [("sgd", "keep", True), ("momentum", "pullback", False), ("adam", "reset", True)],
)
def test_slrla_in_float32(optimizer, sync_moments, decoupled):
    stages = [
        {"eta": 0.1, "alpha": 0.8, "beta": 0.5},
        {"eta": 0.2 * 0.9 ** np.arange(STEPS), "alpha": 0.5, "beta": 0.0},
        {"eta": 0.05, "alpha": 0.3, "beta": 1.0},
    ]
    structure = (SHORT_STAGES, optimizer, sync_moments, decoupled, stages)
    expect_slrla(train_static(slrla(*structure), "float32"), *structure, "float32")


def test_the_last_stage_of_slrla_keeps_its_settings():
    """Whether it would end after 6 steps or after 600 makes no difference to 40 steps."""

    def tx(cycles):
        last = Stage(cycles, 0.05, beta=0.6, sync_period=3, slow_step_size=0.5)
        return slrla_jax.slrla(optax.adam, [Stage(2, 0.1, beta=0.3), last], sync_moments="reset")

    assert_same_bits(train_static(tx(2), "float32"), train_static(tx(200), "float32"))


@pytest.mark.parametrize(
    ("optimizer", "sync_moments"), [("sgd", "keep"), ("momentum", "pullback"), ("adam", "reset")]
)
def test_one_stage_without_regulariser_is_lookahead(optimizer, sync_moments):
    make = OPTIMIZERS[optimizer][0]
    stage = Stage(3, optax.exponential_decay(0.1, 5, 0.8), sync_period=4, slow_step_size=0.6)
    assert_same_bits(
        train_static(slrla_jax.slrla(make, [stage], sync_moments=sync_moments), "float32"),
        train_static(
            slrla_jax.lookahead(make(stage.learning_rate), 4, 0.6, sync_moments=sync_moments),
            "float32",
        ),
    )


# The released form


def released(periods, sync_moments, eta, beta, alpha, momentum, weight_decay, **traced):
    """`slrla_sgd`, with S and k known, or (without `periods`) traced as well."""
    S, k = periods or (traced["S"], traced["k"])
    return slrla_jax.slrla_sgd(
        looked_up(eta),
        looked_up(beta),
        S,
        k,
        looked_up(alpha),
        momentum,
        weight_decay,
        sync_moments=sync_moments,
    )


def expect_released(path, periods, sync_moments, eta, beta, alpha, momentum, weight_decay):
    S, k = periods
    expect(
        path,
        references.released_slrla,
        eta=looked_up(eta),
        beta=looked_up(beta),
        S=S,
        k=k,
        alpha=looked_up(alpha),
        A=references.Momentum(momentum) if momentum else references.SGD(),
        weight_decay=weight_decay,
        sync_moments=sync_moments,
    )


numbers_of_released = st.fixed_dictionaries(
    {
        "eta": tables(learning_rates),
        "beta": tables(betas),
        "alpha": tables(step_sizes),
        "momentum": st.sampled_from([0.0, 0.5, 0.9]),
        "weight_decay": st.sampled_from([0.0, 0.01, 0.1]),
    }
)


@every_sync_moments
@few(20)
@given(k=st.sampled_from([1, 4]), numbers=numbers_of_released)
def test_released_form_anchored_to_the_slow_weights(sync_moments, k, numbers):
    path = train(released, (None, k), sync_moments, **numbers)
    expect_released(path, (k, k), sync_moments, **numbers)


@every_sync_moments
@few(20)
@given(S=st.integers(1, 9), k=st.integers(1, 9), numbers=numbers_of_released)
def test_released_form_with_a_separate_anchor(sync_moments, S, k, numbers):
    expect_released(
        train(released, None, sync_moments, S=S, k=k, **numbers), (S, k), sync_moments, **numbers
    )


@pytest.mark.parametrize(
    ("S", "k", "momentum", "weight_decay"),
    [(5, 5, 0.9, 0.05), (5, 5, None, 0.0), (10, 5, 0.9, 0.05), (3, 7, 0, 0.05), (4, 1, 0.9, 0.0)],
)
@pytest.mark.parametrize("shared", [False, True])
def test_released_form_with_plain_numbers(shared, S, k, momentum, weight_decay):
    if shared:
        S = k
    tx = slrla_jax.slrla_sgd(0.1, 0.4, None if shared else S, k, 0.7, momentum, weight_decay)
    expect_released(
        train_static(tx),
        (S, k),
        "keep",
        eta=[0.1] * STEPS,
        beta=[0.4] * STEPS,
        alpha=[0.7] * STEPS,
        momentum=momentum,
        weight_decay=weight_decay,
    )


def test_released_form_with_one_copy_is_the_chain_with_two():
    lr, beta = optax.exponential_decay(0.1, 5, 0.8), optax.linear_schedule(0.0, 1.0, STEPS)
    one = slrla_jax.slrla_sgd(lr, beta, None, 5, 0.7, sync_moments="pullback")
    two = optax.chain(
        slrla_jax.stagewise_prox(beta, 5),
        slrla_jax.lookahead(optax.sgd(lr, 0.9), 5, 0.7, sync_moments="pullback"),
    )
    for have, want in zip(train_static(one), train_static(two), strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=1e-13)

    assert isinstance(one.init(tree(jnp.ones(SIZE))), LookaheadState)
    assert isinstance(two.init(tree(jnp.ones(SIZE)))[0], StagewiseProxState)


# The outer step as an optimizer

OUTER = {
    "sgd": (lambda lr: optax.sgd(lr), references.SGD),
    "momentum": (lambda lr: optax.sgd(lr, 0.5), lambda: references.Momentum(0.5)),
    "nesterov": (
        lambda lr: optax.sgd(lr, 0.6, nesterov=True),
        lambda: references.Nesterov(0.6),
    ),
    "adam": (lambda lr: optax.adam(lr), references.Adam),
}


def two_loop_by_tables(optimizer, outer, sync_moments, lr, k, outer_lr):
    return slrla_jax.two_loop(
        OPTIMIZERS[optimizer][0](looked_up(lr)),
        OUTER[outer][0](looked_up(outer_lr)),
        looked_up(k),
        sync_moments=sync_moments,
    )


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("sync_moments", ["keep", "reset"])
@every_optimizer
@few(6)
@given(lr=tables(learning_rates), k=tables(st.integers(1, 7)), outer_lr=tables(step_sizes))
def test_two_loop_with_schedules(optimizer, sync_moments, outer, lr, k, outer_lr):
    expect(
        train(two_loop_by_tables, optimizer, outer, sync_moments, lr=lr, k=k, outer_lr=outer_lr),
        references.two_loop,
        eta=looked_up(lr),
        k=looked_up(k),
        A=OPTIMIZERS[optimizer][1](),
        B=OUTER[outer][1](),
        outer_eta=looked_up(outer_lr),
        sync_moments=sync_moments,
    )


def snoo(optimizer, sync_moments, lr, k, outer_lr, mu):
    inner = OPTIMIZERS[optimizer][0](lr)
    return slrla_jax.snoo(inner, k, outer_lr, mu, sync_moments=sync_moments)


def expect_snoo(path, optimizer, sync_moments, lr, k, outer_lr, mu, dtype="float64"):
    """Momentum repeats what a step rounds away, 1 / (1 − μ) times in all."""
    expect(
        path,
        references.two_loop,
        dtype=dtype,
        amplified=1 / (1 - mu),
        eta=always(lr),
        k=always(k),
        A=OPTIMIZERS[optimizer][1](),
        B=references.Nesterov(mu),
        outer_eta=always(outer_lr),
        sync_moments=sync_moments,
    )


numbers_of_snoo = st.fixed_dictionaries(
    {
        "lr": learning_rates,
        "k": st.integers(1, 7),
        "outer_lr": step_sizes,
        "mu": st.floats(0.0, 0.9),
    }
)


@pytest.mark.parametrize("dtype", TOLERANCE)
@every_optimizer
@few(10)
@given(sync_moments=st.sampled_from(["keep", "reset"]), numbers=numbers_of_snoo)
@example(sync_moments="reset", numbers={"lr": 0.3, "k": 4, "outer_lr": 1.0, "mu": 0.7178})
def test_snoo_with_traced_numbers(optimizer, dtype, sync_moments, numbers):
    path = train(snoo, optimizer, sync_moments, dtype=dtype, **numbers)
    expect_snoo(path, optimizer, sync_moments, **numbers, dtype=dtype)


@few(6)
@given(
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    sync_moments=st.sampled_from(["keep", "reset"]),
    numbers=numbers_of_snoo,
    without_momentum=st.booleans(),
)
def test_snoo_with_plain_numbers(optimizer, sync_moments, numbers, without_momentum):
    if without_momentum:
        numbers = numbers | {"mu": 0.0}
    path = train_static(snoo(optimizer, sync_moments, **numbers))
    expect_snoo(path, optimizer, sync_moments, **numbers)


def two_layers_of_snoo(optimizer):
    inner = slrla_jax.snoo(OPTIMIZERS[optimizer][0](0.1), 2, 0.6, 0.0)
    return slrla_jax.two_loop(inner, optax.sgd(0.7), 6)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_two_loops_nested_by_hand_are_two_layers(optimizer):
    """Where both sync, the inner one starts again from the params after the outer step."""
    expect(
        train_static(two_layers_of_snoo(optimizer)),
        references.multilayer_lookahead,
        eta=always(0.1),
        ks=[always(2), always(3)],
        alphas=[always(0.6), always(0.7)],
        A=OPTIMIZERS[optimizer][1](),
    )


# Lookaheads whose cycles do not end together


@every_sync_moments
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize(
    ("periods", "alphas"),
    [((3, 2), (0.5, 0.6)), ((2, 5), (0.7, 0.3)), ((5, 3, 2), (0.4, 0.8, 0.6))],
)
def test_a_sync_in_the_middle_of_an_inner_cycle(optimizer, sync_moments, periods, alphas):
    """The stored cycle start of a nested lookahead is not a moment for the outer one."""
    tx = OPTIMIZERS[optimizer][0](0.1)
    for k, alpha in zip(periods, alphas, strict=True):
        tx = slrla_jax.lookahead(tx, k, alpha, sync_moments=sync_moments)
    expect(
        train_static(tx),
        references.nested_lookaheads_with_independent_periods,
        eta=always(0.1),
        periods=periods,
        alphas=alphas,
        A=OPTIMIZERS[optimizer][1](),
        sync_moments=sync_moments,
    )


# Moments inside other transformations


class InAList(NamedTuple):
    """A state that holds other states in a list."""

    states: list


def in_a_list(inner):
    def update(updates, state, params):
        updates, inner_state = inner.update(updates, state.states[0], params)
        return updates, InAList([inner_state])

    return optax.GradientTransformation(lambda params: InAList([inner.init(params)]), update)


slrla_jax.declare_moments(inner_states=("states",))(InAList)

AROUND = {
    "MultiSteps": lambda inner: optax.MultiSteps(inner, 1).gradient_transformation(),
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
    "conditionally_mask": lambda inner: optax.conditionally_mask(inner, lambda step: True),
    "conditionally_transform": lambda inner: optax.conditionally_transform(
        inner, lambda step: True
    ),
    "inject_hyperparams": lambda inner: optax.inject_hyperparams(lambda one: inner)(1.0),
    "masked": lambda inner: optax.masked(inner, {"b": True, "w": True}),
    "partition": lambda inner: optax.multi_transform({"it": inner}, {"b": "it", "w": "it"}),
    "named_chain": lambda inner: optax.named_chain(("it", inner), ("and", optax.identity())),
    "a list": in_a_list,
}


@pytest.mark.parametrize("sync_moments", ["reset", "pullback"])
@pytest.mark.parametrize("name", AROUND)
def test_moments_inside_other_transformations(name, sync_moments):
    tx = AROUND[name](optax.adam(0.1))
    expect(
        train_static(slrla_jax.lookahead(tx, 3, 0.6, sync_moments=sync_moments)),
        references.lookahead,
        eta=always(0.1),
        k=always(3),
        alpha=always(0.6),
        A=references.Adam(),
        sync_moments=sync_moments,
    )


# The regulariser together with a lookahead of the same period


@pytest.mark.parametrize("beta", [(0.7, 0.2, 1.0), (0.0, 0.9), (0.5,)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_list_of_betas_beside_a_lookahead_of_the_same_period(optimizer, beta):
    """Stages of one cycle each, whose anchors are the slow weights, except for the last."""
    make, reference = OPTIMIZERS[optimizer]
    tx = optax.chain(slrla_jax.stagewise_prox(beta, 4), slrla_jax.lookahead(make(0.1), 4, 0.6))
    expect(
        train_static(tx),
        references.slrla,
        stages=[references.Stage(1, always(0.1), b, 4, 0.6) for b in beta],
        A=reference(),
    )
