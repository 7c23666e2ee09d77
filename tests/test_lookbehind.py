"""SAM, ASAM and Lookbehind, compared with NumPy loops in the order of the released code."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec
from transforms_table import quick_jit
from x64 import enable_x64

import slrla_jax

MATRIX = np.random.default_rng(0).normal(size=(6, 6)) / 3
START = {"w": np.linspace(-1, 1, 6).reshape(2, 3), "b": np.array([0.5, -1.0, 0.0])}


def gradient(params, np=np):
    """The gradient of a loss with a quadratic and a quartic part, for NumPy or JAX arrays."""
    x = np.concatenate([params["w"].reshape(-1), params["b"]])
    x = x + np.concatenate([MATRIX @ x[:6], np.zeros(3)]) + 0.1 * x**3
    return {"w": x[:6].reshape(2, 3), "b": x[6:]}


def jax_gradient(params):
    grads = gradient({k: v.astype(jnp.result_type(v, jnp.float32)) for k, v in params.items()}, jnp)
    return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)


class Momentum:
    def __init__(self, rate, decay):
        self.rate, self.decay, self.trace = rate, decay, {"w": 0.0, "b": 0.0}

    def __call__(self, v, g):
        self.trace = {k: self.decay * self.trace[k] + g[k] for k in v}
        return {k: v[k] - self.rate * self.trace[k] for k in v}


class Adam:
    def __init__(self, rate):
        self.rate, self.t = rate, 0
        self.m, self.v = {"w": 0.0, "b": 0.0}, {"w": 0.0, "b": 0.0}

    def __call__(self, x, g):
        self.t += 1
        self.m = {k: 0.9 * self.m[k] + 0.1 * g[k] for k in x}
        self.v = {k: 0.999 * self.v[k] + 0.001 * g[k] ** 2 for k in x}
        m = {k: self.m[k] / (1 - 0.9**self.t) for k in x}
        v = {k: self.v[k] / (1 - 0.999**self.t) for k in x}
        return {k: x[k] - self.rate * m[k] / (np.sqrt(v[k]) + 1e-8) for k in x}


INNER = {
    "momentum": (partial(Momentum, 0.05, 0.9), optax.sgd(0.05, momentum=0.9)),
    "adam": (partial(Adam, 0.05), optax.adam(0.05)),
}


def cosine(x, y):
    norms = np.sqrt((x**2).sum()) * np.sqrt((y**2).sum())
    return (x * y).sum() / norms if norms > 0 else 0.0


def flat(tree):
    return np.concatenate([tree["w"].reshape(-1), tree["b"]])


def ascend(phi, g, rho, eta):
    """φ + ε(g), with the ε of ASAM if η is given."""
    t = {k: 1.0 if eta is None or phi[k].ndim < 2 else np.abs(phi[k]) + eta for k in phi}
    norm = np.sqrt(sum(((t[k] * g[k]) ** 2).sum() for k in g))
    return {k: phi[k] + (rho * t[k] ** 2 * g[k] / norm if norm > 0 else 0.0) for k in phi}


def reference(inner, steps, k, rho, alpha, eta=None, how="per_leaf"):
    """θ after each training step, with 2k gradient evaluations per step."""
    theta, path = START, []
    for _ in range(steps):
        phi, v, first = theta, theta, None
        for _ in range(k):
            phi = ascend(phi, gradient(phi), rho, eta)
            v = inner(v, gradient(phi))
            first = first or v
        way, first = ({n: x[n] - theta[n] for n in theta} for x in (v, first))
        if alpha != "adaptive":
            alphas = dict.fromkeys(theta, alpha)
        elif how == "global":
            alphas = dict.fromkeys(theta, (cosine(flat(first), flat(way)) + 1) / 2)
        else:
            alphas = {n: (cosine(first[n], way[n]) + 1) / 2 for n in theta}
        theta = {n: theta[n] + alphas[n] * way[n] for n in theta}
        path.append(theta)
    return path


def run(tx, steps, params=START, jit=True):
    params = jax.tree.map(jnp.asarray, params)
    state, path = tx.init(params), []

    def step(params, state):
        updates, state = tx.update(
            jax_gradient(params), state, params, grad_fn=lambda p, i: jax_gradient(p)
        )
        return optax.apply_updates(params, updates), state

    step = quick_jit(step) if jit else step
    for _ in range(steps):
        params, state = step(params, state)
        path.append(params)
    return path


def assert_close(path, expected, **tolerance):
    for got, wanted in zip(path, expected, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), got, wanted)


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    inner=st.sampled_from(list(INNER)),
    k=st.integers(1, 4),
    rho=st.floats(0.0, 0.5),
    alpha=st.one_of(st.floats(0.1, 1.0), st.just("adaptive")),
    eta=st.one_of(st.none(), st.floats(0.0, 0.1)),
    how=st.sampled_from(["per_leaf", "global"]),
)
def test_follows_the_released_loop(inner, k, rho, alpha, eta, how):
    numpy_inner, optax_inner = INNER[inner]
    adaptive = {} if eta is None else {"adaptive_rho": True, "eta": eta}
    with enable_x64(True):
        tx = slrla_jax.lookbehind(optax_inner, k, rho, alpha, cosine=how, **adaptive)
        path = run(tx, 4)
    assert_close(path, reference(numpy_inner(), 4, k, rho, alpha, eta, how), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_makes_k_calls_and_counts_them_up(k):
    calls = []
    tx = slrla_jax.lookbehind(optax.sgd(0.1), k)
    params = {"w": jnp.ones((2, 2))}

    def grad_fn(params, i):
        calls.append(i)
        return params

    tx.update(params, tx.init(params), params, grad_fn=grad_fn)
    assert calls == list(range(k))


def test_the_inner_state_advances_k_steps_per_training_step():
    tx = slrla_jax.lookbehind(optax.adam(0.1), 3)
    params = {"w": jnp.ones((2, 2))}
    _, state = tx.update(params, tx.init(params), params, grad_fn=lambda p, i: p)
    assert int(optax.tree_utils.tree_get(state, "count")) == 3


@pytest.mark.parametrize("inner", [optax.sgd(0.1, momentum=0.9), optax.adam(0.01)])
def test_sam_equals_the_sam_of_optax(inner):
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.3))
    theirs = optax.contrib.sam(inner, adversary, sync_period=2, opaque_mode=True)
    assert_close(run(slrla_jax.sam(inner, 0.3), 6), run(theirs, 6), rtol=1e-5, atol=1e-6)


def test_asam_is_lookbehind_with_one_step():
    tx = slrla_jax.asam(optax.sgd(0.05, momentum=0.9), rho=0.5, eta=0.01)
    expected = reference(Momentum(0.05, 0.9), 5, 1, 0.5, 1.0, eta=0.01)
    assert_close(run(tx, 5), expected, rtol=1e-4, atol=1e-5)


def test_no_ascent_and_no_step_back_are_the_inner_optimizer_bit_for_bit():
    inner = optax.sgd(0.05, momentum=0.9)
    plain = optax.GradientTransformationExtraArgs(
        inner.init, lambda g, s, p, grad_fn: inner.update(g, s, p)
    )
    assert_close(run(slrla_jax.sam(inner, rho=0.0), 5, jit=False), run(plain, 5, jit=False), rtol=0)


def test_the_mask_says_which_leaves_are_weights():
    tx = slrla_jax.asam(optax.sgd(1.0), rho=1.0, eta=0.0, weight_mask={"w": False, "b": True})
    params = {"w": jnp.array([[2.0]]), "b": jnp.array([3.0])}
    seen = []
    tx.update(
        {"w": jnp.array([[4.0]]), "b": jnp.array([1.0])},
        tx.init(params),
        params,
        grad_fn=lambda p, i: seen.append(p) or p,
    )
    # T = (1, 3), Tg = (4, 3), ‖Tg‖ = 5, T²g = (4, 9).
    np.testing.assert_allclose(seen[0]["w"], [[2 + 4 / 5]], rtol=1e-6)
    np.testing.assert_allclose(seen[0]["b"], [3 + 9 / 5], rtol=1e-6)
    by_function = slrla_jax.asam(
        optax.sgd(1.0), 1.0, 0.0, weight_mask=lambda p: {"w": False, "b": True}
    )
    again = []
    by_function.update(
        {"w": jnp.array([[4.0]]), "b": jnp.array([1.0])},
        by_function.init(params),
        params,
        grad_fn=lambda p, i: again.append(p) or p,
    )
    assert_close(again, seen, rtol=0)


# Frozen params.

PARTS = {"backbone": {"w": jnp.array([[1.0, -0.0], [2.0, 3.0]])}, "head": jnp.array([0.5, -1.0])}
TRAINED = {"backbone": False, "head": True}


def of_the_head(tx):
    groups = {"backbone": "freeze", "head": "train"}
    return optax.partition({"train": tx, "freeze": optax.set_to_zero()}, groups)


@jax.grad
def parts_gradient(params):
    features = jnp.sum(params["backbone"]["w"], 0)
    return jnp.sum((params["head"] * features - 1) ** 4) / 100


@pytest.mark.parametrize("mask", [TRAINED, lambda params: TRAINED], ids=["tree", "function"])
@pytest.mark.parametrize(
    "make",
    [
        lambda inner, **mask: slrla_jax.sam(inner, 0.3, **mask),
        lambda inner, **mask: slrla_jax.asam(inner, 0.3, **mask),
        lambda inner, **mask: slrla_jax.lookbehind(inner, 3, 0.3, 0.5, **mask),
        lambda inner, **mask: slrla_jax.lookbehind(inner, 2, 0.3, "adaptive", **mask),
    ],
    ids=["sam", "asam", "lookbehind", "lookbehind-adaptive"],
)
def test_the_ascent_skips_frozen_params(make, mask):
    """The head moves as if there were no backbone; the backbone is unchanged bit-for-bit."""

    def grad_fn(there, i):
        np.testing.assert_array_equal(
            *(np.asarray(p["backbone"]["w"]).view("uint32") for p in (there, params))
        )
        return parts_gradient(there)

    def head_gradient(head):
        return parts_gradient({"backbone": PARTS["backbone"], "head": head})["head"]

    tx = make(of_the_head(optax.sgd(0.1, momentum=0.9)), ascent_mask=mask)
    alone = make(optax.sgd(0.1, momentum=0.9))
    params, head = PARTS, PARTS["head"]
    state, alone_state = tx.init(params), alone.init(head)
    for _ in range(3):
        updates, state = tx.update(parts_gradient(params), state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
        updates, alone_state = alone.update(
            head_gradient(head), alone_state, head, grad_fn=lambda p, i: head_gradient(p)
        )
        head = optax.apply_updates(head, updates)
        np.testing.assert_allclose(params["head"], head, rtol=1e-5)
    np.testing.assert_array_equal(params["backbone"]["w"], PARTS["backbone"]["w"])


def test_masked_params_in_grad_fn_are_explained():
    outside = of_the_head(slrla_jax.sam(optax.sgd(0.1)))
    grads = parts_gradient(PARTS)
    with pytest.raises(Exception, match="w") as error:
        outside.update(
            grads, outside.init(PARTS), PARTS, grad_fn=lambda p, i: {"w": p["backbone"]["w"]}
        )
    assert "`ascent_mask`" in "".join(error.value.__notes__)


def test_grad_fn_returns_what_update_is_given():
    tx = slrla_jax.sam(optax.sgd(0.1))
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="`grad_fn` must return a tree like the gradients"):
        tx.update(params, tx.init(params), params, grad_fn=lambda p, i: p["w"])
    outside = of_the_head(tx)
    with pytest.raises(ValueError, match=r"`grad_fn` must return.*`ascent_mask`"):
        outside.update(PARTS, outside.init(PARTS), PARTS, grad_fn=lambda p, i: PARTS)


@pytest.mark.parametrize("adaptive_rho", [False, True])
def test_a_zero_gradient_does_nothing(adaptive_rho):
    tx = slrla_jax.lookbehind(
        optax.sgd(0.1), 3, slow_step_size="adaptive", adaptive_rho=adaptive_rho, eta=0.0
    )
    params = {"w": jnp.zeros((2, 2)), "b": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(
        lambda: tx.update(zero, tx.init(params), params, grad_fn=lambda p, i: zero)
    )()
    assert_close([updates], [zero], rtol=0)


def test_a_zero_difference_counts_as_cosine_zero():
    # v_1 = θ, because the first descent gradient is zero, so α = 1/2.
    tx = slrla_jax.lookbehind(optax.sgd(1.0), 2, rho=0.0, slow_step_size="adaptive")
    params = {"w": jnp.array([[1.0]])}
    updates, _ = tx.update(
        params, tx.init(params), params, grad_fn=lambda p, i: {"w": jnp.full((1, 1), 4.0 * i)}
    )
    assert float(updates["w"][0, 0]) == -2.0


def test_a_single_leaf_and_leaves_that_are_none():
    tx = slrla_jax.lookbehind(optax.sgd(0.1), 2, slow_step_size="adaptive", cosine="global")
    for params in (jnp.ones(()), {"w": jnp.ones((2, 2)), "none": None}, {}):
        updates, _ = tx.update(params, tx.init(params), params, grad_fn=lambda p, i: p)
        assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.parametrize("alpha", [0.5, "adaptive"])
def test_bf16_keeps_its_dtype_and_follows_float32(alpha):
    tx = slrla_jax.lookbehind(optax.sgd(0.05, momentum=0.9), 2, 0.3, alpha, adaptive_rho=True)
    half = run(tx, 4, jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), START))
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
    single = run(tx, 4)
    as_float = [jax.tree.map(lambda x: x.astype(jnp.float32), x) for x in half]
    assert_close(as_float, single, atol=0.03)


def test_vmap_over_seeds_and_step_sizes():
    def final(rho, alpha):
        tx = slrla_jax.lookbehind(optax.sgd(0.05), 2, rho, alpha)
        return run(tx, 3, jit=False)[-1]

    rhos, alphas = jnp.array([0.0, 0.3]), jnp.array([1.0, 0.5])
    together = jax.vmap(final)(rhos, alphas)
    for n in range(2):
        alone = final(float(rhos[n]), float(alphas[n]))
        assert_close([jax.tree.map(lambda x, n=n: x[n], together)], [alone], rtol=1e-5, atol=1e-6)


def loss(params, batch):
    return jnp.mean((batch @ params["w"] - 1.0) ** 2) + jnp.sum(params["b"] ** 4)


def device_step(tx, params, state, batch, mean):
    def grad_fn(params, i):
        return mean(jax.grad(loss)(params, batch))

    updates, state = tx.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("how", ["pmap", "shard_map"])
def test_devices_give_the_trajectory_of_one(how):
    devices = 8
    tx = slrla_jax.lookahead(slrla_jax.lookbehind(optax.sgd(0.1, momentum=0.9), 2, 0.3), 2)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), START)
    batch = jnp.asarray(np.random.default_rng(1).normal(size=(16, 2)), jnp.float32)
    one, state = params, tx.init(params)
    for _ in range(5):
        one, state = jax.jit(partial(device_step, tx, mean=lambda g: g))(one, state, batch)

    mean = partial(jax.lax.pmean, axis_name="data")
    if how == "pmap":
        copies = jax.tree.map(lambda x: jnp.stack([x] * devices), (params, tx.init(params)))
        step = jax.pmap(partial(device_step, tx, mean=mean), axis_name="data")
        batches = batch.reshape(devices, 2, 2)
        for _ in range(5):
            copies = step(*copies, batches)
        several = jax.tree.map(lambda x: x[0], copies[0])
    else:
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
        whole, parts = PartitionSpec(), PartitionSpec("data")

        def shard_step(params, state, batch):
            # Gradients of replicated params would be summed, so differentiate varying params.
            def grad_fn(params, i):
                varying = jax.tree.map(lambda p: jax.lax.pcast(p, "data", to="varying"), params)
                return mean(jax.grad(loss)(varying, batch))

            updates, state = tx.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, updates), state

        step = jax.jit(
            jax.shard_map(
                shard_step, mesh=mesh, in_specs=(whole, whole, parts), out_specs=(whole, whole)
            )
        )
        several, state = params, tx.init(params)
        for _ in range(5):
            several, state = step(several, state, batch)
    assert_close([several], [one], rtol=1e-5, atol=1e-6)


def test_under_slrla_every_gradient_and_the_loss_are_regularised():
    stages = [slrla_jax.Stage(2, 0.1, beta=0.7, sync_period=2), slrla_jax.Stage(2, 0.05, beta=0.3)]
    asked = []

    def record(lr):
        inner = optax.sgd(lr)

        def update(updates, state, params, value, **_):
            asked.append(float(value))
            return inner.update(updates, state, params)

        return slrla_jax.lookbehind(
            optax.GradientTransformationExtraArgs(inner.init, update), 2, 0.3, 0.5
        )

    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), START)
    batch = jnp.ones((1, 2))
    tx = slrla_jax.slrla(record, stages)
    state = tx.init(params)
    by_hand = slrla_jax.lookahead(
        slrla_jax.lookbehind(optax.sgd(lambda count: jnp.where(count < 4, 0.1, 0.05)), 2, 0.3, 0.5),
        lambda count: jnp.where(count < 4, 2, 5),
        0.8,
    )
    hand, hand_state, values = params, by_hand.init(params), []
    for step in range(7):
        if step in (0, 4):
            anchor, beta = hand, {0: 0.7, 4: 0.3}[step]

        def objective(p, anchor=anchor, beta=beta):
            pull = sum(jnp.sum((x - a) ** 2) for x, a in zip(
                jax.tree.leaves(p), jax.tree.leaves(anchor), strict=True))  # fmt: skip
            return loss(p, batch) + beta / 2 * pull

        values += [float(objective(hand))] * 2
        updates, hand_state = by_hand.update(
            jax.grad(objective)(hand), hand_state, hand,
            grad_fn=lambda p, i, objective=objective: jax.grad(objective)(p),
        )  # fmt: skip
        hand = optax.apply_updates(hand, updates)
        updates, state = tx.update(
            jax.grad(loss)(params, batch), state, params, value=loss(params, batch),
            grad_fn=lambda p, i: jax.grad(loss)(p, batch),
        )  # fmt: skip
        params = optax.apply_updates(params, updates)
        assert_close([params], [hand], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(asked, values, rtol=1e-5)


def test_under_multi_steps_the_gradient_is_that_of_the_whole_batch():
    batches = [jnp.eye(2), 2 * jnp.eye(2)]
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), START)

    def grad_fn(params, i):
        return jax.tree.map(lambda *g: sum(g) / 2, *(jax.grad(loss)(params, b) for b in batches))

    tx = slrla_jax.sam(optax.sgd(0.1), 0.3)
    expected, _ = tx.update(grad_fn(params, 0), tx.init(params), params, grad_fn=grad_fn)
    steps = optax.MultiSteps(tx, 2)
    state = steps.init(params)
    for batch in batches:
        updates, state = steps.update(jax.grad(loss)(params, batch), state, params, grad_fn=grad_fn)
    assert_close([updates], [expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("ascent_steps", 0), ("ascent_steps", 1.5), ("rho", -0.1), ("eta", -1.0),
     ("slow_step_size", 0.0), ("slow_step_size", "adaptiv"), ("cosine", "leaf")],
)  # fmt: skip
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=f"`{name}`.*{value}"):
        slrla_jax.lookbehind(optax.sgd(0.1), **{name: value})


@pytest.mark.parametrize("make", [slrla_jax.sam, slrla_jax.asam, slrla_jax.lookbehind])
def test_a_missing_grad_fn_is_named(make):
    tx = make(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"`grad_fn`.*None"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))


# Inputs of the ascent and the descent


class DecayedMomentum(Momentum):
    """SGD with momentum and L2, which depends on the weights it moves."""

    def __init__(self, rate, decay, weight_decay):
        super().__init__(rate, decay)
        self.weight_decay = weight_decay

    def __call__(self, v, g):
        return super().__call__(v, {k: g[k] + self.weight_decay * v[k] for k in v})


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_inner_optimizer_sees_the_fast_weights(k):
    inner = optax.chain(optax.add_decayed_weights(0.7), optax.sgd(0.05, momentum=0.9))
    with enable_x64(True):
        path = run(slrla_jax.lookbehind(inner, k, 0.2, 0.6), 5)
    expected = reference(DecayedMomentum(0.05, 0.9, 0.7), 5, k, 0.2, 0.6)
    assert_close(path, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("k", [2, 4])
def test_asam_scales_by_the_weights_at_the_ascent_point(k):
    """ASAM's T is evaluated at φ, which changes in every ascent step, and not at θ."""
    with enable_x64(True):
        tx = slrla_jax.lookbehind(optax.sgd(0.05, 0.9), k, 0.5, 0.6, adaptive_rho=True, eta=0.1)
        path = run(tx, 5)
    expected = reference(Momentum(0.05, 0.9), 5, k, 0.5, 0.6, eta=0.1)
    assert_close(path, expected, rtol=1e-9, atol=1e-9)


