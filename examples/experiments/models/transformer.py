"""A small transformer that predicts each character of a text from those before it."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

# Standard deviation of the initial embeddings and kernels, as in GPT-2.
INIT = nnx.initializers.normal(0.02)


class Block(nnx.Module):
    """Attention, then a network of two layers; each sees its input normalised, and adds to it.

    Attributes:
      heads: among which the features are divided.
      causal: whether a position attends to none behind it.
      exact_gelu: whether GELU is computed with erf, or approximately with tanh.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool = True,
        exact_gelu: bool = False,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        self.heads, self.causal, self.exact_gelu = heads, causal, exact_gelu
        self.norm1 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.query_key_value = _linear(width, 3 * width, dtype, rngs)
        self.attended = _linear(width, width, dtype, rngs)
        self.norm2 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.up = _linear(width, 4 * width, dtype, rngs)
        self.down = _linear(4 * width, width, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features of shape (batch, positions, width) to such features."""
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        three = jnp.split(self.query_key_value(self.norm1(x)), 3, axis=-1)
        query, key, value = (part.reshape(shape) for part in three)
        seen = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.attended(seen.reshape(x.shape))
        hidden = nnx.gelu(self.up(self.norm2(x)), approximate=not self.exact_gelu)
        return x + self.down(hidden)


class Transformer(nnx.Module):
    """A decoder: pre-norm, learnt positions, the embedding used again for the logits (tied).

    It is built for windows of text, and raises a ValueError for images.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
    ):
        if len(shape) != 1:
            raise ValueError(f"it reads windows of text, not images of shape {shape}")
        self.characters = nnx.Embed(classes, width, dtype=dtype, embedding_init=INIT, rngs=rngs)
        self.positions = nnx.Embed(shape[0], width, dtype=dtype, embedding_init=INIT, rngs=rngs)
        self.blocks = nnx.List(Block(width, heads, dtype=dtype, rngs=rngs) for _ in range(depth))
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Characters (batch, characters) to logits (batch, characters, classes) of the next."""
        del train
        y = self.characters(x) + self.positions(jnp.arange(x.shape[1]))
        for block in self.blocks:
            y = block(y)
        return self.characters.attend(self.norm(y)).astype(jnp.float32)


def _linear(inputs: int, outputs: int, dtype: DTypeLike | None, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, dtype=dtype, kernel_init=INIT, rngs=rngs)
