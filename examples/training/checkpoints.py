"""A run on disk: all that it needs to go on as if it had not stopped.

A checkpoint has the state (params, statistics, the whole optimizer state with slow weights,
anchors and counters, random keys, the epoch's sums), and the records of the epochs before it.
The position in the data is the number of steps, since batches are a function of seed and step.
Orbax writes into a folder of its own and renames it when it is whole, so a process may be
killed at any time.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from training.steps import State, Tree

KEPT = 2


class CheckpointError(Exception):
    """A checkpoint that cannot be read, written, or gone on with."""


class Checkpoints:
    """The checkpoints of one run, the last ones that were saved.

    Args:
      folder: where they are; made if it is not there.
      fingerprint: what the run is a function of, as JSON has it. A checkpoint of another run is
        refused.
      every: steps between checkpoints within an epoch; None for one at each epoch's end.

    Raises:
      CheckpointError: if the folder cannot be made.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], every: int | None = None):
        self.folder = folder.resolve()
        self.every = every
        self._fingerprint = json.loads(json.dumps(fingerprint))
        try:
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=KEPT, cleanup_tmp_directories=True, create=True
                ),
            )
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be made: {error.strerror}") from error

    @property
    def last(self) -> int | None:
        """The step of the last whole checkpoint."""
        return self._manager.latest_step()

    def steps_until_due(self, step: int) -> int | None:
        """How many steps after `step` the next checkpoint within an epoch is due."""
        return None if self.every is None else self.every - step % self.every

    def save(self, step: int, state: State, records: list[dict[str, Any]]) -> None:
        """Begins to save, and leaves the writing to a thread.

        Raises:
          CheckpointError: if this or the last checkpoint could not be written.
        """
        if self.last == step:
            return
        # A copy, since the state's own buffers are given away in the next step.
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(jax.tree.map(jnp.copy, state)),
            progress=ocp.args.JsonSave({"fingerprint": self._fingerprint, "records": records}),
        )
        try:
            self._manager.save(step, args=items)
        except Exception as error:
            raise self._not_written(error) from error

    def wait(self) -> None:
        """Waits for what is being written.

        Raises:
          CheckpointError: if it could not be.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._not_written(error) from error

    def restore(self, example: Tree) -> tuple[int, State, list[dict[str, Any]]] | None:
        """Step, state and records of the last checkpoint; None where there is none.

        Args:
          example: a state (or its shapes, dtypes and shardings) of the run.

        Raises:
          CheckpointError: if it is of another run, or damaged.
        """
        step = self.last
        if step is None:
            return None
        where = self.folder / str(step)
        try:
            items = ocp.args.Composite(progress=ocp.args.JsonRestore())
            progress = self._manager.restore(step, args=items).progress
            fingerprint, records = progress["fingerprint"], progress["records"]
        except Exception as error:
            raise CheckpointError(f"{where} cannot be read: {_first_line(error)}") from error
        for name in sorted({*fingerprint, *self._fingerprint}):
            there, here = fingerprint.get(name), self._fingerprint.get(name)
            if there != here:
                raise CheckpointError(
                    f"{where} is of another run: {name} is {there!r} there and {here!r} here"
                )
        try:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(example))
            state = self._manager.restore(step, args=items).state
        except Exception as error:
            raise CheckpointError(f"{where} cannot be read: {_first_line(error)}") from error
        return step, state, records

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._manager.close()

    def _not_written(self, error: Exception) -> CheckpointError:
        last = self.last
        kept = "there is none before it" if last is None else f"the last good one is of step {last}"
        return CheckpointError(
            f"a checkpoint in {self.folder} cannot be written: {_first_line(error)}; {kept}"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
