"""What is seen of a sweep while it runs: a bar on a terminal, a line now and then in a file."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.text import Text

from experiments.records import Record
from experiments.run import Run

# Seconds between two lines where there is no terminal.
NOW_AND_THEN = 30.0


class Progress(AbstractContextManager["Progress"]):
    """Shows the progress of a sweep.

    Args:
      console: the screen, or a file or pipe in its place.
      runs: what is trained, by label.
      seeds: from which seeds each.
    """

    def __init__(self, console: Console, runs: Mapping[str, Run], seeds: Sequence[int]):
        self._console, self._runs, self._seeds = console, runs, list(seeds)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TimeColumn(),
            console=console,
            transient=True,
            speed_estimate_period=120,
            disable=not console.is_terminal,
        )
        # Counted in gradients, each of which takes about as long.
        total = len(self._seeds) * sum(map(_gradients, runs.values()))
        self._task = self._bar.add_task("compiling", total=total)
        self._compiled: set[str] = set()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def skip(self, run: Run, seeds: Sequence[int]) -> None:
        """Says that an entry was finished before."""
        self._bar.update(self._task, completed=self._done(run, seeds, run.steps))
        self.say(f"{self._who(run, seeds[0])}done before")

    def on_step(self, run: Run, seeds: Sequence[int]) -> Callable[[int, float], None]:
        """Returns what is called during training with each step and its loss."""
        first, began, told = None, 0.0, time.perf_counter()
        if not self._console.is_terminal and run.label not in self._compiled:
            self._compiled.add(run.label)
            self.say(f"{self._who(run, seeds[0])}compiling")

        def show(step: int, loss: float) -> None:
            nonlocal first, began, told
            now = time.perf_counter()
            if first is None:
                first, began = step, now
            images = (step - first) * run.batch_size * len(seeds)
            speed = f"  {images / (now - began):,.0f} {_per_second(run)}" if images else ""
            where = _where(run, run.epoch_of(step))
            line = f"{self._who(run, seeds[0])}{where}  loss {loss:.4g}{speed}"
            self._bar.update(self._task, completed=self._done(run, seeds, step), description=line)
            if not self._console.is_terminal and now - told > NOW_AND_THEN:
                told = now
                self.say(f"{line}  step {step:,}/{run.steps:,}")

        return show

    def epoch(self, run: Run, record: Record, *, restored: bool) -> None:
        """Prints the results of a new epoch; of several entries only those of the last."""
        within = len(self._runs) > 1 and record["epoch"] < run.epochs
        if restored or within or record["epoch"] == 0:
            return
        test, speed = record.get("test_accuracy"), record["timing"]["images_per_second"]
        self.say(
            f"{self._who(run, record['seed'])}{_where(run, record['epoch'])}  "
            f"loss {record['batch_loss']:.4f}"
            + ("" if test is None else f"  test {100 * test:.2f} %")
            + f"  {speed:,.0f} {_per_second(run)}"
        )

    def _done(self, run: Run, seeds: Sequence[int], step: int) -> int:
        """Returns how many gradients have been taken when a run is at a step."""
        labels = list(self._runs)
        before = sum(_gradients(self._runs[n]) for n in labels[: labels.index(run.label)])
        done = before * len(self._seeds) + _gradients(run) * self._seeds.index(seeds[0])
        return done + step * run.gradients_per_step * len(seeds)

    def _who(self, run: Run, seed: int) -> str:
        label = f"{run.label}  " if len(self._runs) > 1 else ""
        return f"{label}seed {seed}  "


class TimeColumn(ProgressColumn):
    """The time that is left, or has passed as long as nothing is known."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Returns hours, minutes and seconds."""
        known = task.time_remaining is not None
        seconds = int((task.time_remaining if known else task.elapsed) or 0)
        clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return Text(f"{clock} left" if known else clock)


def _per_second(run: Run) -> str:
    """Returns the unit of the speed."""
    return "img/s" if run.dataset.unit == "images" else f"{run.dataset.unit}/s"


def _where(run: Run, epoch: int) -> str:
    return f"epoch {epoch:{len(str(run.epochs))}}/{run.epochs}"


def _gradients(run: Run) -> int:
    return run.steps * run.gradients_per_step