def climbed(tx, params, grads):
    """The params at the first call of `grad_fn`, that is, after the first ascent step."""
    seen = []
    tx.update(grads, tx.init(params), params, grad_fn=lambda p, i: seen.append(p) or grads)
    return seen[0]


@pytest.mark.parametrize("by_function", [False, True])
@pytest.mark.parametrize("make", ["sam", "asam", "lookbehind"])
def test_leaves_outside_the_ascent_mask_neither_move_nor_count(make, by_function):
    mask = {"w": True, "b": False}
    settings = {"rho": 0.5, "ascent_mask": (lambda params: mask) if by_function else mask}
    params = {"w": jnp.array([[1.0, -2.0]]), "b": jnp.array([3.0, 5.0])}
    grads = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([70.0, 80.0])}
    there = climbed(getattr(slrla_jax, make)(optax.sgd(0.1), **settings), params, grads)
    if make == "asam":
        # T = (1.01, 2.01)
        t, g = np.array([[1.01, 2.01]]), np.array([[3.0, 4.0]])
        up = 0.5 * t**2 * g / np.sqrt(((t * g) ** 2).sum())
    else:
        up = 0.5 * np.array([[0.6, 0.8]])
    np.testing.assert_allclose(there["w"], np.array([[1.0, -2.0]]) + up, rtol=1e-6)
    np.testing.assert_array_equal(there["b"], [3.0, 5.0])


