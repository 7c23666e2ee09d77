"""Augmentation of small images, and other sizes of them, as a part of the compiled step."""

import jax
import jax.numpy as jnp
import numpy as np


def crop_and_flip(
    key: jax.Array, images: jax.Array, indices: jax.Array, padding: int = 4
) -> jax.Array:
    """A batch of images, randomly cropped after zero padding and flipped left to right.

    Each crop has the size of the image, and half of them are flipped. Applied to raw
    images, as in the SLRLA paper's released code, the padding is black and is standardised
    with the rest.

    It is one gather, twice as fast on a CPU as gathering the batch first.

    Args:
      key: a random key.
      images: of any type and shape (images, height, width, channels).
      indices: of the images in the batch; non-negative integers of shape (batch,).
      padding: width of the padding in pixels, on each side.

    Returns:
      Images of the same type, of shape (batch, height, width, channels).
    """
    _, height, width, _ = images.shape
    batch = len(indices)
    for_shift, for_flip = jax.random.split(key)
    shift = jax.random.randint(for_shift, (2, batch, 1), -padding, padding + 1)
    flip = jax.random.bernoulli(for_flip, shape=(batch, 1))
    # The row and column of every pixel, and whether it is inside the image.
    rows = shift[0] + jnp.arange(height)
    columns = shift[1] + jnp.where(flip, jnp.arange(width)[::-1], jnp.arange(width))
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    rows, columns = jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)
    images = jnp.asarray(images)
    pixels = images.at[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
    return jnp.where(inside[..., None], pixels.get(mode="promise_in_bounds"), 0)


def resize_and_crop(images: jax.Array, size: int, key: jax.Array | None = None) -> jax.Array:
    """A batch of images, enlarged to 8/7 of a size and cropped to it: to 256, then 224 pixels.

    The shorter side is resized, the other one likewise, linearly and without aliasing. Both are one
    pair of small matrix products for each image, which compute only what is cropped. Crops begin at
    whole pixels of the larger image: with a random key anywhere, and half of the images are
    flipped left to right; without one in the centre. In torchvision's terms, it is Resize(256)
    and RandomCrop(224), RandomHorizontalFlip() or CenterCrop(224).

    Pillow's images of bytes are rounded twice, when they are resized along one side and along the
    other; these are not. A pixel differs by 1 of 255 at most.

    Args:
      images: of any type and shape (batch, height, width, channels).
      size: height and width of the result.
      key: a random key; None for the centre.

    Returns:
      float32 images of shape (batch, size, size, channels), in the units of the images.
    """
    batch, height, width, channels = images.shape
    shorter = round(size * 8 / 7)
    larger = np.array([shorter * side // min(height, width) for side in (height, width)])
    images = jnp.asarray(images, jnp.float32)
    if key is None:
        begin = jnp.broadcast_to((larger - size) // 2, (batch, 2))
    else:
        for_begin, for_flip = jax.random.split(key)
        begin = jax.random.randint(for_begin, (batch, 2), 0, larger - size + 1)
        # Flipped first, while they are small, which is as likely as any other crop.
        flip = jax.random.bernoulli(for_flip, shape=(batch, 1, 1, 1))
        images = jnp.where(flip, images[:, :, ::-1], images)

    def crop(image: jax.Array, begin: jax.Array) -> jax.Array:
        scale = jnp.float32(larger / (height, width))
        shape = (size, size, channels)
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, -1.0 * begin, "linear")

    return jax.vmap(crop)(images, begin)
