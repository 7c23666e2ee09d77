"""A run from a command line: its folder, its seeds, its checkpoints, what is seen and left.

The folder has `settings.json`, `metrics.jsonl` with a line for each seed and epoch,
`curves.png`, `table.txt`, and the checkpoints of each seed.
"""

import importlib.util
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.folders import FolderError, run_folder
from experiments.reporting import report
from experiments.signals import Stop
from experiments.training import Checkpoints, Epoch, OtherRun, Run, flops_per_step, train

Record = dict[str, Any]


class LaunchError(Exception):
    """A run that cannot begin; the message begins with the flag that is to blame."""


@dataclass(frozen=True)
class Job:
    """What a command line asks for.

    Attributes:
      folder: of the run.
      run: what is trained.
      seeds: trained one after the other, or in groups together.
      learning_rate: of a 0-based optimizer step.
      stages: learning rate of each stage, and the step at which it ends.
      settings: what is written down of the run.
      fingerprint: what the run is a function of, besides the seed; a checkpoint with another
        one is refused.
      flag_of: the flag that a value of the fingerprint is given by.
      title: the run in a line.
      together: whether all seeds are trained at once.
      save_every: steps between checkpoints within an epoch; None for none within.
      resume: whether to go on with a run that is in the folder.
      checkpoint: folder of the checkpoints, if not one inside that of the run.
      tensorboard: whether to write event files too.
      counts: the accuracy that the best epoch is chosen by.
    """

    folder: Path
    run: Run
    seeds: Sequence[int]
    learning_rate: optax.Schedule
    stages: list[tuple[float, int]]
    settings: Record
    fingerprint: Record
    flag_of: Callable[[str], str]
    title: str
    together: bool = False
    save_every: int | None = None
    resume: bool = False
    checkpoint: Path | None = None
    tensorboard: bool = False
    counts: str = "test_accuracy"


def launch(job: Job, console: Console) -> list[Record]:
    """Trains every seed, shows it, and leaves the results in the job's folder.

    Returns:
      The records of all epochs and seeds.

    Raises:
      LaunchError: as `run_folder`, `check_flags` and `check_checkpoints` find something wrong.
      Diverged, Stopped, CheckpointError: as `training.train` does.
    """
    check_flags(job)
    try:
        with run_folder(job.folder, resume=job.resume), Stop() as stop:
            return train_all(job, console, stop)
    except FolderError as error:
        raise LaunchError(f"--exp_name: {error}") from error


def check_flags(job: Job) -> None:
    """Looks for what the flags ask for and is not there, before anything is made."""
    if job.tensorboard and importlib.util.find_spec("tensorboardX") is None:
        raise LaunchError("--tensorboard: needs the extra `tensorboard`, or tensorboardX")
    if job.run.more_epochs and not job.resume:
        raise LaunchError("--extend_epochs: needs --resume, and a finished run")
    if job.run.more_epochs and not job.folder.exists():
        raise LaunchError(f"--extend_epochs: there is no run in {job.folder}")


def train_all(job: Job, console: Console, stop: Stop) -> list[Record]:
    """Trains every seed in the job's folder; as `launch`."""
    groups = [list(job.seeds)] if job.together else [[seed] for seed in job.seeds]
    if job.resume:
        check_checkpoints(job, groups)
    stages = report.stages_in_words(job.stages)
    introduction = (job.title, stages, f"Results go to {job.folder}", "")
    console.print(*introduction, sep="\n", highlight=False, soft_wrap=True)
    records: list[Record] = []
    with ExitStack() as open_things:
        log = open_things.enter_context(Log(job, console))
        for seeds in groups:
            checkpoints = checkpoints_of(job, seeds)
            try:
                epochs = train(
                    job.run, seeds, checkpoints=checkpoints, stop=stop, on_step=log.on_step(seeds)
                )
                records += [log.write(epoch) for epoch in epochs]
            finally:
                checkpoints.close()
    summarise(job, records, console)
    return records


def checkpoints_of(job: Job, seeds: Sequence[int]) -> Checkpoints:
    """The checkpoints of some seeds."""
    name = "seed_" + "_".join(map(str, seeds))
    root = job.folder / "checkpoints" if job.checkpoint is None else job.checkpoint
    fingerprint = {**job.fingerprint, "seed": list(seeds)}
    return Checkpoints(root / name, fingerprint, job.save_every, job.flag_of)


