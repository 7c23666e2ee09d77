"""The regime of tasks in sequence: two classes after two others, and all tested at the end.

As in `sequential.py`, the network is told the task, in training as in testing: it chooses among its
classes. One optimizer goes through all tasks, so that slow weights and averages go on from task to
task. The stages of SLRLA are the tasks, each of which is held near where the last one has ended.
"""

import itertools
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import SettingError
from experiments.data import Dataset, batches
from experiments.regimes import supervised
from experiments.regimes.engine import Measure, Method, Regime
from experiments.regimes.supervised import BASE, METHODS, MOMENTA, RATES, WEIGHT_DECAYS, settings
from experiments.regimes.training import Draw, Problem
from experiments.steps import Model, State, eval_step, train_step
from experiments.studies.sequential import Told, among

CLASSES = 2  # Of a task.
STEPS = 200  # Of a task.
ERROR = Measure("mean error of all tasks in %", worst=100.0)


def regimes(dataset: Dataset) -> list[Regime]:
    """Returns the regime, on a data set.

    Raises:
      SettingError: if its classes cannot be divided into tasks.
    """
    if dataset.classes % CLASSES:
        what = f"must have classes for tasks of {CLASSES}, got {dataset.classes}"
        raise SettingError("dataset", what)
    tasks = dataset.classes // CLASSES
    milestones = tuple(t / tasks for t in range(1, tasks))
    base = replace(BASE, annealing="none", milestones=milestones)
    tuned = settings(momentum=MOMENTA, weight_decay=WEIGHT_DECAYS)
    own = {
        "sgd": METHODS["sgd"]._replace(own=tuned),
        "slrla": Method("SLRLA", settings(slow_step_size=(0.5, 0.8), beta=(0.01, 0.1))),
    }
    return [
        Regime(
            "sequence",
            "Tasks in sequence",
            supervised.FAMILY,
            ERROR,
            METHODS | own,
            RATES,
            Tasks(dataset, base, tasks * STEPS).scores,
            tasks * STEPS,
            ("momentum", "weight_decay"),
            note=f"{tasks} tasks of {CLASSES} classes, {STEPS} steps each at a constant learning "
            "rate; the network is told the task. Every method is one optimizer that goes through "
            "all tasks, and SLRLA's stages are the tasks.",
        )
    ]


@dataclass(frozen=True, eq=False)
class Tasks(Problem):
    """A problem whose training images come task by task."""

    @property
    def tasks(self) -> int:
        """How many there are."""
        return self.dataset.classes // CLASSES

    @cached_property
    def model(self) -> Model:
        """The network that is told the task."""
        network = super().model
        return replace(network, make=partial(Told, network.make, self.dataset.classes))

    def draw(self, seed: int, *, held_out: bool) -> Draw:
        """Returns what a seed draws; its batches are of one task after the other."""
        train, *_ = self.split(seed)
        task = self.pool[1][train] // CLASSES
        chosen = []
        for mine in (train[task == t] for t in range(self.tasks)):
            positions = batches(seed, len(mine), self.base.batch_size)
            chosen += [mine[some] for some in itertools.islice(positions, self.steps // self.tasks)]
        return super().draw(seed, held_out=held_out)._replace(batches=np.stack(chosen))

    def told(self, stats: Any, task: Any) -> Any:
        """Returns the statistics of the network when it is told a task, which may be traced."""
        chosen = CLASSES * task + jnp.arange(CLASSES)
        return stats | {"among": among(chosen, self.dataset.classes)}

    def trained(self, tx: optax.GradientTransformation, state: State, draw: Draw) -> State:
        """Trains on all batches, telling the network the task of each."""
        step = partial(train_step, self.model, tx, self.images_and(draw.labels))

        def of_its_task(state: State, batch: jax.Array) -> tuple[State, jax.Array]:
            task = draw.labels[batch[0]] // CLASSES
            return step(state._replace(stats=self.told(state.stats, task)), batch)

        return jax.lax.scan(of_its_task, state, draw.batches)[0]

    def measure(self, params: Any, stats: Any, draw: Draw) -> jax.Array:
        """Returns the mean over the tasks of the error in % on each."""
        pool = self.images_and(draw.labels)

        def error(task: jax.Array) -> jax.Array:
            counted = draw.counted & (draw.labels[draw.evaluated] // CLASSES == task)
            told = self.told(stats, task)
            _, correct = eval_step(self.model, pool, params, told, draw.evaluated, counted)
            return 100 * (1 - correct / counted.sum())

        return jax.vmap(error)(jnp.arange(self.tasks)).mean()