@pytest.mark.parametrize("make", [slrla_jax.sam, slrla_jax.asam])
def test_the_ascent_step_of_a_zero_gradient_is_zero(make):
    params = {"w": jnp.array([[1.0, -2.0]])}
    there = climbed(make(optax.sgd(0.1)), params, {"w": jnp.zeros((1, 2))})
    np.testing.assert_array_equal(there["w"], params["w"])


def test_a_mask_may_be_a_prefix():
    params = {"layer": {"w": jnp.array([[2.0]]), "b": jnp.array([3.0])}, "head": jnp.array([1.0])}
    grads = {"layer": {"w": jnp.array([[4.0]]), "b": jnp.array([1.0])}, "head": jnp.array([0.0])}
    tx = slrla_jax.asam(optax.sgd(1.0), 1.0, 0.0, weight_mask={"layer": True, "head": False})
    there = climbed(tx, params, grads)
    # T = (2, 3), Tg = (8, 3), T²g = (16, 9).
    np.testing.assert_allclose(there["layer"]["w"], [[2 + 16 / np.sqrt(73)]], rtol=1e-6)
    np.testing.assert_allclose(there["layer"]["b"], [3 + 9 / np.sqrt(73)], rtol=1e-6)


def test_asam_counts_a_zero_weight_as_eta():
    params, grads = {"w": jnp.zeros((1, 2))}, {"w": jnp.array([[3.0, 4.0]])}
    there = climbed(slrla_jax.asam(optax.sgd(0.1), rho=0.5, eta=0.2), params, grads)
    # T = 0.2: ρ T² g / ‖T g‖ = ρ T g / ‖g‖.
    np.testing.assert_allclose(there["w"], 0.5 * 0.2 * np.array([[0.6, 0.8]]), rtol=1e-6)


