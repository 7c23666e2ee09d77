"""The runner: configurations × seeds → records, which every program here is a front end of.

A sweep has a folder with

    settings.json   the configurations, and each process's command, versions and machine
    metrics.jsonl   a record for each entry, seed and epoch
    checkpoints/    of each entry and seed, where the program makes them
    table.md, results.json and pictures, written by the program's report

What is finished is not run again, and what was interrupted is resumed.
"""

import importlib.util
import itertools
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments import data, processes, settings
from experiments.checkpoints import Checkpoints, NoCheckpoints, OtherRun
from experiments.config import Config, SettingError
from experiments.data import Data, DataError
from experiments.devices import seeds_together_are_faster
from experiments.folders import run_folder
from experiments.progress import Progress
from experiments.records import Log, Record, event_writer
from experiments.run import Run, run_of
from experiments.signals import Stop, StopTogether
from experiments.train import Diverged, Epoch, train


@dataclass(frozen=True)
class Entry:
    """A configuration in a sweep.

    Attributes:
      label: its name in records, tables and pictures.
      config: the configuration.
      folder: of its checkpoints, among those of the sweep.
    """

    label: str
    config: Config
    folder: str = ""


@dataclass(frozen=True)
class Results:
    """What a sweep has come to.

    Attributes:
      folder: where tables and pictures are to go.
      runs: of each entry that is finished from every seed, by its label.
      records: of these entries, from all seeds.
      diverged: a line about each seed of the others that diverged.
      settings: those in `settings.json`.
    """

    folder: Path
    runs: Mapping[str, Run]
    records: Sequence[Record]
    diverged: Sequence[str]
    settings: Record


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a program is asked to run, and how.

    Attributes:
      entries: the configurations.
      seeds: from which each is trained.
      report: writes tables and pictures of what there is so far, and returns the lines to print
        at the end.
      root: the folder of all runs.
      name: of the folder of this one; None for a new one.
      otherwise: what a new one is called, with a number after it.
      data_path: where the data are.
      resume: whether to resume what is in the folder.
      checkpoint: whether to save checkpoints.
      checkpoint_path: where, if not in the folder.
      save_every: steps between checkpoints within an epoch; None for none within.
      best_by: the accuracy that the best epoch is chosen by.
      more_epochs: epochs by which a finished run is extended.
      tensorboard: whether to write event files too.
      one_device: whether to use only one of several devices, in each process.
      further: settings besides the configurations that records depend on.
      run_of: builds a run, as `run.run_of` does.
      train: yields the epochs of a run, as `train.train` does.
      measure: measures a trained network, for its last record.
      flag_of: returns the flag of a setting, for messages.
    """

    entries: Sequence[Entry]
    seeds: Sequence[int]
    report: Callable[[Results], Sequence[str]]
    root: Path = Path("runs")
    name: str | None = None
    otherwise: str = "run"
    data_path: Path | None = None
    resume: bool = False
    checkpoint: bool = False
    checkpoint_path: Path | None = None
    save_every: int | None = None
    best_by: str = "test_accuracy"
    more_epochs: int = 0
    tensorboard: bool = False
    one_device: bool = False
    further: Mapping[str, Any] = field(default_factory=dict)
    run_of: Callable[..., Run] = run_of
    train: Callable[..., Iterator[Epoch]] = train
    measure: Callable[[Run, int, Epoch], Record] | None = None
    flag_of: Callable[[str], str] = str


class Screen(Console):
    """A console that leaves it to the program what happens when nobody reads any more."""

    def on_broken_pipe(self) -> None:
        """Raises the BrokenPipeError that is being handled again, instead of exiting."""
        raise


def run(sweep: Sweep, console: Console | None = None) -> int:
    """Trains every entry from every seed, shows it, and leaves the results in a folder.

    Returns:
      The exit code: 1 if a run diverged, else 0.

    Raises:
      SettingError: if something is wrong with the settings, before anything is made.
      CheckpointError: if a checkpoint is of another run, or damaged, or cannot be written.
      Stopped: if the process was asked to stop.
    """
    console = console or Screen(quiet=not processes.is_writer())
    with processes.together():
        check_options(sweep)
        runs = build(sweep)
    folders = run_folder(sweep.root, sweep.name, otherwise=sweep.otherwise, resume=sweep.resume)
    stops = Stop() if processes.count() == 1 else StopTogether()
    with processes.folder_of_all(folders) as folder, stops as stop:
        with processes.together():
            about, log = open_folder(sweep, runs, folder)
        say(console, *introduction(runs, about, log))
        diverged: dict[str, list[str]] = {}
        lines: Sequence[str] = ()
        with (
            Progress(console, runs, sweep.seeds) as progress,
            event_writer(folder, wanted=sweep.tensorboard) as write_events,
        ):
            for number, entry in enumerate(sweep.entries, start=1):
                run = runs[entry.label]
                for seeds in groups(sweep):
                    if log.finished(run, seeds):
                        progress.skip(run, seeds)
                        continue
                    write = log.writer(run, seeds, sweep.measure)
                    with closing(checkpoints_of(sweep, entry, run, seeds, folder)) as checkpoints:
                        epochs = sweep.train(
                            run,
                            seeds,
                            checkpoints=checkpoints,
                            stop=stop,
                            on_step=progress.on_step(run, seeds),
                        )
                        try:
                            for epoch in epochs:
                                record = write(epoch)
                                write_events(record)
                                progress.epoch(run, record, restored=not epoch.timing)
                        except Diverged as error:
                            diverged.setdefault(entry.label, []).append(str(error))
                            progress.say(str(error))
                        except Exception as error:
                            processes.end_if_alone(error)
                            raise
                done = [e.label for e in sweep.entries[:number] if e.label not in diverged]
                results = Results(
                    folder,
                    runs={label: runs[label] for label in done},
                    records=[r for label in done for r in log.of(label, sweep.seeds)],
                    diverged=[line for of_entry in diverged.values() for line in of_entry],
                    settings=about,
                )
                lines = sweep.report(results) if processes.is_writer() else ()
        say(console, "", *lines, f"All of it is in {folder.resolve()}")
    return 1 if diverged else 0


def check_options(sweep: Sweep) -> None:
    """Checks the options that need neither data nor network.

    Raises:
      SettingError: if one of them is impossible.
    """
    if sweep.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise SettingError("tensorboard", "needs the extra `tensorboard`, or tensorboardX")
    if sweep.more_epochs and not sweep.resume:
        raise SettingError("more_epochs", "needs --resume, and a finished run")
    if sweep.more_epochs and not (sweep.root / str(sweep.name)).exists():
        raise SettingError("more_epochs", f"there is no run in {sweep.root / str(sweep.name)}")


def build(sweep: Sweep) -> dict[str, Run]:
    """Builds the run of each entry, by its label; equal data are loaded once.

    Raises:
      SettingError: as `dataset_of` and `run_of` do, or if there is no device.
    """
    try:
        devices = sorted(jax.devices(), key=_process_of)
    except (AssertionError, RuntimeError) as error:
        platforms = jax.config.jax_platforms
        raise SettingError("JAX_PLATFORMS", f"JAX finds no device of {platforms!r}") from error
    if sweep.one_device:
        devices = [next(of_one) for _, of_one in itertools.groupby(devices, _process_of)]
    datasets: dict[Hashable, Data] = {}
    runs = {}
    for entry in sweep.entries:
        key = _data_of(entry.config)
        if key not in datasets:
            datasets[key] = dataset_of(entry.config, sweep.data_path)
        runs[entry.label] = sweep.run_of(
            entry.config,
            datasets[key],
            label=entry.label,
            more_epochs=sweep.more_epochs,
            on=devices,
        )
    return runs


def open_folder(sweep: Sweep, runs: Mapping[str, Run], folder: Path) -> tuple[Record, Log]:
    """Compares a folder with what is to be run in it; then writes the settings.

    Returns:
      The settings, and the records that are there.

    Raises:
      CheckpointError: if the folder or a checkpoint in it is of another run, or damaged.
      SettingError: if files cannot be read or written, a run that is to be extended is not
        finished, or a run is longer than it would be.
    """
    try:
        with processes.together():  # All have read before one writes.
            fingerprints = {e.label: fingerprint(sweep, e, runs[e.label]) for e in sweep.entries}
            path = folder / "settings.json"
            about = settings.merged(
                path, fingerprints, sweep.seeds, sweep.more_epochs, sweep.flag_of
            )
            log = Log(folder / "metrics.jsonl")
        for entry in sweep.entries if sweep.checkpoint else ():
            check_checkpoints(sweep, entry, runs[entry.label], folder)
        if processes.is_writer():
            settings.write_json(path, about)
        log.save()
    except OtherRun as error:
        if "epochs" not in error.names:
            raise
        hint = "--extend_epochs lengthens a finished run"
        raise OtherRun(f"{error}; {hint}", error.names) from None
    except OSError as error:
        raise SettingError(
            "root",
            f"cannot write {error.filename}: {error.strerror}; once it is removed, --resume "
            "writes it again",
        ) from error
    return about, log


def fingerprint(sweep: Sweep, entry: Entry, run: Run) -> Record:
    """Returns what the records of an entry depend on, besides the seed."""
    depends = {**entry.config.as_json(), **sweep.further, "data": run.dataset.fingerprint()}
    return json.loads(json.dumps(depends))


def groups(sweep: Sweep) -> list[list[int]]:
    """Returns the seeds that are trained together, if nothing else is done with each."""
    alone = sweep.measure is not None or sweep.train is not train
    if len(sweep.seeds) > 1 and not alone and seeds_together_are_faster():
        return [list(sweep.seeds)]
    return [[seed] for seed in sweep.seeds]


def checkpoints_of(
    sweep: Sweep, entry: Entry, run: Run, seeds: Sequence[int], folder: Path
) -> Checkpoints:
    """Returns the checkpoints of an entry from some seeds."""
    if not sweep.checkpoint:
        return NoCheckpoints()
    root = sweep.checkpoint_path or folder / "checkpoints"
    return Checkpoints(
        root / entry.folder / ("seed_" + "_".join(map(str, seeds))),
        {**fingerprint(sweep, entry, run), "seed": list(seeds)},
        sweep.save_every,
        sweep.best_by,
        sweep.flag_of,
    )


def check_checkpoints(sweep: Sweep, entry: Entry, run: Run, folder: Path) -> None:
    """Checks that an entry can be resumed from every seed; raises as `open_folder` says."""
    for seeds in groups(sweep):
        with closing(checkpoints_of(sweep, entry, run, seeds, folder)) as checkpoints:
            step, _ = checkpoints.progress() or (0, None)
        if run.more_epochs and step < run.steps_before:
            raise SettingError(
                "more_epochs",
                f"seed {', '.join(map(str, seeds))} is at step {step} of {run.steps_before} in "
                f"{folder}; --resume without it finishes the run first",
            )
        if step > run.steps:
            needed = -(-(step - run.steps_before) // run.steps_per_epoch)
            raise SettingError(
                "resume",
                f"the run in {folder} is at step {step} and would end at step {run.steps}; "
                f"--extend_epochs {needed} or more extends it",
            )


def introduction(runs: Mapping[str, Run], about: Record, log: Log) -> Iterator[str]:
    """Yields what is run and where the results go, in a few lines."""
    yield from dict.fromkeys(title_of(run) for run in runs.values())
    stages = {run.stages.in_words() for run in runs.values()}
    yield from stages if len(stages) == 1 else ()
    yield from settings.weaker(about)
    if log.damaged:
        yield (
            f"{log.path} had {log.damaged} damaged line{'s' if log.damaged > 1 else ''}, whose "
            "content is restored or run again"
        )
    yield f"Results go to {log.path.parent}"
    yield ""


def say(console: Console, *lines: str) -> None:
    """Prints lines as they are."""
    console.print(*lines, sep="\n", highlight=False, markup=False, soft_wrap=True)


def title_of(run: Run) -> str:
    """Says what is trained, in a line."""
    data, epochs = run.dataset, run.epochs - run.more_epochs
    length = f"{epochs} epoch{'s' if epochs > 1 else ''}"
    length += f" and {run.more_epochs} more" if run.more_epochs else ""
    validation = f", {data.validation_size:,} validation" if data.validation_size else ""
    return (
        f"{data.name}, {data.train_size:,} training{validation} and {data.test_size:,} test "
        f"{data.unit}; "
        f"{run.model.name}, {run.model.size:,} parameters; "
        f"{length}, {run.steps:,} steps of {run.batch_size} {data.unit}"
    )


def dataset_of(config: Config, data_path: Path | None) -> Data:
    """Loads the data of a configuration.

    Raises:
      SettingError: if data are missing or damaged, or fewer than are asked for.
    """
    try:
        dataset = data.load(config.dataset, data_path)
    except DataError as error:
        raise SettingError("data_path", str(error)) from error
    if config.channel_std is not None:
        std = np.float32(config.channel_std) * np.float32(dataset.white)
        dataset = replace(dataset, std=std)
    changes: dict[str, Callable[[Data, Any], Data]] = {
        "held_out": lambda data, n: data.with_held_out(n),
        "validation_split": lambda data, part: data.with_validation(round(part * data.train_size)),
        "train_images": lambda data, n: data.with_training_images(n),
        "image_size": lambda data, size: data.with_image_size(size),
    }
    for setting, change in changes.items():
        value = getattr(config, setting)
        if value is not None:
            try:
                dataset = change(dataset, value)
            except DataError as error:
                raise SettingError(setting, str(error)) from error
    return dataset


def _process_of(device: jax.Device) -> int:
    return device.process_index


def _data_of(config: Config) -> Hashable:
    return (
        config.dataset,
        config.train_images,
        config.held_out,
        config.validation_split,
        config.image_size,
        config.channel_std,
    )
