"""Explicit mesh axes, with params and gradients in different shardings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from slrla_jax import adabound, lookahead, slrla_sgd


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
