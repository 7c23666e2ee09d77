"""Run in an environment with the wheel, jax and optax alone: it must install and work."""

import importlib.metadata
import importlib.resources
import importlib.util

import jax.numpy as jnp
import optax

import slrla_jax

for name in ("flax", "matplotlib", "sklearn"):
    assert importlib.util.find_spec(name) is None, f"{name} is here: not a bare environment"
assert importlib.metadata.version("slrla-jax") == slrla_jax.__version__
assert importlib.resources.files(slrla_jax).joinpath("py.typed").is_file()

tx = slrla_jax.slrla_sgd(0.1)
params = {"w": jnp.ones(3)}
state = tx.init(params)
for _ in range(5):
    updates, state = tx.update(params, state, params)
    params = optax.apply_updates(params, updates)
assert bool((slrla_jax.slow_params(state, params)["w"] == params["w"]).all())
assert bool((params["w"] < 1).all())
print(f"slrla-jax {slrla_jax.__version__} works with jax and optax alone")