def test_the_step_behind_starts_where_the_last_one_ended():
    seen = []
    tx = slrla_jax.lookbehind(optax.sgd(100.0), 3, rho=0.5)
    params, grads = jnp.array([1.0, 2.0]), jnp.array([0.6, 0.8])
    tx.update(grads, tx.init(params), params, grad_fn=lambda p, i: seen.append(p) or grads)
    for i, there in enumerate(seen, start=1):
        np.testing.assert_allclose(there, [1 + 0.3 * i, 2 + 0.4 * i], rtol=1e-6)


def test_frozen_params_without_gradients_are_passed_to_grad_fn():
    params = {"w": jnp.ones((2, 2)), "frozen": jnp.full(2, 7.0)}
    seen = []

    def grad_fn(params, i):
        seen.append(params["frozen"])
        return {"w": params["w"], "frozen": None}

    tx = slrla_jax.lookbehind(optax.sgd(0.1), 2, 0.3, "adaptive")
    updates, _ = tx.update(grad_fn(params, 0), tx.init(params), params, grad_fn=grad_fn)
    assert updates["frozen"] is None
    np.testing.assert_array_equal(seen, np.full((3, 2), 7.0))


# Complex leaves, half precision and small numbers


@pytest.mark.parametrize("how", ["per_leaf", "global"])
def test_the_adaptive_step_size_of_complex_leaves(how):
    """The cosine treats real and imaginary parts as separate numbers."""
    rng = np.random.default_rng(3)
    shapes = {"z": (3,), "y": (2, 2)}
    first, second = ({n: rng.normal(size=(2, *s)) for n, s in shapes.items()} for _ in range(2))

    def as_complex(parts):
        return {n: jnp.asarray(x[0] + 1j * x[1]) for n, x in parts.items()}

    with enable_x64(True):
        given = [as_complex(first), as_complex(second)]
        params = jax.tree.map(jnp.ones_like, given[0])
        tx = slrla_jax.lookbehind(optax.sgd(1.0), 2, 0.0, "adaptive", cosine=how)
        updates, _ = tx.update(given[0], tx.init(params), params, grad_fn=lambda p, i: given[i])
    way = {n: first[n] + second[n] for n in shapes}
    if how == "global":
        x, y = (np.concatenate([part[n].reshape(-1) for n in shapes]) for part in (first, way))
        cosines = dict.fromkeys(shapes, cosine(x, y))
    else:
        cosines = {n: cosine(first[n], way[n]) for n in shapes}
    for n in shapes:
        moved = -(cosines[n] + 1) / 2 * way[n]
        np.testing.assert_allclose(updates[n], moved[0] + 1j * moved[1], rtol=1e-12)


