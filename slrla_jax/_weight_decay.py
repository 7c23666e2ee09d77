"""Coupled weight decay, an option of several optimizers in this package."""

import optax

from slrla_jax import _arguments as arguments
from slrla_jax._arguments import Scalar


def coupled_weight_decay(weight_decay: Scalar) -> optax.GradientTransformation:
    """Adds λ v to the gradient (L2), before the transformations that follow in a chain.

    The state does not depend on λ, and a plain 0 costs nothing.
    """
    if arguments.is_zero(weight_decay):
        return optax.identity()
    return optax.add_decayed_weights(arguments.as_plain(weight_decay))
