"""Runs of `examples/main.py` on real processes, which `faults.py` disturbs and compares."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from experiments import trained
from launch import free_port

HERE = Path(__file__).parent
PROGRAM = HERE / "faulty.py"
STEPS_PER_EPOCH = 4
FLAGS = (
    "--dataset digits --network mlp --input_norm --train_images 96 --train_batch_size 24 "
    "--milestones none --lookahead 5_0.8 --save_every 1 --eval_every 8 --exp_name run --resume"
)
# A process ends itself with these, or JAX does with SIGABRT, when it has lost another.
ENDED = (1, -signal.SIGABRT)
LOOK = 0.01
SECONDS = 300
Fault = dict[str, Any]
NONE: Fault = {"fault": "none"}


class Lab:
    """Runs of one length, each in a folder of its own.

    Args:
      root: of the folders.
      epochs: of each run.
      seed: of the moments and the victims.
    """

    def __init__(self, root: Path, epochs: int, seed: int):
        self.root, self.epochs = root, epochs
        self.steps = epochs * STEPS_PER_EPOCH
        self.rng = np.random.default_rng(seed)
        self._undisturbed: dict[int, Path] = {}

    @contextmanager
    def started(self, name: str, count: int, fault: Fault) -> Iterator[list[subprocess.Popen[str]]]:
        """Starts the processes of a run, or of its resumption; at the end none is left."""
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        address = f"--coordinator localhost:{free_port()} --num_processes {count}"
        flags = f"{FLAGS} --tr_epochs {self.epochs} {address}".split()
        processes = [
            subprocess.Popen(
                [sys.executable, PROGRAM, json.dumps(fault), *flags, f"--process_id={number}"],
                cwd=folder,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                stdout=(folder / f"printed_{number}").open("a"),
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]
        try:
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.communicate()

    def run(self, name: str, count: int, fault: Fault = NONE) -> list[str]:
        """Runs it to its end, or until a fault ends it; returns the lines that were printed."""
        with self.started(name, count, fault) as processes:
            said = [process.communicate(timeout=SECONDS)[1] for process in processes]
            if any(process.returncode not in (0, *ENDED) for process in processes):
                raise RuntimeError("\n".join(said))
        return [line for of_one in said for line in of_one.splitlines()]

    def undisturbed(self, count: int) -> Path:
        """The folder of the run on so many processes that nothing disturbs."""
        if count not in self._undisturbed:
            self.run(f"undisturbed {count}", count)
            self._undisturbed[count] = self.root / f"undisturbed {count}"
        return self._undisturbed[count]

    def step(self) -> int:
        """A random step within the run."""
        return int(self.rng.integers(2, self.steps - 2))

    def lost(self, name: str, count: int) -> dict[str, bool]:
        """Says which of params, optimizer state and records differ from the undisturbed run's."""
        return differences(self.root / name, self.undisturbed(count))


def state_of(folder: Path) -> tuple[int, dict[str, np.ndarray]]:
    """The step and the arrays of the last checkpoint of a run."""
    return trained.arrays(folder / "runs/run/checkpoints/seed_0")


def records_of(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, without the seconds that it took."""
    lines = (folder / "runs/run/metrics.jsonl").read_text().splitlines()
    return [{n: v for n, v in json.loads(line).items() if n != "timing"} for line in lines]


def differences(one: Path, other: Path) -> dict[str, bool]:
    """Says what differs, in any bit, between the ends of two runs."""
    (step, state), (last, wanted) = state_of(one), state_of(other)
    parts = {"params": "params.", "optimizer state": "opt_state."}
    differing = {name: step != last or state.keys() != wanted.keys() for name in parts}
    for name, prefix in parts.items():
        differing[name] |= any(
            array.tobytes() != wanted[place].tobytes()
            for place, array in state.items()
            if place.startswith(prefix)
        )
    return differing | {"records": records_of(one) != records_of(other)}


def saves(folder: Path) -> set[str]:
    """Checkpoints that are there or being written."""
    return {path.name for path in folder.glob("runs/run/checkpoints/seed_0/[0-9]*")}