def test_asam_on_complex_leaves_measures_by_their_absolute_values():
    z = np.array([[3.0 + 4.0j, -1.0j]])
    g = np.array([[1.0 - 1.0j, 2.0 + 0.5j]])
    with enable_x64(True):
        tx = slrla_jax.asam(optax.sgd(0.1), rho=0.5, eta=0.1)
        there = climbed(tx, {"z": jnp.asarray(z)}, {"z": jnp.asarray(g)})["z"]
    t = np.array([[5.1, 1.1]])
    length = np.sqrt((t**2 * (g.real**2 + g.imag**2)).sum())
    np.testing.assert_allclose(there, z + 0.5 * t**2 * g / length, rtol=1e-12)


@pytest.mark.parametrize("size", [3e-4, 300.0, 3e4])
def test_the_ascent_of_half_precision_is_computed_in_float32(size):
    """Their squares exceed the range of float16, and so may ρ / ‖g‖."""
    params = {"w": jnp.zeros((1, 2), jnp.float16)}
    grads = {"w": jnp.array([[3.0, 4.0]], jnp.float16) * jnp.float16(size / 4)}
    for make in (slrla_jax.sam, slrla_jax.asam):
        tx = make(optax.sgd(0.1), rho=0.5, **({"eta": 1.0} if make is slrla_jax.asam else {}))
        there = climbed(tx, params, grads)["w"]
        assert there.dtype == jnp.float16
        np.testing.assert_allclose(np.asarray(there, float), [[0.3, 0.4]], rtol=6e-4)


