"""A run by workers, which is trained, recorded and resumed as any other."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import jax

from experiments import processes
from experiments.config import SettingError
from experiments.data import Data, Dataset
from experiments.devices import Steps
from experiments.local.cycle import compile_cycles, divided_settings
from experiments.local.methods import LocalConfig, transformation
from experiments.local.shards import shard_batches, shards
from experiments.run import Run, run_of


@dataclass(frozen=True)
class LocalRun(Run):
    """A run by workers, in which a dispatch is a cycle.

    Attributes:
      config: its configuration.
    """

    config: LocalConfig = field(default_factory=LocalConfig)

    def batches(self, seed: int, start: int) -> Iterator[Any]:
        """Yields batches of this process's workers, each from examples of its own."""
        parts = shards(self.dataset, self.config.split, self.config.workers, seed)
        return shard_batches(parts, seed, self.batch_size, start, *processes.share())

    def compiled(self, *, together: bool) -> Steps:
        """Returns the compiled cycles of all workers.

        Raises:
          ValueError: if several seeds are to be trained together.
        """
        if together:
            raise ValueError("workers train from one seed at a time")
        program, traced = divided_settings(self.config)
        cycles, steps = compile_cycles(self.model, program, self.steps, tuple(self.devices))
        return steps._replace(train=functools.partial(cycles, traced))

    def flops_per_step(self) -> None:
        """Returns None, as the operations of a cycle are not counted."""


def run_of_workers(
    config: LocalConfig,
    dataset: Data,
    *,
    label: str = "",
    more_epochs: int = 0,
    on: Sequence[jax.Device] | None = None,
) -> LocalRun:
    """Builds what a configuration asks for.

    Args:
      config: the configuration.
      dataset: its data set.
      label: a name for messages.
      more_epochs: as in `run.run_of`.
      on: the devices. If there is one, it has all workers; if there are several, each worker has
        one.

    Raises:
      SettingError: if there are fewer devices than workers, but more than one; if the examples
        are not in memory, or cannot be split as asked; if the network has running statistics; if
        the batch is not a multiple of the workers, or an epoch not one of the cycles; and as
        `run.run_of` does.
    """
    on = on_devices(config.workers, jax.devices() if on is None else on)
    if not isinstance(dataset, Dataset):
        raise SettingError("dataset", f"must be one that fits into memory, got {dataset.name}")
    if config.batch_size % config.workers:
        raise SettingError(
            "batch_size",
            f"must be a multiple of the {config.workers} workers, got {config.batch_size}",
        )
    plain = replace(config, optimizer=config.inner)
    one = run_of(plain, dataset, label=label, more_epochs=more_epochs, on=on)
    if one.model.has_statistics:
        raise SettingError(
            "model",
            f"{config.model} has BatchNorm, whose running statistics would be each worker's own",
        )
    if one.steps_per_epoch % config.sync_period:
        raise SettingError(
            "sync_period",
            f"must divide the {one.steps_per_epoch} steps of an epoch, got {config.sync_period}",
        )
    shards(dataset, config.split, config.workers, seed=0)  # Raises if they cannot be split so.
    return LocalRun(
        **{each.name: getattr(one, each.name) for each in fields(Run)}
        | {
            "tx": transformation(config, one.stages),
            "steps_per_dispatch": config.sync_period,
        },
        config=config,
    )


def on_devices(workers: int, devices: Sequence[jax.Device]) -> Sequence[jax.Device]:
    """Returns a device for each worker, or one for all of them if there is no other.

    Raises:
      SettingError: if there are several devices, but not for all workers; or, of several
        processes, for more.
    """
    if len(devices) == 1:
        return devices
    if workers > len(devices) or (processes.count() > 1 and workers < len(devices)):
        raise SettingError(
            "workers", f"must be one for each of the {len(devices)} devices, got {workers}"
        )
    return devices[:workers]
