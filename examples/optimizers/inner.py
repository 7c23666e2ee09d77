"""The inner optimizers of the paper's Table 3, each with its own kind of weight decay."""

from collections.abc import Callable

import optax

from slrla_jax import adabound

Inner = Callable[[optax.ScalarOrSchedule], optax.GradientTransformation]


def sgd(
    learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """SGD with momentum; weight decay in the gradient, as L2 regularisation."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum or None)
    )


def adam(
    learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """Adam; weight decay in the gradient, as PyTorch's `Adam` has it."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.adam(learning_rate, b1=momentum)
    )


def adamw(
    learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW; weight decay beside the gradient."""
    return optax.adamw(learning_rate, b1=momentum, weight_decay=weight_decay)


def radam(
    learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """RAdam; weight decay in the gradient, as PyTorch's `RAdam` has it."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.radam(learning_rate, b1=momentum)
    )


def adabelief(
    learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """AdaBelief; weight decay beside the gradient, which its authors' code has by default."""
    return optax.chain(
        optax.scale_by_belief(b1=momentum),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def adabound_l2(
    learning_rate: optax.ScalarOrSchedule, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """AdaBound; weight decay in the gradient, as its authors' code has it."""
    return adabound(learning_rate, b1=momentum, weight_decay=weight_decay)


INNER: dict[str, Callable[[optax.ScalarOrSchedule, float, float], optax.GradientTransformation]] = {
    "SGD": sgd,
    "Adam": adam,
    "AdamW": adamw,
    "RAdam": radam,
    "AdaBelief": adabelief,
    "AdaBound": adabound_l2,
}