def test_the_adaptive_step_size_of_half_precision_is_computed_in_float32():
    """Differences of 300, whose squares overflow float16, and a cosine of 0.6."""
    params = jnp.zeros(2, jnp.float16)
    given = [jnp.array(g, jnp.float16) for g in ([300.0, 0.0], [-120.0, 240.0])]
    tx = slrla_jax.lookbehind(optax.sgd(1.0), 2, 0.0, "adaptive")
    updates, _ = tx.update(given[0], tx.init(params), params, grad_fn=lambda p, i: given[i])
    # v_1 − θ = −(300, 0), v_2 − θ = −(180, 240)
    np.testing.assert_allclose(np.asarray(updates, float), [-0.8 * 180, -0.8 * 240], rtol=1e-3)


def test_the_difference_in_half_precision_is_rounded_once():
    """From 1 to −2⁻⁹ it is −(1 + 2⁻⁹), which bfloat16 rounds to −1; 0.998 of that is not −1."""
    half = partial(jnp.asarray, dtype=jnp.bfloat16)
    params, given = half(1.0), [half(1.0), half(2.0**-9)]
    tx = slrla_jax.lookbehind(optax.sgd(1.0), 2, 0.0, 0.998)
    updates, _ = tx.update(given[0], tx.init(params), params, grad_fn=lambda p, i: given[i])
    assert updates.dtype == jnp.bfloat16
    assert float(updates) == -1


