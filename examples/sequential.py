"""What is learnt, and what is forgotten, when tasks come one after the other.

    python examples/sequential.py

trains a small residual network on scikit-learn's digits, two classes after two others, with SGD,
SAM, ASAM and Lookbehind (`--optimizers` takes others). Each task begins with the weights that the
last one has left and a fresh optimizer, and sees no images of the others. In training as in
testing the network is told the task: it chooses among its classes. `--help` says what can be
changed.
"""

import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments import flags, study, sweep, train
from experiments.command_line import program
from experiments.config import Config, SettingError
from experiments.data import Dataset
from experiments.flags import Parser
from experiments.report import Column
from experiments.run import Run, evaluated_weights, run_of
from experiments.schedules import Stages
from experiments.signals import Stop
from experiments.steps import Model, State, init_state
from experiments.studies.sequential import (
    Task,
    Told,
    among,
    average_accuracy,
    forgetting,
    split_classes,
)
from experiments.train import Epoch, OnStep
from flax import nnx

COLUMNS = (
    Column("once learnt", "learning_accuracy"),
    Column("at the end", "average_accuracy"),
    Column("forgetting", "forgetting"),
)
NOTE = (
    "Accuracy in %, of each task when it has been learnt, and of all tasks at the end; forgetting "
    "in points"
)


class Weights(NamedTuple):
    """What is carried over from task to task: params, and running statistics."""

    params: Any
    stats: Any

    def told(self, task: Task) -> "Weights":
        """Returns the same for a network that is told to choose among a task's classes."""
        classes = len(self.stats["among"])
        return Weights(self.params, self.stats | {"among": among(task.classes, classes)})


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = study.make_parser(
        "sequential.py",
        "Accuracy and forgetting when the classes of a data set come one task after the other.",
        epochs=10,
        batch_size=32,
    )
    parser.add_argument_group("tasks").add_argument(
        "--classes_per_task",
        type=flags.count,
        default=2,
        metavar="N",
        help="a divisor of the number of classes (default: %(default)s)",
    )
    return parser


@lru_cache(maxsize=1)
def tasks_of(dataset: Dataset, classes_per_task: int) -> list[Task]:
    """Returns tasks with as many images each as the smallest has, which share a compiled step.

    Raises:
      SettingError: if the classes cannot be divided into two tasks or more.
    """
    if dataset.classes % classes_per_task or dataset.classes == classes_per_task:
        raise SettingError(
            "classes_per_task",
            f"must divide the {dataset.classes} classes into two tasks or more, "
            f"got {classes_per_task}",
        )
    tasks = split_classes(dataset, classes_per_task)
    train, test = (min(getattr(t.dataset, n) for t in tasks) for n in ("train_size", "test_size"))

    def cut(data: Dataset) -> Dataset:
        images, labels = data.pool("test")
        few = data.with_training_images(train)
        return replace(few, test_images=images[:test], test_labels=labels[:test])

    return [replace(task, dataset=cut(task.dataset)) for task in tasks]


@lru_cache(maxsize=1)  # All runs share one, and what is compiled for it.
def told(model: Model) -> Model:
    """Returns a model of the network that is told the task."""
    return replace(model, make=partial(Told, model.make, model.dataset.classes))


@dataclass(frozen=True)
class TasksRun(Run):
    """A run of all tasks: the epochs and stages of one, as often as there are tasks.

    Attributes:
      tasks: in the order in which they are learnt.
    """

    tasks: Sequence[Task] = ()

    def of(self, task: Task) -> Run:
        """Returns the run of a single task."""
        count, length = len(self.tasks), len(self.stages.lengths) // len(self.tasks)
        return replace(
            self,
            dataset=task.dataset,
            epochs=self.epochs // count,
            stages=Stages(self.stages.learning_rates[:length], self.stages.lengths[:length]),
        )


def run_of_tasks(
    config: Config, dataset: Dataset, *, classes_per_task: int, **options: Any
) -> TasksRun:
    """Builds the run of all tasks."""
    tasks = tasks_of(dataset, classes_per_task)
    one = run_of(config, tasks[0].dataset, **options)
    fields_ = {field.name: getattr(one, field.name) for field in fields(Run)}
    return TasksRun(
        **fields_
        | {
            "dataset": dataset,
            "model": told(one.model),
            "epochs": one.epochs * len(tasks),
            "stages": Stages(
                one.stages.learning_rates * len(tasks), one.stages.lengths * len(tasks)
            ),
            "tasks": tasks,
        }
    )


def train_tasks(
    run: TasksRun, seeds: Sequence[int], *, stop: Stop, on_step: OnStep, **_: Any
) -> Iterator[Epoch]:
    """Learns one task after the other from a seed, and is tested on all after each.

    Yields:
      The epochs of all tasks. The last record has R[i, j], the accuracy after task i on task j,
      as `matrix`, and what follows from it.
    """
    (seed,) = seeds
    logits = logits_of(run.model)
    begin = init_state(run.model, run.tx, seed)
    weights, matrix = Weights(begin.params, begin.stats), []
    for i, task in enumerate(run.tasks):
        one = run.of(task)
        before = i * one.steps

        def show(step: int, loss: float, before: int = before) -> None:
            on_step(before + step, loss)

        start = partial(resumed, weights.told(task))
        for epoch in train.train(one, seeds, start=start, stop=stop, on_step=show):
            record = epoch.record | {
                "task": i + 1,
                "epoch": i * one.epochs + epoch.record["epoch"],
                "steps": before + epoch.record["steps"],
                "gradients": before * run.gradients_per_step + epoch.record["gradients"],
            }
            if epoch.record["epoch"] == one.epochs:
                weights = Weights(*evaluated_weights(run, epoch.state))
                matrix.append([accuracy(logits, weights, other) for other in run.tasks])
            if record["epoch"] == run.epochs:
                values = np.array(matrix)
                record |= {
                    "learning_accuracy": float(np.diag(values).mean()),
                    "average_accuracy": average_accuracy(values),
                    "forgetting": 100 * forgetting(values),
                    "matrix": values.tolist(),
                }
            if i == 0 or epoch.record["epoch"] > 0:  # A task begins where the last one has ended.
                yield epoch._replace(record=record)


def resumed(weights: Weights, model: Model, tx: optax.GradientTransformation, seed: int) -> State:
    """Returns the state before the first step of another task."""
    params, stats = jax.tree.map(jnp.copy, weights)  # The state is donated.
    return init_state(model, tx, seed)._replace(
        params=params, stats=stats, opt_state=tx.init(params)
    )


@lru_cache(maxsize=1)  # What is compiled belongs to the function, so all runs share one.
def logits_of(model: Model) -> Callable[[Any, Any, Any], jax.Array]:
    """Returns the logits as a function of params, statistics and raw images."""

    @jax.jit
    def logits(params: Any, stats: Any, images: jax.Array) -> jax.Array:
        network = nnx.merge(model.graph, params, stats, copy=True)
        return network(model.dataset.standardise(images, model.input_norm), train=False)

    return logits


def accuracy(logits: Callable[[Any, Any, Any], jax.Array], weights: Weights, task: Task) -> float:
    """Returns the accuracy on a task's test images."""
    images, labels = task.dataset.pool("test")
    return float(np.mean(logits(*weights.told(task), images).argmax(axis=1) == labels))


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    further = {"classes_per_task": args.classes_per_task}
    tasks = {"run_of": partial(run_of_tasks, **further), "train": train_tasks}
    return sweep.run(study.sweep_of(args, parser, COLUMNS, NOTE, further, **tasks))


if __name__ == "__main__":
    sys.exit(main())
