"""A recurrent network that reads a name and says what it is."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models.layers import head


class LSTM(nnx.Module):
    """One layer of long short-term memory; logits from its state behind the last character.

    It is built for names, and raises a ValueError for images and for windows of text.

    Sepp Hochreiter and Jürgen Schmidhuber, "Long Short-Term Memory",
    https://doi.org/10.1162/neco.1997.9.8.1735, 1997.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
        width: int = 64,
    ):
        if len(shape) != 2:
            raise ValueError(f"it reads names, not examples of shape {shape}")
        _, alphabet = shape
        self.width = width
        cell = nnx.OptimizedLSTMCell(alphabet, width, dtype=dtype, rngs=rngs)
        self.layer = nnx.RNN(cell, rngs=False)
        self.head = head(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Characters (batch, characters, alphabet), zeros behind the last, to (batch, classes)."""
        del train
        start = jnp.zeros((len(x), self.width))
        lengths = x.any(axis=-1).sum(axis=-1)
        (_, last), _ = self.layer(
            x, initial_carry=(start, start), seq_lengths=lengths, return_carry=True
        )
        return self.head(last)
