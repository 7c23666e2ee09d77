"""The records of a sweep in a file of JSON lines, one for each entry, seed and epoch."""

import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments import processes
from experiments.run import Run
from experiments.train import Epoch

Record = dict[str, Any]


class Log:
    """The file of records, which epochs are added to, and from which none is ever lost.

    Of several processes each has the records, and one writes them.

    Args:
      path: of the file, which need not exist.

    Attributes:
      damaged: how many lines of the file could not be read.

    Raises:
      OSError: if the file cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._records, self.damaged = read_metrics(path) if path.exists() else ([], 0)

    def of(self, label: str, seeds: Collection[int]) -> list[Record]:
        """Returns the records of an entry from some seeds, in the order of seeds and epochs."""
        mine = [r for r in self._records if r["optimizer"] == label and r["seed"] in seeds]
        return sorted(mine, key=lambda record: (record["seed"], record["epoch"]))

    def finished(self, run: Run, seeds: Sequence[int]) -> bool:
        """Says whether there are records of all epochs from these seeds."""
        there = [(record["seed"], record["epoch"]) for record in self.of(run.label, seeds)]
        return there == [(seed, epoch) for seed in seeds for epoch in range(run.epochs + 1)]

    def writer(
        self,
        run: Run,
        seeds: Sequence[int],
        measure: Callable[[Run, int, Epoch], Record] | None = None,
    ) -> Callable[[Epoch], Record]:
        """Returns a function that writes an epoch, and returns its record as it is written.

        The first epoch replaces all records of these seeds. Those that a run restores from a
        checkpoint keep the timing that they had.

        Args:
          run: whose epochs they are.
          seeds: from which they come.
          measure: measures the network after the last epoch, for its record.
        """
        before = {(r["seed"], r["epoch"]): r for r in self.of(run.label, seeds)}
        flops, began, first = run.flops_per_step(), time.perf_counter(), True

        def write(epoch: Epoch) -> Record:
            nonlocal began, first
            if first:
                self.save(without=(run.label, seeds))
                first = False
            record = {"optimizer": run.label, **epoch.record}
            if epoch.timing:
                if measure is not None and record["epoch"] == run.epochs:
                    record |= measure(run, record["seed"], epoch)
                now = time.perf_counter()
                record["timing"] = {**epoch.timing, "wall": now - began}
                began = now
                if flops is not None:
                    per_image = flops / run.batch_size
                    speed = epoch.timing["images_per_second"] * per_image / 1e9
                    record["timing"]["gflops_per_second"] = speed
            elif "timing" in (old := before.get((record["seed"], record["epoch"]), {})):
                record["timing"] = old["timing"]
            self._records.append(record)
            if processes.is_writer():
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_line(record))
            return record

        return write

    def save(self, without: tuple[str, Collection[int]] = ("", ())) -> None:
        """Writes the whole file, without the records of an entry from some seeds."""
        gone = self.of(*without)
        self._records = [record for record in self._records if record not in gone]
        if not processes.is_writer():
            return
        whole = self.path.with_name(f"{self.path.name}.new")
        whole.write_text("".join(map(_line, self._records)), encoding="utf-8")
        os.replace(whole, self.path)


def read_metrics(path: Path) -> tuple[list[Record], int]:
    """Returns the records in a file of JSON lines, and how many of its lines are damaged.

    A last line that was cut off is not counted as damaged.
    """
    records, damaged = [], 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            record = json.loads(line)
            _ = record["optimizer"], record["seed"], record["epoch"]
        except (ValueError, LookupError, TypeError):
            damaged += 1
        else:
            records.append(record)
    return records, damaged


@contextmanager
def event_writer(folder: Path, *, wanted: bool) -> Iterator[Callable[[Record], None]]:
    """Gives a function that writes a record as TensorBoard's events, if that is wanted."""
    if not (wanted and processes.is_writer()):
        yield lambda record: None
        return
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:

        def write(record: Record) -> None:
            for name, value in _flat(record):
                tag = f"{record['optimizer']}/seed_{record['seed']}/{name}"
                writer.add_scalar(tag, value, record["steps"])

        yield write


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the numbers in a record, those of nested records under longer names."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"
