"""The regimes of tasks in sequence: two classes after two others, and all tested at the end.

In one the network is told the task, in training as in testing, and chooses among its classes, as in
`sequential.py`; in the other it chooses among all classes. One optimizer goes through all tasks, so
that slow weights and averages go on from task to task. The stages of SLRLA are the tasks, each of
which is held near where the last one has ended.
"""

import itertools
from collections.abc import Mapping
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
from experiments.regimes.engine import TUNING_SEEDS, Measure, Method, Regime
from experiments.regimes.supervised import settings
from experiments.regimes.training import Draw, Problem
from experiments.steps import Model, State, eval_step, train_step
from experiments.studies.sequential import Told, among

CLASSES, STEPS = 2, 200  # Of a task.
RATES = tuple(2.0**n for n in range(-13, 3))
ERROR = Measure("mean error of all tasks in %", worst=100.0)
# As far as a task is long, the own settings reach back.
METHODS: Mapping[str, Method] = {
    "sgd": Method("Plain", settings(momentum=supervised.MOMENTA)),
    "ema": Method("EMA", settings(ema_decay=(0.97, 0.99, 0.997, 0.999))),
    "schedule_free": supervised.METHODS["schedule_free"],
    "lookahead": Method("Lookahead", settings(sync_period=(20, STEPS), slow_step_size=(0.2, 0.5))),
    "multilayer_lookahead": Method(
        "Multilayer Lookahead",
        [
            {"sync_period": (5, STEPS // 5), "slow_step_size": sizes}
            for sizes in itertools.product((0.5, 0.8), (0.2, 0.5))
        ],
    ),
    "slrla": Method("SLRLA", settings(slow_step_size=(0.2, 0.8), beta=(0.1, 1.0))),
    "slrla_released": Method(
        "SLRLA (released form)",
        [
            {"sync_period": 20, **own}
            for own in settings(slow_step_size=(0.2, 0.8), beta=(0.4, 2.0))
        ],
    ),
    "snoo": Method(
        "SNOO",
        [
            {"sync_period": period, "outer_learning_rate": rate, "outer_momentum": 0.5}
            for period in (20, STEPS)
            for rate in (0.2, 0.5)
        ],
    ),
    "primal_averaging": Method(
        "Primal averaging",
        settings(train_interpolation=(0.1, 0.7), eval_interpolation=(0.99, 0.997)),
    ),
}


def regimes(dataset: Dataset) -> list[Regime]:
    """Returns the regimes, on a data set.

    Raises:
      SettingError: if its classes cannot be divided into tasks.
    """
    tasks, rest = divmod(dataset.classes, CLASSES)
    most = Tasks.train_images // (2 * supervised.BASE.batch_size)
    if rest or not 2 <= tasks <= most:
        what = (
            f"must have classes for 2 to {most} tasks of {CLASSES}, got {dataset.classes} classes"
        )
        raise SettingError("dataset", what)
    return [
        regime(dataset, "tasks_told", "Tasks in sequence, told which", is_told=True),
        regime(dataset, "tasks_not_told", "Tasks in sequence, not told", is_told=False),
    ]


def regime(dataset: Dataset, name: str, label: str, *, is_told: bool) -> Regime:
    """Returns a regime, in which the network is told the task or is not."""
    tasks = dataset.classes // CLASSES
    milestones = tuple(t / tasks for t in range(1, tasks))  # Where SLRLA's stages end.
    base = replace(supervised.BASE, annealing="none", milestones=milestones)
    problem = Tasks(dataset, base, tasks * STEPS, is_told=is_told)
    return Regime(
        name,
        label,
        "Tasks in sequence",
        ERROR,
        METHODS,
        RATES,
        problem.scores,
        problem.steps,
        ("momentum",),
        TUNING_SEEDS[:5],
        note=f"{tasks} tasks of {CLASSES} classes, {STEPS} steps each at a constant learning "
        "rate, and all are tested at the end. The network chooses among "
        f"{'the classes of the task' if is_told else 'all classes'}. Five tuning seeds.",
    )


@dataclass(frozen=True, eq=False)
class Tasks(Problem):
    """A problem whose training images come task by task.

    Attributes:
      is_told: whether the network is told the task, or chooses among all classes.
    """

    is_told: bool = True

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
        """Returns the statistics of the network when it is at a task, which may be traced."""
        if not self.is_told:
            return stats
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