def test_the_adaptive_step_size_of_tiny_steps():
    """Differences of 1e-13; the product of their squared norms underflows float32."""
    params = jnp.zeros(2)
    given = [jnp.array([3e-13, 0.0]), jnp.array([0.0, 4e-13])]
    tx = slrla_jax.lookbehind(optax.sgd(1.0), 2, 0.0, "adaptive")
    updates, _ = tx.update(given[0], tx.init(params), params, grad_fn=lambda p, i: given[i])
    np.testing.assert_allclose(updates, -0.8 * np.array([3e-13, 4e-13]), rtol=1e-5)


def test_the_updates_of_sam_are_those_of_the_inner_optimizer_bit_for_bit():
    """They are not computed as new params minus params, which would round them."""
    params, grads = jnp.array([1.0, -300.0]), jnp.array([1 / 3, 1e-5])
    tx = slrla_jax.sam(optax.sgd(0.01), 0.0)
    updates, _ = tx.update(grads, tx.init(params), params, grad_fn=lambda p, i: grads)
    expected, _ = optax.sgd(0.01).update(grads, optax.sgd(0.01).init(params))
    np.testing.assert_array_equal(updates, expected)


def test_params_keep_their_dtype_behind_and_fast():
    """Even if gradients and updates are wider."""
    seen = []
    wide = {"w": jnp.ones((2, 2), jnp.float32)}
    inner = optax.GradientTransformation(
        lambda params: optax.EmptyState(),
        lambda g, state, params: (seen.append(params["w"].dtype) or g, state),
    )
    params = {"w": jnp.ones((2, 2), jnp.bfloat16)}
    tx = slrla_jax.lookbehind(inner, 2, 0.3)
    tx.update(wide, tx.init(params), params, grad_fn=lambda p, i: seen.append(p["w"].dtype) or wide)
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}


