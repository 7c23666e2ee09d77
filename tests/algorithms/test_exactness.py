"""Properties that must hold bit-for-bit, and paths short enough to be written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import slrla_jax
from slrla_jax import Stage, slow_params

OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, 0.9),
    "adam": lambda: optax.adam(0.01),
    "adamw": lambda: optax.adamw(0.01, weight_decay=0.1),
}
SHAPES = {"w": (37, 11)}

CASES = [(name, "float32") for name in OPTIMIZERS] + [
    ("momentum", "bfloat16"),
    ("adamw", "bfloat16"),
]

every_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


# Two ways to compile a training step, and a training loop


def in_one(make):
    """`update` and `apply_updates` as one program, where XLA can share and fuse."""

    @jax.jit
    def step(numbers, params, state, gradients):
        updates, state = make(*numbers).update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def apart(make):
    """`update` as one program and `apply_updates` as another."""
    update = jax.jit(lambda numbers, *arguments: make(*numbers).update(*arguments))
    apply = jax.jit(optax.apply_updates)

    def step(numbers, params, state, gradients):
        updates, state = update(numbers, gradients, state, params)
        return apply(params, updates), state

    return step


both_ways = pytest.mark.parametrize("compiled", [in_one, apart])


@jax.jit
def gradient(params, key):
    """A function of the params, of order 1, so that a lost bit shows up later."""
    return {
        name: jnp.sin(p) + jax.random.normal(jax.random.fold_in(key, n), p.shape, p.dtype)
        for n, (name, p) in enumerate(sorted(params.items()))
    }


def initial_params(dtype):
    return gradient({name: jnp.zeros(shape, dtype) for name, shape in SHAPES.items()}, key_of(99))


def key_of(n):
    return jax.random.fold_in(jax.random.key(0), n)


def train(make, compiled, dtype, numbers=(), steps=12):
    """Yields params and state after every step; `numbers` are traced arguments of `make`."""
    step, params = compiled(make), initial_params(dtype)
    state = make(*numbers).init(params)
    for n in range(steps):
        params, state = step(numbers, params, state, gradient(params, key_of(n)))
        yield params, state


def assert_same_bits(have, want):
    assert jax.tree.structure(have) == jax.tree.structure(want)
    for x, y in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(
            np.asarray(x).view(f"uint{8 * x.dtype.itemsize}"),
            np.asarray(y).view(f"uint{8 * y.dtype.itemsize}"),
        )


def assert_same_to_rounding(have, want):
    """Asserts equality up to a few units in the last place of the largest entry."""
    for x, y in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype
        y = np.asarray(y, "float64")
        tolerance = 4 * jnp.finfo(x.dtype).eps * np.abs(y).max()
        np.testing.assert_allclose(np.asarray(x, "float64"), y, rtol=0, atol=tolerance)


# Limits: α = 1 and β = 0 are the inner optimizer
#
# The arithmetic is that of the inner optimizer, operation by operation. A compiler may
# still fuse a multiplication and an addition into one instruction that rounds once, and do so
# in only one of the two programs: p + (−η m) is such an operation, and so are Adam's moments.
# Where that can happen, the paths are compared up to rounding.


@functools.cache
def alone(optimizer, compiled, dtype):
    return [params for params, _ in train(OPTIMIZERS[optimizer], compiled, dtype)]


def assert_inner_alone(same, make, optimizer, compiled, dtype="float32", numbers=()):
    for (params, _), want in zip(
        train(make, compiled, dtype, numbers), alone(optimizer, compiled, dtype), strict=True
    ):
        same(params, want)


# The ways to pass a number to a transform: values known when it is built, and traced values.
KINDS = {
    "plain": lambda x: ((x,), ()),
    "array": lambda x: ((jnp.asarray(x),), ()),
    "schedule": lambda x: ((lambda step: jnp.where(step >= 0, x, 0.5),), ()),
    "traced": lambda x: ((), (jnp.asarray(x),)),
}


@both_ways
@pytest.mark.parametrize(
    ("kind", "optimizer", "dtype"),
    [
        *(("plain", *case) for case in CASES),
        *(("traced", *case) for case in CASES),
        ("array", "momentum", "float32"),
        ("schedule", "momentum", "float32"),
    ],
)
def test_lookahead_with_alpha_of_one_is_the_inner_optimizer(kind, optimizer, dtype, compiled):
    known, traced = KINDS[kind](1.0)

    def make(*numbers):
        return slrla_jax.lookahead(OPTIMIZERS[optimizer](), 3, *known, *numbers)

    exact = kind == "plain" or compiled is apart
    same = assert_same_bits if exact else assert_same_to_rounding
    assert_inner_alone(same, make, optimizer, compiled, dtype, traced)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_a_pullback_with_alpha_of_one_does_nothing(optimizer):
    def make(alpha):
        return slrla_jax.lookahead(OPTIMIZERS[optimizer](), 3, alpha, sync_moments="pullback")

    assert_inner_alone(assert_same_bits, lambda: make(1.0), optimizer, in_one)
    assert_inner_alone(assert_same_bits, make, optimizer, apart, numbers=(jnp.asarray(1.0),))


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_layers_with_alpha_of_one_are_the_inner_optimizer(optimizer):
    def make(alpha):
        return slrla_jax.multilayer_lookahead(OPTIMIZERS[optimizer](), (2, 1, 2), (alpha,) * 3)

    numbers = (jnp.asarray(1.0),)
    assert_inner_alone(assert_same_bits, lambda: make(1.0), optimizer, in_one)
    assert_inner_alone(assert_same_bits, make, optimizer, apart, numbers=numbers)
    assert_inner_alone(assert_same_to_rounding, make, optimizer, in_one, numbers=numbers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_prox_with_beta_of_zero_leaves_gradients(kind, dtype):
    known, traced = KINDS[kind](0.0)
    if kind == "schedule":
        known = (lambda step: 0.0 * step,)

    @jax.jit
    def update(numbers, *arguments):
        return slrla_jax.stagewise_prox(*known, *numbers, 5).update(*arguments)

    gradients = jnp.array([-0.0, 0.0, 1 / 3, 1e-30, -7.0, 7.0], dtype)
    params = jnp.array([0.0, 1.0, -1 / 3, 1e30, jnp.inf, jnp.nan], dtype)
    state = slrla_jax.stagewise_prox(0.0, 5).init(params)
    _, state = update(traced, gradients, state, jnp.ones(6, dtype))
    updates, _ = update(traced, gradients, state, params)
    assert_same_bits(updates, gradients)


@pytest.mark.parametrize(("optimizer", "dtype"), CASES)
def test_prox_with_beta_of_zero_is_the_inner_optimizer(optimizer, dtype):
    def make(beta):
        return optax.chain(slrla_jax.stagewise_prox(beta, 3), OPTIMIZERS[optimizer]())

    for compiled in (in_one, apart):
        assert_inner_alone(assert_same_bits, lambda: make(0.0), optimizer, compiled, dtype)
    same, numbers = assert_same_to_rounding, (jnp.asarray(0.0),)
    assert_inner_alone(same, make, optimizer, in_one, dtype, numbers)


@pytest.mark.parametrize(("optimizer", "decoupled"), [("momentum", False), ("adam", True)])
def test_slrla_with_beta_of_zero_and_alpha_of_one(optimizer, decoupled):
    A = {"momentum": lambda lr: optax.sgd(lr, 0.9), "adam": optax.adam}[optimizer]
    eta = {"momentum": 0.1, "adam": 0.01}[optimizer]

    def make(alpha, beta):
        stages = [Stage(T, eta, beta, k, alpha) for T, k in [(1, 3), (2, 2), (1, 2)]]
        return slrla_jax.slrla(A, stages, decoupled=decoupled)

    def by_schedule():
        return A(lambda step: jnp.where(step >= 0, eta, 0.0))

    numbers = (jnp.asarray(1.0), jnp.asarray(0.0))
    plain = train(lambda: make(1.0, 0.0), apart, "float32")
    traced = train(make, in_one, "float32", numbers)
    for (x, _), (y, _), (want, _) in zip(
        plain, traced, train(by_schedule, apart, "float32"), strict=True
    ):
        assert_same_bits(x, want)
        assert_same_to_rounding(y, want)


@pytest.mark.parametrize("anchor_period", [None, 3, 4])
def test_slrla_sgd_with_beta_of_zero_and_alpha_of_one(anchor_period):
    def make(alpha, beta):
        return slrla_jax.slrla_sgd(0.1, beta, anchor_period, 3, alpha)

    for compiled in (in_one, apart):
        assert_inner_alone(assert_same_bits, lambda: make(1.0, 0.0), "momentum", compiled)
    same, numbers = assert_same_to_rounding, (jnp.asarray(1.0), jnp.asarray(0.0))
    assert_inner_alone(same, make, "momentum", in_one, numbers=numbers)


# After a sync the params are the slow weights


@both_ways
@pytest.mark.parametrize(
    ("kind", "optimizer", "dtype"),
    [
        *(("plain", *case) for case in CASES),
        ("traced", "momentum", "float32"),
        ("traced", "adamw", "bfloat16"),
    ],
)
def test_params_and_slow_weights_are_equal_after_a_sync(kind, optimizer, dtype, compiled):
    known, traced = KINDS[kind](0.3)

    def make(*numbers):
        return slrla_jax.lookahead(OPTIMIZERS[optimizer](), 3, *known, *numbers)

    syncs, landed = [], initial_params(dtype)
    for n, (params, state) in enumerate(train(make, compiled, dtype, traced)):
        slow = slow_params(state, params)
        if state.synced:
            syncs.append(n)
            assert_same_bits(slow, params)
            landed = params
        else:
            assert_same_bits(slow, landed)
            assert np.any(slow["w"] != params["w"])
    assert syncs == [2, 5, 8, 11]


@both_ways
@every_dtype
def test_layers_are_equal_to_the_params_after_their_sync(dtype, compiled):
    """The outermost layer at once, the inner layers when they begin their next cycle."""

    def make():
        return slrla_jax.multilayer_lookahead(optax.adam(0.01), (2, 3), (0.3, 0.6))

    before = initial_params(dtype)
    for n, (params, outer) in enumerate(train(make, compiled, dtype), start=1):
        inner = outer.inner_state
        assert (bool(inner.synced), bool(outer.synced)) == (n % 2 == 0, n % 6 == 0)
        if n % 6 == 0:
            assert_same_bits(slow_params(outer, params), params)
        if n % 6 == 1:
            assert_same_bits(outer.cycle_start_params, before)
        if n % 2 == 1:
            assert_same_bits(inner.cycle_start_params, before)
        before = params


@both_ways
@every_dtype
def test_slrla_sgd_is_equal_to_the_params_after_a_sync(dtype, compiled):
    def make():
        return slrla_jax.slrla_sgd(0.1, 0.4, None, 3, 0.3, weight_decay=0.01)

    landed = initial_params(dtype)
    for n, (params, state) in enumerate(train(make, compiled, dtype), start=1):
        assert state.synced == (n % 3 == 0)
        landed = params if state.synced else landed
        assert_same_bits(slow_params(state, params), landed)


@both_ways
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_float32_slow_weights_round_to_the_bfloat16_params_after_a_sync(optimizer, compiled):
    def make():
        return slrla_jax.lookahead(OPTIMIZERS[optimizer](), 3, 0.3, slow_dtype="float32")

    syncs = 0
    for params, state in train(make, compiled, "bfloat16"):
        assert {x.dtype.name for x in jax.tree.leaves(state.cycle_start_params)} == {"float32"}
        if state.synced:
            syncs += 1
            slow = slow_params(state, params)
            rounded = jax.tree.map(lambda x: x.astype("bfloat16"), slow)
            assert_same_bits(rounded, params)
            assert np.any(slow["w"] != params["w"].astype("float32"))
    assert syncs == 4


@pytest.mark.parametrize("one_program", [False, True])
@pytest.mark.parametrize(("slow_dtype", "moves"), [(None, False), ("float32", True)])
def test_small_movements_need_float32_slow_weights(slow_dtype, moves, one_program):
    """α u = −2e-4 is below half the spacing of bfloat16 at 1, which is 2e-3."""
    tx = slrla_jax.lookahead(optax.sgd(1.0), 1, 0.1, slow_dtype=slow_dtype)
    step, params = in_one(lambda: tx), jnp.ones(3, "bfloat16")
    gradients, carry = jnp.full(3, 0.002, "bfloat16"), (params, tx.init(params))
    if one_program:
        carry = jax.lax.fori_loop(0, 200, lambda _, carry: step((), *carry, gradients), carry)
    else:
        for _ in range(200):
            carry = step((), *carry, gradients)
    params, state = carry
    slow = np.asarray(slow_params(state, params), "float32")
    if moves:
        assert np.all(slow < 0.99)
    else:
        assert np.all(slow == 1)
        assert np.all(np.asarray(params, "float32") == 1)


# Paths written out


def path(tx, start, steps, gradient=1.0, change=None, dtype="float32"):
    """Fast and slow weights after every step, from one number and with a constant slope.

    `change` maps the number of a step to a function applied to the params after that step,
    before the params and slow weights are recorded.
    """
    step, params = in_one(lambda: tx), jnp.asarray(start, dtype)
    state, fast, slow = tx.init(params), [], []
    for n in range(1, steps + 1):
        params, state = step((), params, state, jnp.asarray(gradient, dtype))
        if change and n in change:
            params = change[n](params)
        fast.append(float(params))
        slow.append(float(slow_params(state, params)))
    return fast, slow


def descent():
    return optax.sgd(1.0)


def test_lookahead_written_out():
    fast, slow = path(slrla_jax.lookahead(descent(), 2, 0.5), 3.0, 6)
    # 3 → 2 → 1 ⇒ 2 → 1 → 0 ⇒ 1 → 0 → −1 ⇒ 0
    assert fast == [2, 2, 1, 1, 0, 0]
    assert slow == [3, 2, 2, 1, 1, 0]


def test_lookahead_with_a_period_of_one_written_out():
    fast, slow = path(slrla_jax.lookahead(descent(), 1, 0.25), 3.0, 3)
    assert fast == slow == [2.75, 2.5, 2.25]


def test_lookahead_with_a_quarter_written_out():
    fast, slow = path(slrla_jax.lookahead(descent(), 3, 0.25), 3.0, 7)
    # 3 → 2 → 1 → 0 ⇒ 2¼ → 1¼ → ¼ → −¾ ⇒ 1½ → ½
    assert fast == [2, 1, 2.25, 1.25, 0.25, 1.5, 0.5]
    assert slow == [3, 3, 2.25, 2.25, 2.25, 1.5, 1.5]


@pytest.mark.parametrize(
    ("sync_moments", "want"),
    [
        # Momentum 1, 1½ and a sync at −2½ ⇒ −1¼ in all three.
        # 1¾, 1⅞ from there: −3 → −4⅞ ⇒ −3 1/16.
        ("keep", [-1, -1.25, -3, -3.0625, -5]),
        # 1, 1½ again.
        ("reset", [-1, -1.25, -2.25, -2.5, -3.5]),
        # Pulled back from 1½ half of the way to 0, hence 1⅜ and 1 11/16; from there half of
        # the way to ¾, the momentum at the start of the cycle.
        ("pullback", [-1, -1.25, -2.625, -2.78125, -4.390625]),
    ],
)
def test_momentum_at_a_sync_written_out(sync_moments, want):
    tx = slrla_jax.lookahead(optax.sgd(1.0, 0.5), 2, 0.5, sync_moments=sync_moments)
    assert path(tx, 0.0, 5)[0] == want


def test_multilayer_written_out():
    fast, slow = path(slrla_jax.multilayer_lookahead(descent(), (2, 2), (0.5, 0.5)), 4.0, 8)
    # 4 → 3 → 2 ⇒ 3 → 2 → 1 ⇒ 2, and the outer layer: 4 … 2 ⇒ 3. The inner layer continues
    # from 3: → 2 → 1 ⇒ 2 → 1 → 0 ⇒ 1, and the outer layer: 3 … 1 ⇒ 2.
    assert fast == [3, 3, 2, 3, 2, 2, 1, 2]
    assert slow == [4, 4, 4, 3, 3, 3, 3, 2]


def test_multilayer_of_three_layers_written_out():
    tx = slrla_jax.multilayer_lookahead(descent(), (1, 2, 2), (0.5, 0.5, 0.25))
    fast, slow = path(tx, 4.0, 8)
    # Layer 1 halves every step, layer 2 halves every two of those, layer 3 a quarter of 4.
    assert fast == [3.5, 3.5, 3.0, 3.75, 3.25, 3.25, 2.75, 3.5]
    assert slow == [4, 4, 4, 3.75, 3.75, 3.75, 3.75, 3.5]


def prox_path(beta, stage_length, steps):
    """Like `path`, for the regulariser without a lookahead."""
    tx = optax.chain(slrla_jax.stagewise_prox(beta, stage_length), descent())
    step, params = in_one(lambda: tx), jnp.zeros(())
    state, fast = tx.init(params), []
    for _ in range(steps):
        params, state = step((), params, state, jnp.ones(()))
        fast.append(float(params))
    return fast


def test_prox_written_out():
    # Anchors 0, −1½, −3: each stage is a step of 1 and one of 1 − ½ · 1.
    assert prox_path(0.5, 2, 6) == [-1, -1.5, -2.5, -3, -4, -4.5]
    # Anchors 0 and −1; the second stage stays where slope and pull cancel, and continues.
    assert prox_path([0.5, 1.0], [1, 2], 6) == [-1, -2, -2, -2, -2, -2]
    assert prox_path([0.5, 0.0], [3, 2], 6) == [-1, -1.5, -1.75, -2.75, -3.75, -4.75]


def test_slrla_written_out():
    stages = [
        Stage(1, 1.0, beta=0.5, sync_period=3, slow_step_size=1.0),
        Stage(2, 0.5, beta=1.0, sync_period=2, slow_step_size=0.5),
    ]
    fast, slow = path(slrla_jax.slrla(optax.sgd, stages), 0.0, 8)
    # Stage 1 from its anchor 0: −1 → −1½ → −1¾, no step back.
    # Stage 2 from its anchor −1¾: → −2¼ → −2½ ⇒ −2⅛, where the pull is ⅜: → −2 7/16,
    # where it is 11/16: → −2 19/32 ⇒ −2 23/64. Then on with the same anchor.
    assert fast[:7] == [-1, -1.5, -1.75, -2.25, -2.125, -2.4375, -2.359375]
    assert slow[:7] == [0, 0, -1.75, -1.75, -2.125, -2.125, -2.359375]
    assert fast[7] == -2.359375 - 0.5 * (1 - (2.359375 - 1.75))


def test_half_precision_is_rounded_once():
    """Interpolation and pull use float32; tested eagerly, as compiled code may do so anyway."""
    half = functools.partial(jnp.asarray, dtype="bfloat16")
    params = half(1.0)  # the next bfloat16 is 1 + 2⁻⁷
    tx = slrla_jax.lookahead(descent(), 1, 0.75)
    updates, state = tx.update(half(-0.005), tx.init(params), params)
    # 1 + ¾ · 0.005 rounds to 1, but 1 + ¾ · 2⁻⁷ does not.
    assert updates == 0
    assert slow_params(state, params) == 1

    tx = slrla_jax.stagewise_prox(0.75, 5)
    state, params = tx.init(half(0.0)), half(171 * 2**-15)
    updates, _ = tx.update(half(1.0), state._replace(steps_taken=jnp.asarray(1)), params)
    # ¾ of this is above 2⁻⁸, so the sum rounds up; rounded first, it would be exactly 2⁻⁸.
    assert updates == 1 + 2**-7


# Schedules of the period and of the slow step size


def sync_steps(sync_period, steps):
    tx = slrla_jax.lookahead(descent(), sync_period, 0.5)
    step, params = in_one(lambda: tx), jnp.zeros(())
    state, syncs = tx.init(params), []
    for n in range(1, steps + 1):
        params, state = step((), params, state, jnp.ones(()))
        if state.synced:
            syncs.append(n)
    return syncs


def test_a_period_that_shrinks_below_the_steps_taken_syncs_at_once():
    # At the 5th step (number 4) the period is 2, and 5 steps have been taken.
    assert sync_steps(lambda step: jnp.where(step < 4, 6, 2), 10) == [5, 7, 9]


def test_a_period_that_grows_makes_the_cycle_longer():
    # The cycle that began after step 2 would have ended at step 4, but k is 5 by then.
    assert sync_steps(lambda step: jnp.where(step < 3, 2, 5), 14) == [2, 7, 12]


def test_the_slow_step_size_is_evaluated_at_the_step_of_the_sync():
    alphas = jnp.array([0.9, 0.5, 0.9, 0.25])
    fast, slow = path(slrla_jax.lookahead(descent(), 2, lambda step: alphas[step]), 0.0, 4)
    assert fast == [-1, -1, -2, -1.5]
    assert slow == [0, -1, -1, -1.5]


# Changes made to the params from outside


def test_a_change_between_cycles_moves_the_slow_weights():
    tx = slrla_jax.lookahead(descent(), 2, 0.5)
    fast, slow = path(tx, 3.0, 4, change={2: lambda params: 0 * params + 10.0})
    # 3 → 2 → 1 ⇒ 2, changed to 10 → 9 → 8 ⇒ 9
    assert fast == [2, 10, 9, 9]
    assert slow == [3, 10, 10, 9]


def test_a_change_before_the_first_step_moves_the_slow_weights():
    tx = slrla_jax.lookahead(descent(), 2, 0.5)
    state, params = tx.init(jnp.asarray(3.0)), jnp.asarray(10.0)
    assert slow_params(state, params) == 10
    _, state = tx.update(jnp.ones(()), state, params)
    assert slow_params(state, jnp.asarray(9.0)) == 10


def test_a_change_within_a_cycle_leaves_the_slow_weights_until_the_sync():
    tx = slrla_jax.lookahead(descent(), 3, 0.5)
    fast, slow = path(tx, 3.0, 4, change={1: lambda params: params + 100.0})
    # 3 → 2, changed to 102 → 101 → 100 ⇒ 51½ → 50½
    assert fast == [102, 101, 51.5, 50.5]
    assert slow == [3, 3, 51.5, 51.5]


def test_a_change_between_cycles_of_an_inner_layer_is_one_within_the_outer_cycle():
    tx = slrla_jax.multilayer_lookahead(descent(), (2, 2), (0.5, 0.5))
    fast, slow = path(tx, 4.0, 4, change={2: lambda params: params + 10.0})
    # 4 → 3 → 2 ⇒ 3, changed to 13 → 12 → 11 ⇒ 12, and the outer layer: 4 … 12 ⇒ 8
    assert fast == [3, 13, 12, 8]
    assert slow == [4, 4, 4, 8]


def test_the_anchor_follows_a_change_between_stages():
    shared = slrla_jax.slrla_sgd(1.0, 0.5, None, 2, 1.0, momentum=None)
    chain = optax.chain(slrla_jax.stagewise_prox(0.5, 2), slrla_jax.lookahead(descent(), 2, 1.0))
    for tx in (shared, chain):
        fast, _ = path(tx, 0.0, 4, change={2: lambda params: params + 10.0})
        # −1 → −1½, changed to 8½, the new anchor: → 7½ → 7
        assert fast == [-1, 8.5, 7.5, 7]


def test_float32_slow_weights_survive_the_beginning_of_a_cycle():
    """Slow weights that round to the params are kept; elsewhere the params were changed."""
    tx = slrla_jax.lookahead(descent(), 2, 0.1, slow_dtype="float32")
    step, params = in_one(lambda: tx), jnp.ones(3, "bfloat16")
    gradients = jnp.full(3, 0.004, "bfloat16")
    state = tx.init(params)
    for _ in range(2):
        params, state = step((), params, state, gradients)
    theta = np.asarray(state.cycle_start_params)
    assert np.all(theta != np.asarray(params, "float32"))

    params = params.at[1].set(5.0)
    want = np.array([theta[0], 5.0, theta[2]])
    np.testing.assert_array_equal(slow_params(state, params), want)
    params, state = step((), params, state, gradients)
    np.testing.assert_array_equal(state.cycle_start_params, want)
    np.testing.assert_array_equal(slow_params(state, params), want)


# At a limit that is taken exactly, the derivative is that of the formula


def test_the_derivative_with_respect_to_alpha_where_it_is_one():
    """θ + α (v − θ) after a sync, from 0 to −1 and −2 with slope 1: v − θ = −2."""

    def end(alpha):
        tx = slrla_jax.lookahead(descent(), 2, alpha)
        params, state = jnp.zeros(()), tx.init(jnp.zeros(()))
        for _ in range(2):
            updates, state = tx.update(jnp.ones(()), state, params)
            params = optax.apply_updates(params, updates)
        return params

    value, slope = jax.value_and_grad(end)(1.0)
    assert (value, slope) == (-2, -2)
    assert jax.grad(end)(0.5) == -2


def test_the_derivative_with_respect_to_beta_where_it_is_zero():
    """g + β (v − a), half a stage away from its anchor."""

    def pulled(beta):
        tx = slrla_jax.stagewise_prox(beta, 5)
        _, state = tx.update(jnp.ones(()), tx.init(jnp.ones(())), jnp.ones(()))
        return tx.update(jnp.ones(()), state, jnp.array(4.0))[0]

    assert jax.value_and_grad(pulled)(0.0) == (1, 3)


def test_the_derivative_with_respect_to_the_step_size_of_lookbehind_where_it_is_one():
    def end(alpha):
        tx = slrla_jax.lookbehind(descent(), 2, 0.0, alpha)
        params = jnp.array(3.0)
        return tx.update(params, tx.init(params), params, grad_fn=lambda p, i: jnp.ones(()))[0]

    assert jax.value_and_grad(end)(1.0) == (-2, -2)


def test_the_derivative_of_slow_weights_with_bits_that_the_params_lack():
    """Read between a sync and the next step, they are the params to first order."""
    tx = slrla_jax.lookahead(optax.sgd(2.0**-7), 1, 0.125, slow_dtype="float32")
    params = jnp.ones(2, "bfloat16")
    updates, state = tx.update(params, tx.init(params), params)
    params = optax.apply_updates(params, updates)
    slope = jax.grad(lambda params: jnp.sum(slow_params(state, params)))(params)
    np.testing.assert_array_equal(np.asarray(slope, float), [1, 1])


@pytest.mark.parametrize("adaptive", [False, True])
def test_derivatives_where_a_norm_is_zero_are_finite(adaptive):
    def end(grads):
        tx = slrla_jax.lookbehind(descent(), 2, 0.3, "adaptive" if adaptive else 0.5)
        params = jnp.ones(3)
        return jnp.sum(tx.update(grads, tx.init(params), params, grad_fn=lambda p, i: grads)[0])

    assert np.all(np.isfinite(jax.grad(end)(jnp.zeros(3))))

    def bounded(grads):
        tx = slrla_jax.adabound(0.1, eps=0.0)
        return jnp.sum(tx.update(grads, tx.init(jnp.ones(3)), jnp.ones(3))[0])

    assert np.all(np.isfinite(jax.grad(bounded)(jnp.array([0.0, 1.0, 0.0]))))


# Numbers at the ends of the range of a dtype


@pytest.mark.parametrize("compiled", [in_one, apart])
def test_subnormal_float16_params_equal_the_rounded_slow_weights(compiled):
    """Entries of 2⁻¹⁸ and multiples of 2⁻²⁴, the only values that float16 has there."""
    tx, units = slrla_jax.lookahead(descent(), 2, 0.25, slow_dtype="float32"), 2.0**-24
    params = jnp.asarray(units * np.arange(60, 70), "float16")
    step, state = compiled(lambda: tx), tx.init(params)
    theta = np.asarray(params, "float64")
    for n in range(8):
        if n % 2 == 0:
            v = np.asarray(params, "float64")
        params, state = step((), params, state, jnp.full(10, 3 * units, "float16"))
        v = v - 3 * units
        if n % 2 == 1:
            theta = theta + 0.25 * (v - theta)
            np.testing.assert_array_equal(slow_params(state, params), theta)
            rounded = units * np.round(theta / units)
            np.testing.assert_array_equal(np.asarray(params, "float64"), rounded)


# A change before the first step


@pytest.mark.parametrize("lengths", [4, [4, 4]])
def test_the_anchor_of_the_first_stage_is_that_of_its_first_step(lengths):
    """Not that of `init`, if the params are changed in between."""
    tx = slrla_jax.stagewise_prox(0.5, lengths)
    state = tx.init(jnp.array(3.0))
    for v in (10.0, 9.0):
        updates, state = tx.update(jnp.zeros(()), state, jnp.array(v))
        assert updates == 0.5 * (v - 10)


def test_stages_that_share_a_slow_step_size_have_it_as_a_number():
    """α = 1 is then compiled away for all of them, as it is for a single lookahead."""

    def has_a_limit(stages):
        tx = slrla_jax.slrla(lambda lr: descent(), stages)
        state = tx.init(jnp.ones(7))
        return "custom_jvp" in str(jax.make_jaxpr(tx.update)(jnp.ones(7), state, jnp.ones(7)))

    shared = [Stage(2, 0.1, slow_step_size=1.0), Stage(1, 0.1, slow_step_size=1.0)]
    assert not has_a_limit(shared)
    assert has_a_limit([shared[0], Stage(1, 0.1, slow_step_size=0.5)])


# One program or two


def test_a_step_back_of_half_precision_is_the_same_in_one_program_and_in_two():
    """From 1 to 0.998 of the way to 0, rounded: no bfloat16 update leads exactly there."""
    tx, ends = slrla_jax.lookahead(descent(), 1, 0.998), []
    for compiled in (in_one, apart):
        params = jnp.ones(5, "bfloat16")
        params, _ = compiled(lambda: tx)((), params, tx.init(params), params)
        ends.append(params)
    assert_same_bits(*ends)
    # −0.998 is −255/256 there.
    np.testing.assert_array_equal(np.asarray(ends[0], float), np.full(5, 1 / 256))
