"""Slow weights under transformations that change the leaves or the tree of the params."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

from slrla_jax import lookahead, slow_params

SLOPE, ALPHA, K = 0.25, 0.5, 3


def expected(start, steps):
    """Params and slow weights after a number of steps of −SLOPE, with a sync at every K-th."""
    params = slow = start
    for n in range(1, steps + 1):
        params = params - SLOPE
        if n % K == 0:
            params = slow = slow + ALPHA * (params - slow)
    return params, slow


def steps_of(tx, params, gradients, steps):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("steps", [0, 1, 3, 4])
def test_inside_split_real_and_imaginary(steps):
    z = np.array([1.0 + 2.0j, -3.0 + 0.5j], np.complex64)
    params = {"z": jnp.asarray(z), "x": jnp.array([4.0])}
    tx = optax.contrib.split_real_and_imaginary(lookahead(optax.sgd(SLOPE), K, ALPHA))
    gradients = {"z": jnp.full(2, 1 + 1j, jnp.complex64), "x": jnp.ones(1)}
    params, state = steps_of(tx, params, gradients, steps)
    slow = slow_params(state, params)
    (re, slow_re), (im, slow_im) = expected(z.real, steps), expected(z.imag, steps)
    np.testing.assert_array_equal(params["z"], re + 1j * im)
    np.testing.assert_array_equal(slow["z"], slow_re + 1j * slow_im)
    np.testing.assert_array_equal(slow["x"], expected(np.array([4.0]), steps)[1])


@pytest.mark.parametrize("slow_dtype", [None, "float32"])
@pytest.mark.parametrize("steps", [0, 1, 3, 4])
def test_inside_flatten(steps, slow_dtype):
    start = {"a": np.arange(3.0), "b": [np.full((2, 2), 7.0), np.array(-1.0)]}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), start)
    tx = optax.flatten(lookahead(optax.sgd(SLOPE), K, ALPHA, slow_dtype=slow_dtype))
    params, state = steps_of(tx, params, jax.tree.map(jnp.ones_like, params), steps)
    slow = slow_params(state, params)
    assert {x.dtype.name for x in jax.tree.leaves(slow)} == {slow_dtype or "bfloat16"}
    assert jax.tree.structure(slow) == jax.tree.structure(params)
    for have, x in zip(jax.tree.leaves(slow), jax.tree.leaves(start), strict=True):
        np.testing.assert_array_equal(np.asarray(have, float), expected(x, steps)[1])


def test_inside_flatten_with_leaves_of_two_dtypes():
    """Concatenated they are in float32; separately, each is in its own dtype again."""
    params = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.zeros(3)}
    state = optax.flatten(lookahead(optax.sgd(SLOPE))).init(params)
    slow = slow_params(state, params)
    assert jax.tree.map(lambda x: x.dtype, slow) == jax.tree.map(lambda x: x.dtype, params)


def test_inside_flatten_of_several_replicas():
    def train(start):
        params = {"a": jnp.full(2, start), "b": jnp.full((2, 2), start + 1)}
        tx = optax.flatten(lookahead(optax.sgd(SLOPE), K, ALPHA))
        return steps_of(tx, params, jax.tree.map(jnp.ones_like, params), 4)

    params, state = jax.vmap(train)(jnp.array([0.0, 10.0, 20.0]))
    slow = slow_params(state, params)
    for n, start in enumerate((0.0, 10.0, 20.0)):
        np.testing.assert_array_equal(slow["a"][n], np.full(2, expected(start, 4)[1]))
        np.testing.assert_array_equal(slow["b"][n], np.full((2, 2), expected(start + 1, 4)[1]))


def test_a_flat_state_of_other_params():
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    state = optax.flatten(lookahead(optax.sgd(SLOPE))).init(params)
    with pytest.raises(ValueError, match="`params` is not the tree"):
        slow_params(state, {"a": jnp.ones(2), "b": jnp.ones(4)})


def test_a_state_in_plain_containers():
    state = lookahead(optax.sgd(SLOPE)).init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"plain containers.*`tx.init\(params\)`"):
        slow_params({"opt_state": state._asdict()}, jnp.ones(2))


def test_an_index_of_a_list_is_a_key_of_a_dict():
    """As when Flax returns a list of layers as a dict."""
    layers = [jnp.ones(2), jnp.zeros(3)]
    state = lookahead(optax.sgd(SLOPE)).init(layers)
    slow = slow_params(state, dict(enumerate(layers)))
    np.testing.assert_array_equal(slow[0], [1, 1])
    with pytest.raises(ValueError, match=r"for params\[1\], where it has nothing"):
        slow_params(state, layers[:1])


def test_a_plain_state_beside_params_in_boxes():
    """The state was made for plain arrays, and the params are in Flax's Variables."""
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    boxed = nnx.state(model, nnx.Param)
    pure = nnx.to_pure_dict(boxed)
    tx = lookahead(optax.sgd(SLOPE), K, ALPHA)
    _, state = steps_of(tx, pure, jax.tree.map(jnp.ones_like, pure), 1)
    later = jax.tree.map(lambda p: p - 1, boxed)
    slow = slow_params(state, later)
    assert jax.tree.structure(slow) == jax.tree.structure(boxed)
    for have, want in zip(jax.tree.leaves(slow), jax.tree.leaves(pure), strict=True):
        np.testing.assert_array_equal(have, want)
