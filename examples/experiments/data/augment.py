"""Augmentation of small images, as a part of the compiled step."""

import jax
import jax.numpy as jnp


def crop_and_flip(
    key: jax.Array, images: jax.Array, indices: jax.Array, padding: int = 4
) -> jax.Array:
    """Some of the images, each shifted by up to `padding` pixels, and half of them flipped.

    An image gets a border of zeros, and of that a random part of its own size is taken,
    from left to right or from right to left. Applied to raw images, as in the SLRLA
    paper's released code, the border is black and is standardised with the rest.

    All of it is one gather out of the images, which on CPU is twice as fast as to take the
    images first.

    Args:
      key: a random key; the result is a function of it and of the images.
      images: of any type and shape (images, height, width, channels).
      indices: which of them; whole numbers of shape (batch,), from 0 on.
      padding: width of the border.

    Returns:
      Images of the same type, and shape (batch, height, width, channels).
    """
    _, height, width, _ = images.shape
    batch = len(indices)
    for_shift, for_flip = jax.random.split(key)
    shift = jax.random.randint(for_shift, (2, batch, 1), -padding, padding + 1)
    flip = jax.random.bernoulli(for_flip, shape=(batch, 1))
    # Row and column of every pixel of every image, and whether they are within it.
    rows = shift[0] + jnp.arange(height)
    columns = shift[1] + jnp.where(flip, jnp.arange(width)[::-1], jnp.arange(width))
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    images = jnp.asarray(images)
    pixels = images.at[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
    return jnp.where(inside[..., None], pixels.get(mode="promise_in_bounds"), 0)