def check_checkpoints(job: Job, groups: Sequence[Sequence[int]]) -> None:
    """Looks whether the run can go on with its checkpoints, before anything is trained.

    Raises:
      CheckpointError: if one is of another run, or damaged.
      LaunchError: if one is of a run that is to be extended and not finished, or is beyond the
        end of this run.
    """
    run = job.run
    for seeds in groups:
        with closing(checkpoints_of(job, seeds)) as checkpoints:
            try:
                step, _ = checkpoints.progress() or (0, None)
            except OtherRun as error:
                if "epochs" not in error.names:
                    raise
                hint = "--extend_epochs lengthens a finished run"
                raise OtherRun(f"{error}; {hint}", error.names) from None
        if run.more_epochs and step < run.steps_before:
            raise LaunchError(
                f"--extend_epochs: seed {', '.join(map(str, seeds))} is at step {step} of "
                f"{run.steps_before} in {job.folder}; --resume without it finishes the run first"
            )
        if step > run.steps:
            needed = -(-(step - run.steps_before) // run.steps_per_epoch)
            raise LaunchError(
                f"--resume: the run in {job.folder} is at step {step} and would end at step "
                f"{run.steps}; --extend_epochs {needed} or more goes on with it"
            )


@dataclass
class Log(AbstractContextManager["Log"]):
    """What is seen of a run, on the screen and in files.

    Attributes:
      job: what is run.
      console: the screen.
    """

    job: Job
    console: Console
    _before: dict[tuple[int, int], Record] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._file = None
        self._events = event_writer(self.job.folder) if self.job.tensorboard else None
        self._flops = flops_per_step(self.job.run)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            transient=True,
            speed_estimate_period=120,
        )
        self._bar = self._progress.add_task(
            "compiling", total=self.job.run.steps * len(self.job.seeds)
        )
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()

    def on_step(self, seeds: Sequence[int]) -> Callable[[int, float], None]:
        """What is called during training with each step and its loss."""
        run, began, first = self.job.run, time.perf_counter(), None
        done_before = run.steps * list(self.job.seeds).index(seeds[0])

        def show(step: int, loss: float) -> None:
            nonlocal first, began
            if first is None:
                first, began = step, time.perf_counter()
            passed = time.perf_counter() - began
            speed = (step - first) * run.batch_size * len(seeds) / passed if step > first else 0
            self._progress.update(
                self._bar,
                completed=done_before + step * len(seeds),
                description=f"{self._who(seeds[0])}  {self._where(step)}  loss {loss:.4f}  "
                f"{speed:,.0f} img/s",
            )

        return show

    def write(self, epoch: Epoch) -> Record:
        """Writes an epoch to the files and the screen; returns the record as it is written."""
        # Only now, when no checkpoint has been refused, what an earlier process left is replaced.
        if self._file is None:
            self._begin()
        run, timing = self.job.run, epoch.timing
        step = epoch.record["steps"]
        record = {
            "optimizer": run.label,
            **epoch.record,
            "learning_rate": float(self.job.learning_rate(max(step - 1, 0))),
            "stage": self._stage(step),
        }
        if timing:
            record["timing"] = timing
            if self._flops is not None:
                per_image = self._flops / run.batch_size
                timing["gflops_per_second"] = timing["images_per_second"] * per_image / 1e9
        else:  # Of an epoch before a checkpoint: what was written at the time.
            before = self._before.get((record["seed"], record["epoch"]), {})
            record |= {"timing": before["timing"]} if "timing" in before else {}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in flat(record):
                self._events.add_scalar(f"seed_{record['seed']}/{name}", value, step)
        if timing and record["epoch"] > 0:
            self.console.print(self._line(record), highlight=False, soft_wrap=True)
        return record

    def _begin(self) -> None:
        path = self.job.folder / "metrics.jsonl"
        damaged = 0
        try:
            report.write_settings(self.job.folder, self.job.settings)
            if path.exists():
                before, damaged = read_metrics(path)
                self._before = {(r["seed"], r["epoch"]): r for r in before}
            self._file = path.open("w")
        except OSError as error:
            raise LaunchError(
                f"--root: cannot write {error.filename}: {error.strerror}; once it is removed, "
                "--resume makes it anew"
            ) from error
        if damaged:
            self.console.print(
                f"{path} had {damaged} damaged line{'s' if damaged > 1 else ''}; the file is "
                "made anew, without the times that stood there",
                highlight=False,
                soft_wrap=True,
            )

    def _line(self, record: Record) -> str:
        timing = record["timing"]
        test, fast = record.get("test_accuracy"), record.get("fast_test_accuracy")
        return (
            f"{self._who(record['seed'])}  {self._where(record['steps'])}  "
            f"loss {record['batch_loss']:.4f}"
            + ("" if test is None else f"  test {100 * test:5.2f} %")
            + ("" if fast is None else f" (fast {100 * fast:5.2f})")
            + f"  {timing['images_per_second']:,.0f} img/s"
            + (
                f"  {timing['gflops_per_second']:.1f} GFLOP/s"
                if "gflops_per_second" in timing
                else ""
            )
            + f"  {timing['seconds']:.1f} s, {timing['waited']:.2f} of them for data"
        )

    def _who(self, seed: int) -> str:
        return f"{self.job.run.label}  seed {seed}"

    def _where(self, step: int) -> str:
        run = self.job.run
        rate = float(self.job.learning_rate(max(step - 1, 0)))
        stage = f"stage {self._stage(step)}/{len(self.job.stages)}"
        return f"epoch {run.epoch_of(step)}/{run.epochs}  {stage}  lr {rate:.2g}"

    def _stage(self, step: int) -> int:
        return 1 + sum(step > end for _, end in self.job.stages[:-1])


def summarise(job: Job, records: list[Record], console: Console) -> None:
    """Table and curves of what came out."""
    labels = {job.run.label: job.run.label}
    lines = list(report.summary(records, job.counts))
    (job.folder / "table.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report.plot(records, labels, job.stages, job.title, job.folder / "curves.png")
    where = f"All of it is in {job.folder.resolve()}"
    console.print("", *lines, where, sep="\n", highlight=False, soft_wrap=True)


def read_metrics(path: Path) -> tuple[list[Record], int]:
    """The records in a file of JSON lines, and how many of the lines are damaged.

    A last line that was cut off is left out.
    """
    records, damaged = [], 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
            _ = record["seed"], record["epoch"]
        except (ValueError, LookupError, TypeError):
            damaged += 1
        else:
            records.append(record)
    return records, damaged


def event_writer(folder: Path) -> Any:
    """A writer of TensorBoard's event files."""
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))


def flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a record, those in records inside it under longer names."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
