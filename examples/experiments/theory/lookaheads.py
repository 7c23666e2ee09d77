"""The optimizers of the theorems, from a setting's numbers."""

import jax
import optax

from slrla_jax import lookahead

K = 5  # Where a setting has no `period`.


def constant(setting: dict[str, jax.Array]) -> optax.GradientTransformation:
    """Returns Lookahead with `alpha` around SGD with the learning rate `rate`."""
    return lookahead(optax.sgd(setting["rate"]), setting.get("period", K), setting["alpha"])


def decaying(setting: dict[str, jax.Array]) -> optax.GradientTransformation:
    """Returns Lookahead with `alpha` around SGD with η_t = 1 / (λ t + L) after t gradients.

    λ is `curvature`, which is μ under the PL condition, and L is `smoothness`.
    """
    return lookahead(
        optax.sgd(lambda t: 1 / (setting["curvature"] * t + setting["smoothness"])),
        setting.get("period", K),
        setting["alpha"],
    )
