"""The inner optimizers of the paper's Table 3, each with its own kind of weight decay."""

from collections.abc import Callable

import optax

from slrla_jax import adabound

Rate = optax.ScalarOrSchedule
# From learning rate, momentum (of SGD; b1 of the others) and weight decay.
Inner = Callable[[Rate, float, float], optax.GradientTransformation]


def in_the_gradient(make: Callable[[Rate, float], optax.GradientTransformation]) -> Inner:
    """An optimizer that sees its weight decay as a part of the gradient: L2 regularisation."""

    def inner(
        learning_rate: Rate, momentum: float, weight_decay: float
    ) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(weight_decay)
        return optax.chain(decay, make(learning_rate, momentum))

    return inner


def adamw(
    learning_rate: Rate, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """Adam with the weight decay beside the gradient."""
    return optax.adamw(learning_rate, b1=momentum, weight_decay=weight_decay)


def adabelief(
    learning_rate: Rate, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """AdaBelief with the weight decay beside the gradient, its authors' default."""
    return optax.chain(
        optax.scale_by_belief(b1=momentum),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def adabound_from_first_rate(learning_rate: Rate, b1: float) -> optax.GradientTransformation:
    """AdaBound whose bounds belong to the learning rate that a run begins with."""
    base_lr = float(learning_rate(0)) if callable(learning_rate) else None
    return adabound(learning_rate, b1=b1, base_lr=base_lr)


INNER: dict[str, Inner] = {
    "SGD": in_the_gradient(lambda rate, momentum: optax.sgd(rate, momentum or None)),
    "Adam": in_the_gradient(lambda rate, b1: optax.adam(rate, b1=b1)),
    "AdamW": adamw,
    "RAdam": in_the_gradient(lambda rate, b1: optax.radam(rate, b1=b1)),
    "AdaBelief": adabelief,
    "AdaBound": in_the_gradient(adabound_from_first_rate),
}
