"""timm's weights for the networks here: found, read, renamed and given to a network.

    weights = read(find("ViT-S-16", None))
    state = start(weights, model, tx, seed=0)

Ross Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models. Its
files hold a tensor for each param and running statistic, by their names in PyTorch and in
PyTorch's layout.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import SettingError
from experiments.steps import Model, State, Tree, init_state, init_weights

FILE = "model.safetensors"
# Where timm has the weights that AdaLoss's paper begins with; swsl_resnet50 is the second.
REPOSITORIES = {
    "ViT-S-16": "timm/vit_small_patch16_224.augreg_in21k_ft_in1k",
    "ResNet-50": "timm/resnet50.fb_swsl_ig1b_ft_in1k",
}
# In PyTorch a BatchNorm counts its batches, which nothing here depends on.
COUNTERS = "num_batches_tracked"


@dataclass(frozen=True, eq=False)
class Weights:
    """What is in a file.

    Attributes:
      path: of the file.
      tensors: by name, in PyTorch's layout.
      digest: sixteen hexadecimal digits of the whole file.
    """

    path: Path
    tensors: Mapping[str, np.ndarray]
    digest: str

    def error(self, message: str) -> SettingError:
        """Returns an error that names the file."""
        return SettingError("weights", f"{self.path} {message}")


def find(network: str, given: Path | None) -> Path:
    """Returns the file with a network's weights, the one that is given or a downloaded one.

    Raises:
      SettingError: if there is none; the message says which, from where, and where to put it.
    """
    if given is not None:
        return given
    if network not in REPOSITORIES:
        raise SettingError("weights", f"there are none for {network}; --scratch begins without")
    repository = REPOSITORIES[network]
    by_hand = (
        f"download {FILE} of {repository} from the Hugging Face Hub to any folder, and name it by "
        "--weights; --scratch begins without"
    )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise SettingError(
            "weights", f"need huggingface_hub, of the extra `pretrained`; or {by_hand}"
        ) from None
    try:
        return Path(hf_hub_download(repository, FILE))
    except Exception as error:  # Of several packages, depending on what is missing.
        raise SettingError(
            "weights", f"cannot be downloaded ({type(error).__name__}); {by_hand}"
        ) from error


def read(path: Path) -> Weights:
    """Reads a file.

    Raises:
      SettingError: if there is none, or it is not a whole .safetensors file.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load
    except ImportError:
        raise SettingError("weights", "need safetensors, of the extra `pretrained`") from None
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingError("weights", f"{path} cannot be read: {error.strerror}") from error
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, TypeError) as error:
        what = _cut_off(content) or f"is not a .safetensors file for NumPy: {error}"
        raise SettingError("weights", f"{path} {what}") from error
    return Weights(path, tensors, hashlib.blake2b(content, digest_size=8).hexdigest())


def start(weights: Weights, model: Model, tx: optax.GradientTransformation, seed: int) -> State:
    """Returns the state before the first step; of the weights the seed decides on a new head alone.

    Raises:
      SettingError: as `fill` does.
    """
    state = init_state(model, tx, seed)
    params, stats = fill(weights, model.name, state.params, state.stats)
    return state._replace(params=params, stats=stats, opt_state=tx.init(params))


def check(weights: Weights, model: Model) -> None:
    """Raises SettingError if the weights are not for a network, without making its own."""
    fill(weights, model.name, *jax.eval_shape(lambda: init_weights(model, 0)))


def fill(weights: Weights, network: str, params: Tree, stats: Tree) -> tuple[Tree, Tree]:
    """Puts weights in the place of params and statistics.

    The head stays as it is unless the file has one for as many classes. Position embeddings for
    another number of patches are interpolated as timm does.

    Args:
      weights: the weights.
      network: its name in `models.NETWORKS`.
      params: of the network, arrays or their shapes.
      stats: likewise.

    Raises:
      SettingError: if the file is not for this network; the message names a tensor.
    """
    name_of = NAMES.get(network)
    if name_of is None:
        raise SettingError("weights", f"are not for {network}, but for {', '.join(NAMES)}")
    unused = {name for name in weights.tensors if not name.endswith(COUNTERS)}

    def given(path: jax.tree_util.KeyPath, leaf: jax.Array) -> jax.Array:
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        name = name_of(place)
        unused.discard(name)
        return _given(weights, name, place, leaf)

    params, stats = (jax.tree_util.tree_map_with_path(given, tree) for tree in (params, stats))
    if unused:
        raise weights.error(f"has {min(unused)}, which {network} does not have")
    return params, stats


