"""Training: pure steps, compiled for the devices there are, a loop, and its checkpoints.

- `steps`: the loss, one training step, one evaluation, as functions of plain trees.
- `devices`: these compiled for one device or several, for one seed or several.
- `evaluation`: the scores of the slow and of the fast weights.
- `checkpoints`: a run on disk, to be resumed.
- `loop`: the run of one seed, or of several together, from its first epoch to its last.
"""

from experiments.training.checkpoints import CheckpointError, Checkpoints, OtherRun, differences
from experiments.training.devices import (
    seeds_together_are_faster,
    steps_per_dispatch,
)
from experiments.training.loop import Diverged, Epoch, Run, Stopped, flops_per_step, train
from experiments.training.steps import Model, State, eval_step, init_state, init_weights, loss_fn

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Diverged",
    "Epoch",
    "Model",
    "OtherRun",
    "Run",
    "State",
    "Stopped",
    "differences",
    "eval_step",
    "flops_per_step",
    "init_state",
    "init_weights",
    "loss_fn",
    "seeds_together_are_faster",
    "steps_per_dispatch",
    "train",
]
