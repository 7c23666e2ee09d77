"""A trained network, read from a checkpoint wherever that is.

trained = load(Path("runs/mine/checkpoints/seed_0"))
logits = trained.network(trained.inputs(images), train=False)
"""

import dataclasses
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from experiments.checkpoints import CheckpointError, Checkpoints
from experiments.config import Config
from experiments.data.augment import resize_and_crop
from experiments.run import Run, evaluated_weights, run_of
from experiments.steps import init_state
from experiments.sweep import dataset_of


class Trained(NamedTuple):
    """A trained network.

    Attributes:
      run: what was trained.
      step: of the checkpoint.
      params: the weights to evaluate, with Lookahead the slow ones.
      stats: BatchNorm's running statistics, and the random state of dropout.
      records: those of the epochs until then.
    """

    run: Run
    step: int
    params: Any
    stats: Any
    records: list[dict[str, Any]]

    @property
    def network(self) -> nnx.Module:
        """The network with these weights."""
        return nnx.merge(self.run.model.graph, self.params, self.stats, copy=True)

    def inputs(self, images: Any) -> Any:
        """Returns raw images as the network takes them."""
        if self.run.dataset.image_size is not None:
            images = resize_and_crop(images, self.run.dataset.image_size)
        return self.run.dataset.standardise(images, self.run.model.input_norm)


def load(
    folder: Path,
    step: int | None = None,
    data_path: Path | None = None,
    run_of: Callable[..., Run] = run_of,
) -> Trained:
    """Loads a network from the checkpoints of a seed.

    Args:
      folder: of the checkpoints, such as `runs/NAME/checkpoints/seed_0`.
      step: of the checkpoint; None for the newest. That of the best epoch is kept as well.
      data_path: where the data are that it was trained on, which standardise its inputs.
      run_of: builds the run, as `run.run_of` does and as in training.

    Raises:
      CheckpointError: if there is no such checkpoint, or it is damaged.
      SettingError: if the data are missing.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
    with closing(Checkpoints(folder, None)) as checkpoints:
        saved = checkpoints.progress(step)
        if saved is None:
            raise CheckpointError(f"{folder} has no checkpoint")
        names = {field.name for field in dataclasses.fields(Config)}
        there = saved[1]["fingerprint"]
        config = Config.from_json({name: there[name] for name in names})
        run = run_of(config, dataset_of(config, data_path), on=jax.devices()[:1])
        example = init_state(run.model, run.tx, there["seed"][0])
        step, state, records = checkpoints.restore(example, saved[0])
    return Trained(run, step, *evaluated_weights(run, state), records)


def arrays(folder: Path) -> tuple[int, dict[str, Any]]:
    """Returns the step of the newest checkpoint in a folder, and its arrays by their places.

    They are NumPy's, whatever devices they were saved from. All that training goes on from is
    among them.
    """
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "progress": ocp.JsonCheckpointHandler()}
    with ocp.CheckpointManager(folder.resolve(), item_handlers=handlers) as reader:
        step = reader.latest_step()
        shapes = reader.item_metadata(step).state.tree
        numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        items = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=numpy))
        tree = reader.restore(step, args=items).state
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return step, {_name(path): np.asarray(leaf) for path, leaf in leaves}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