def _given(weights: Weights, name: str, place: str, leaf: jax.Array) -> jax.Array:
    """A tensor in the place of a param or statistic, in the layout that is used here."""
    kind = place.rpartition("/")[2]
    expected = _shape_in_pytorch(kind, leaf.shape)
    if name not in weights.tensors:
        raise weights.error(f"has no {name}")
    tensor = weights.tensors[name]
    if not np.issubdtype(tensor.dtype, np.floating):
        raise weights.error(f"has {name} as {tensor.dtype}")
    free = 0 if place.startswith("head/") else 1 if kind == "positions" else None
    alike = tensor.ndim == len(expected) and all(
        n == free or a == b for n, (a, b) in enumerate(zip(tensor.shape, expected, strict=True))
    )
    if not alike:
        raise weights.error(f"has {name} of shape {tensor.shape} where {expected} is needed")
    if place.startswith("head/") and tensor.shape != expected:
        return leaf
    if tensor.shape != expected:  # Of positions, whose number is the only free one.
        try:
            return resampled(tensor[0].astype(leaf.dtype), leaf.shape[0])
        except ValueError as error:
            raise weights.error(f"has {name} of {error}") from error
    if kind == "kernel":
        tensor = tensor.transpose((2, 3, 1, 0) if tensor.ndim == 4 else (1, 0))
    # A copy, since the state is donated and the next seed begins with the same weights.
    return jnp.array(tensor.reshape(leaf.shape), leaf.dtype)


def _shape_in_pytorch(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in a file of what has another here: (height, width, inputs, outputs) of kernels."""
    if kind == "kernel":
        return (*shape[:-3:-1], *shape[:-2])
    return {"class_token": (1, 1, *shape), "positions": (1, *shape)}.get(kind, shape)


def resampled(positions: jax.typing.ArrayLike, count: int) -> jax.Array:
    """Embeddings of positions for a class token and another number of patches.

    Those of the patches are interpolated by cubic convolution (a = −½), which is wider where they
    become fewer, as timm does.

    Args:
      positions: of shape (1 + n², width).
      count: another 1 + n².

    Raises:
      ValueError: if one of them is not 1 more than a square.
    """
    before, after = (math.isqrt(n - 1) for n in (len(positions), count))
    if (before**2, after**2) != (len(positions) - 1, count - 1):
        raise ValueError(
            f"{len(positions)} positions where {count} are needed, and not both are 1 more than a "
            "square"
        )
    grid = jnp.reshape(positions[1:], (before, before, -1))
    grid = jax.image.resize(grid, (after, after, grid.shape[-1]), "cubic")
    return jnp.concatenate([positions[:1], grid.reshape(count - 1, -1)])


def _cut_off(content: bytes) -> str | None:
    """Says which tensor's end is missing in a file, if its header is whole."""
    begin = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:begin])
        ends = {
            name: tensor["data_offsets"][1] for name, tensor in header.items() if name[0] != "_"
        }
        missing = {end: name for name, end in ends.items() if end > len(content) - begin}
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return f"is cut short, within or before {missing[min(missing)]}" if missing else None


# Names in timm's files, from the places of params and statistics here, as "blocks/3/norm1/scale".


def _renamed(place: str, pieces: Mapping[str, str]) -> str:
    """A place in which pieces, and then the kind of the tensor, have their names in PyTorch."""
    *owner, kind = place.split("/")
    kinds = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    return ".".join([*(pieces.get(piece, piece) for piece in owner), kinds.get(kind, kind)])


def _of_vision_transformer(place: str) -> str:
    whole = {"class_token": "cls_token", "positions": "pos_embed"}
    pieces = {
        "embed": "patch_embed.proj",
        "query_key_value": "attn.qkv",
        "attended": "attn.proj",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    }
    return whole.get(place) or _renamed(place, pieces)


def _of_residual_network(place: str, depths: tuple[int, ...]) -> str:
    ends = list(itertools.accumulate(depths))

    def group(found: re.Match[str]) -> str:
        number = int(found[1])
        n = sum(number >= end for end in ends)
        return f"layer{n + 1}/{number - (ends[n] - depths[n])}/"

    place = re.sub(r"^blocks/(\d+)/", group, place)
    place = place.replace("shortcut/conv", "downsample/0").replace("shortcut/norm", "downsample/1")
    pieces = {"conv": "conv1", "norm": "bn1", "head": "fc"}
    return _renamed(place, pieces | {f"norm{n}": f"bn{n}" for n in (1, 2, 3)})


NAMES: dict[str, Callable[[str], str]] = {
    "ViT-S-16": _of_vision_transformer,
    "small_vit": _of_vision_transformer,
    "ResNet-50": partial(_of_residual_network, depths=(3, 4, 6, 3)),
}
