"""Augmentation of small images, as a part of the compiled step."""

import jax
import jax.numpy as jnp


def crop_and_flip(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Each image shifted by up to `padding` pixels, and half of them flipped.

    An image gets a border of zeros, and of that a random part of its own size is taken,
    from left to right or from right to left. Applied to raw images, as in the SLRLA
    paper's released code, the border is black and is standardised with the rest.

    Args:
      key: a random key; the result is a function of it and of the images.
      images: of any type and shape (batch, height, width, channels).
      padding: width of the border.

    Returns:
      Images of the same type and shape.
    """
    batch, height, width, _ = images.shape
    for_shift, for_flip = jax.random.split(key)
    shift = jax.random.randint(for_shift, (2, batch, 1), 0, 2 * padding + 1)
    flip = jax.random.bernoulli(for_flip, shape=(batch, 1))
    border = (padding, padding)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)))
    # One gather: row and column of every pixel of every image.
    rows = shift[0] + jnp.arange(height)
    columns = shift[1] + jnp.where(flip, jnp.arange(width)[::-1], jnp.arange(width))
    return padded[jnp.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]
