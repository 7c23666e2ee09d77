"""A run on disk: everything it needs to be resumed as if it had not stopped.

A checkpoint has the state (params, statistics, the whole optimizer state with slow weights,
anchors and counters, random keys, the epoch's sums), and the records of the epochs before it.
The position in the data is the number of steps, since batches are a function of seed and step.
Orbax writes into a folder of its own and renames it when it is whole, so a process may be
killed at any time.
"""

import json
import shutil
import sys
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from experiments.steps import State, Tree

KEPT = 2
# What a killed process leaves of a checkpoint. Orbax would remove it in a thread that it does not
# wait for, and that complains if the program ends first.
UNFINISHED = "*.orbax-checkpoint-tmp*"
NEVER = sys.maxsize
# An error of Orbax's is cut off after so many characters.
LONGEST = 200


class CheckpointError(Exception):
    """A checkpoint that cannot be read, written, or resumed from."""


class OtherRun(CheckpointError):
    """A checkpoint of a run with another fingerprint.

    Attributes:
      names: what differs in it.
    """

    def __init__(self, message: str, names: Collection[str]):
        super().__init__(message)
        self.names = names


class Checkpoints:
    """The checkpoints of one run: the newest ones, and that of the best epoch.

    Args:
      folder: where they are; it is made if it is not there.
      fingerprint: what the run is a function of, as JSON has it. A checkpoint of another run is
        refused; None to read one of any run.
      every: steps between checkpoints within an epoch; None for one at the end of each epoch.
      best_by: the accuracy in the records that the best epoch is chosen by.
      flag_of: returns the flag that a value of the fingerprint is given by, for messages.

    Raises:
      CheckpointError: if the folder cannot be made.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: dict[str, Any] | None,
        every: int | None = None,
        best_by: str = "test_accuracy",
        flag_of: Callable[[str], str] = str,
    ):
        self.folder = folder.resolve()
        self._every, self._best_by, self._flag_of = every, best_by, flag_of
        self._fingerprint = json.loads(json.dumps(fingerprint))
        newest = LatestN(KEPT)
        best = BestN(get_metric_fn=self._rank, n=1, keep_checkpoints_without_metrics=False)
        try:
            if jax.process_index() == 0:  # Two that remove a folder would disturb each other.
                for unfinished in self.folder.glob(UNFINISHED):
                    shutil.rmtree(unfinished)
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=AnyPreservationPolicy([newest, best]),
                    create=True,
                ),
            )
        except OSError as error:
            raise CheckpointError(f"{self.folder} cannot be made: {error.strerror}") from error

    @property
    def last(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, in increasing order."""
        return sorted(self._manager.all_steps())

    def steps_until_due(self, step: int) -> int:
        """Returns after how many further steps the next checkpoint within an epoch is due."""
        return NEVER if self._every is None else self._every - step % self._every

    def due(self, step: int) -> bool:
        """Says whether a checkpoint within an epoch is due at this step."""
        return self._every is not None and step % self._every == 0

    def save(self, step: int, state: State, records: list[dict[str, Any]]) -> None:
        """Starts to save in a background thread.

        Args:
          step: steps taken.
          state: it is copied before this returns, so its buffers may be donated to the next step.
          records: of all epochs that have ended.

        Raises:
          CheckpointError: if this or the last checkpoint could not be written.
        """
        if self.last == step:
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave(
                {
                    "fingerprint": self._fingerprint,
                    "records": records,
                    "arrays": _described(state),
                    "checksum": _checksum(state),
                }
            ),
        )
        try:
            self._manager.save(step, args=items, metrics=_accuracies(step, records))
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

    def progress(self, step: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """Returns the step of a checkpoint, and what it has beside the state.

        Args:
          step: of the checkpoint; None for the newest one, of which there may be none.

        Raises:
          CheckpointError: if it is of another run, damaged, or not there.
        """
        if step is not None and step not in self.steps:
            raise CheckpointError(f"{self.folder} has no checkpoint {step}, but {self.steps}")
        step = self.last if step is None else step
        if step is None:
            return None
        where = self.folder / str(step)
        try:
            items = ocp.args.Composite(progress=ocp.args.JsonRestore())
            progress = self._manager.restore(step, args=items).progress
            fingerprint, _ = progress["fingerprint"], progress["records"]
        except Exception as error:
            raise self._damaged(step, f"cannot be read: {_first_line(error)}") from error
        if self._fingerprint is None:
            return step, progress
        if differing := differences(fingerprint, self._fingerprint, self._flag_of):
            message = f"{where} is of another run: {', '.join(differing.values())}"
            raise OtherRun(message, differing.keys())
        return step, progress

    def restore(
        self, example: Tree, step: int | None = None
    ) -> tuple[int, State, list[dict[str, Any]]] | None:
        """Returns step, state and records of a checkpoint.

        Args:
          example: a state (or its shapes, dtypes and shardings) of the run.
          step: of the checkpoint; None for the newest one, of which there may be none.

        Raises:
          CheckpointError: if it is of another run, damaged, or not there.
        """
        saved = self.progress(step)
        if saved is None:
            return None
        step, progress = saved
        where = self.folder / str(step)
        there, here = progress["arrays"], _described(example)
        if there != here:
            name = min(n for n in {*there, *here} if there.get(n) != here.get(n))
            raise CheckpointError(
                f"{where} is of another run: all settings are the same, but {name} is "
                f"{there.get(name, 'not')} there and {here.get(name, 'not')} here; it was saved "
                "by another version of the package"
            )
        try:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(example))
            state = self._manager.restore(step, args=items).state
        except Exception as error:
            raise self._damaged(step, f"cannot be read: {_first_line(error)}") from error
        if progress["checksum"] != _checksum(state):
            raise self._damaged(step, "is damaged: its arrays are not those that were saved")
        return step, state, progress["records"]

    def close(self) -> None:
        """Ends Orbax's threads."""
        self._manager.close()

    def _rank(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """Returns what checkpoints are ordered by: of equally good epochs the first is best."""
        return metrics.get(self._best_by, metrics["test_accuracy"]), -metrics["steps"]

    def _damaged(self, step: int, what: str) -> CheckpointError:
        """An error that names what can be resumed from instead."""
        where = self.folder / str(step)
        older = [other for other in self.steps if other < step]
        instead = f"to resume from step {max(older)}" if older else "to start again"
        return CheckpointError(f"{where} {what}; remove it {instead}")

    def _not_written(self, error: Exception) -> CheckpointError:
        last = self.last
        kept = "there is none before it" if last is None else f"the last good one is of step {last}"
        return CheckpointError(
            f"a checkpoint in {self.folder} cannot be written: {_first_line(error)}; {kept}"
        )


class NoCheckpoints(Checkpoints):
    """Stands for the checkpoints of a run that has none."""

    last = None

    def __init__(self) -> None:
        pass

    def steps_until_due(self, step: int) -> int:
        """Returns that none is ever due."""
        return NEVER

    def due(self, step: int) -> bool:
        """Says that none is due."""
        return False

    def save(self, step: int, state: State, records: list[dict[str, Any]]) -> None:
        """Saves nothing."""

    def restore(self, example: Tree) -> None:
        """Returns that there is none."""

    def wait(self) -> None:
        """Waits for nothing."""

    def close(self) -> None:
        """Closes nothing."""


def differences(
    there: Mapping[str, Any], here: Mapping[str, Any], flag_of: Callable[[str], str] = str
) -> dict[str, str]:
    """Returns what differs in two fingerprints, by its name and in words."""

    def shown(value: Any) -> str:
        return "not given" if value is None else repr(value)

    def words(name: str) -> str:
        if name == "data":
            return "the data are not the same"
        where = shown(there.get(name)), shown(here.get(name))
        return f"{flag_of(name)} is {where[0]} there and {where[1]} here"

    differing = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    return {name: words(name) for name in differing}


def _accuracies(step: int, records: list[dict[str, Any]]) -> dict[str, float] | None:
    """Returns the accuracies of the epoch that ends at a step, as means over its seeds.

    None if no epoch ends there that was trained and evaluated.
    """
    here = [r for r in records if r["steps"] == step and r["epoch"] > 0 and "test_accuracy" in r]
    if not here:
        return None
    names = [name for name in here[0] if name.endswith("accuracy")]
    means = {name: sum(record[name] for record in here) / len(here) for name in names}
    return {"steps": step, **means}


def _described(tree: Tree) -> dict[str, str]:
    """Dtype and shape of each array in a tree, by its place."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}"
        f"[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _checksum(tree: Tree) -> int:
    """A sum over the bytes of all arrays, by which damaged ones are told."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        total = zlib.crc32(np.ascontiguousarray(array).view(np.uint8), total)
    return total


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"
