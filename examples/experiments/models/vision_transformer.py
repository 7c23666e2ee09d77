"""Vision transformers: ViT-S/16, and a small one for small images.

Alexey Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at
Scale", https://arxiv.org/abs/2010.11929, 2021.

ViT-S/16 is that of Andreas Steiner et al., "How to train your ViT?",
https://arxiv.org/abs/2106.10270, 2022: 384 wide, twelve blocks of six heads. Its layers are those
of timm's `vit_small_patch16_224`, whose weights `experiments.pretrained` loads.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models.layers import head, linear_uniform
from experiments.models.transformer import INIT, Block


class VisionTransformer(nnx.Module):
    """An encoder of patches: pre-norm, learnt positions, and logits from a class token.

    Patches are squares that cover the image and do not overlap. A ValueError is raised if they
    do not fit into it.

    Attributes:
      embed: a patch to features, a convolution whose stride is its size.
      class_token: what stands before the patches, of shape (width,).
      positions: what is added to the class token and to each patch, row by row, of shape
        (1 + patches, width).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        dtype: DTypeLike | None = None,
        rngs: nnx.Rngs,
    ):
        height, breadth, channels = image_shape
        if height % patch or breadth % patch:
            raise ValueError(
                f"height and width of images must be multiples of {patch}, got {height}×{breadth}"
            )
        patches = (height // patch) * (breadth // patch)
        self.embed = nnx.Conv(
            channels,
            width,
            (patch, patch),
            patch,
            padding="VALID",
            dtype=dtype,
            kernel_init=linear_uniform,
            rngs=rngs,
        )
        self.class_token = nnx.Param(jnp.zeros(width))
        self.positions = nnx.Param(INIT(rngs.params(), (1 + patches, width), jnp.float32))
        self.blocks = nnx.List(
            Block(width, heads, causal=False, exact_gelu=True, dtype=dtype, rngs=rngs)
            for _ in range(depth)
        )
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.head = head(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        del train
        y = self.embed(x)
        y = y.reshape(len(x), -1, y.shape[-1])
        first = jnp.broadcast_to(self.class_token[...].astype(y.dtype), (len(x), 1, y.shape[-1]))
        y = jnp.concatenate([first, y], axis=1) + self.positions[...].astype(y.dtype)
        for block in self.blocks:
            y = block(y)
        return self.head(self.norm(y[:, 0]))


def vit_s16(image_shape: tuple[int, int, int], classes: int, **settings: Any) -> VisionTransformer:
    """ViT-S/16: patches of 16×16 pixels, 384 wide, twelve blocks of six heads."""
    return VisionTransformer(
        image_shape, classes, patch=16, width=384, depth=12, heads=6, **settings
    )


def small_vit(
    image_shape: tuple[int, int, int], classes: int, **settings: Any
) -> VisionTransformer:
    """About 50,000 weights: 32 wide, four blocks of four heads.

    Patches are of 4×4 pixels, or of 2×2 where images have fewer than 16 pixels a side.
    """
    patch = 4 if min(image_shape[:2]) >= 16 else 2
    return VisionTransformer(
        image_shape, classes, patch=patch, width=32, depth=4, heads=4, **settings
    )
