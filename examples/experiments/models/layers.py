"""The layers of the published networks: PyTorch's, with channels last.

Padding is PyTorch's, the same on both sides; XLA's "SAME" differs from it where a stride
is more than one. Weights are float32 whatever the compute dtype.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

Layer = Callable[..., nnx.Module]
"""A constructor of layers, dtype and random numbers given already."""

BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5

kaiming_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
linear_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv(
    inputs: int,
    outputs: int,
    size: int,
    stride: int = 1,
    *,
    dtype: DTypeLike | None,
    rngs: nnx.Rngs,
    use_bias: bool = False,
) -> nnx.Conv:
    """A convolution of odd `size` that keeps height and width but for the stride.

    The kernel is normal with variance 2 / (outputs · size²), the bias, if any, zero, as in the
    released networks and torchvision's ResNets.
    """
    padding = size // 2
    return nnx.Conv(
        inputs,
        outputs,
        (size, size),
        stride,
        padding=((padding, padding), (padding, padding)),
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kaiming_normal,
        rngs=rngs,
    )


class BatchNorm(nnx.BatchNorm):
    """BatchNorm in float32, its result in the compute dtype.

    Momentum and epsilon are those of PyTorch. The running variance averages the batches' biased
    variances; PyTorch multiplies each by n / (n − 1), where n is the number of values.

    Attributes:
      compute_dtype: dtype of the result; None is float32.
    """

    def __init__(
        self,
        features: int,
        *,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            features,
            momentum=BATCH_NORM_MOMENTUM,
            epsilon=BATCH_NORM_EPSILON,
            dtype=jnp.float32,
            rngs=rngs,
        )
        self.compute_dtype = dtype

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Features (..., channels), normalised by the batch, or by running statistics."""
        y = super().__call__(x, use_running_average=not train)
        return y.astype(self.compute_dtype or jnp.float32)


def head(features: int, classes: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """The last layer, features to logits, in float32 whatever the compute dtype.

    The kernel is uniform within ± 1 / √features as PyTorch's, the bias zero.
    """
    return nnx.Linear(features, classes, dtype=jnp.float32, kernel_init=linear_uniform, rngs=rngs)


def image_mean(x: jax.Array) -> jax.Array:
    """Features (batch, height, width, channels) to their means (batch, channels) in float32."""
    return x.mean(axis=(1, 2), dtype=jnp.float32)