# Error messages


def test_errors_in_grad_fn_mention_an_outer_mask():
    tx = optax.masked(slrla_jax.sam(optax.sgd(0.1)), {"w": True, "b": False})
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}

    def grad_fn(params, i):
        return {"w": params["w"] + params["b"], "b": params["b"]}

    with pytest.raises(TypeError) as error:
        tx.update(params, tx.init(params), params, grad_fn=grad_fn)
    assert "`ascent_mask`" in error.value.__notes__[0]

    def broken(params, i):
        raise KeyError("an error in the user's code")

    alone = slrla_jax.sam(optax.sgd(0.1))
    with pytest.raises(KeyError) as error:
        alone.update(params, alone.init(params), params, grad_fn=broken)
    assert not hasattr(error.value, "__notes__")


def a_schedule(count):
    return 0.5


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("inner", optax.sgd, "function"),
        ("ascent_steps", a_schedule, "a_schedule"),
        ("rho", a_schedule, "a_schedule"),
        ("rho", float("inf"), "inf"),
        ("eta", a_schedule, "a_schedule"),
        ("slow_step_size", a_schedule, "a_schedule"),
        ("slow_step_size", 1.5, "1.5"),
    ],
)
def test_more_bad_arguments_are_named(name, value, shown):
    with pytest.raises(ValueError, match=f"`{name}`.*{shown}"):
        slrla_jax.lookbehind(**{"inner": optax.sgd(0.1), name: value})


@pytest.mark.parametrize("make", [slrla_jax.sam, slrla_jax.asam, slrla_jax.lookbehind])
def test_missing_params_are_named(make):
    tx = make(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"`params`.*None"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)), grad_fn=lambda p, i: p)


@pytest.mark.parametrize("name", ["ascent_mask", "weight_mask"])
def test_masks_are_trees_of_booleans(name):
    def update(mask):
        tx = slrla_jax.asam(optax.sgd(0.1), **{name: mask})
        params = {"head": jnp.ones(2), "body": jnp.ones((2, 2))}
        tx.update(params, tx.init(params), params, grad_fn=lambda p, i: p)

    update({"head": True, "body": np.bool_(False)})
    for bad in ("head", {"head": 1, "body": 0}, lambda params: jnp.array(True)):
        with pytest.raises(ValueError, match=f"`{name}` must be a tree of booleans"):
            update(bad)
    with pytest.raises(ValueError, match=f"`{name}` must be a tree of booleans"):
        update({"wrong": True})


def test_no_line_search_within_several_ascent_steps():
    for steps in (1, 2):
        tx = slrla_jax.lookbehind(optax.lbfgs(), steps)
        if steps == 1:
            tx.init(jnp.ones(2))
        else:
            with pytest.raises(ValueError, match=r"`inner` must have no line search.*got 2"):
                tx.init(jnp.ones(2))


def test_gradients_of_another_shape_are_named():
    tx, params = slrla_jax.sam(optax.sgd(0.1)), {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"`grad_fn`.*shape \(\) instead of \(2,\).*\['w'\]"):
        tx.update(params, tx.init(params), params, grad_fn=lambda p, i: {"w": jnp.zeros(())})
