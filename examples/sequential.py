"""What is learnt, and what forgotten, of tasks that come one after the other.

    python examples/sequential.py

trains a small residual network on two classes of scikit-learn's digits after the other, with
SGD, SAM, ASAM and Lookbehind (`--optimizers` takes any of the package's). Each task begins with
the weights that the last one has left and a fresh optimizer, and sees nothing of the others'
images. In training as in testing the network is told the task: it chooses among its classes.
`--help` says what can be changed.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments.reporting import measures
from experiments.reporting.measures import Measure
from experiments.running import flags, trained
from experiments.running.trained import OnStep, Record
from experiments.studies.sequential import Task, average_accuracy, forgetting, learn, split_classes
from experiments.training import Model, Run, State, init_state
from flax import nnx

COLUMNS = (
    Measure("learning_accuracy", "accuracy in %\nonce learnt", scale=100),
    Measure("average_accuracy", "accuracy in %\nat the end", scale=100),
    Measure("forgetting", "forgetting\nin points", scale=100),
)


NEVER = -1e9  # A logit of classes that are out of the question.


class Weights(NamedTuple):
    """What goes on from task to task: params, and running statistics."""

    params: Any
    stats: Any

    def told(self, task: Task) -> "Weights":
        """The same where the answer is one of a task's classes."""
        among = np.full_like(self.stats["among"], NEVER)
        among[list(task.classes)] = 0
        return Weights(self.params, self.stats | {"among": jnp.asarray(among)})


class Told(nnx.Module):
    """A network that is told among which classes to choose.

    Attributes:
      network: the network.
      among: what is added to its logits: 0 for these classes. It is part of what goes beside
        the params, and may change from task to task without another compilation.
    """

    def __init__(
        self,
        make: Callable[..., nnx.Module],
        classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.network = make(rngs=rngs)
        self.among = nnx.Variable(jnp.zeros(classes))

    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images of shape (batch, height, width, channels) to logits (batch, classes)."""
        return self.network(images, train=train) + self.among[...]


def make_parser() -> flags.Parser:
    """The command line."""
    parser = trained.make_parser(
        "sequential.py",
        "Accuracy and forgetting when the classes of a data set come one task after the other.",
        epochs=10,
        batch_size=32,
    )
    parser.add_argument_group("the tasks").add_argument(
        "--classes_per_task",
        type=flags.count,
        default=2,
        metavar="N",
        help="a divisor of the number of classes (default: %(default)s)",
    )
    return parser


def of_one_size(tasks: Sequence[Task]) -> list[Task]:
    """The tasks with as many images each as the smallest has: one compiled step does for all."""
    train, test = (
        min(getattr(task.dataset, size) for task in tasks) for size in ("train_size", "test_size")
    )
    return [
        replace(
            task,
            dataset=replace(
                task.dataset.with_training_images(train),
                test_images=task.dataset.test_images[:test],
                test_labels=task.dataset.test_labels[:test],
            ),
        )
        for task in tasks
    ]


@dataclass(frozen=True)
class Learner:
    """Learns the tasks with an optimizer, and is tested on them.

    Attributes:
      tasks: in the order in which they are learnt, all of one size.
      logits: of params, running statistics and images.
    """

    tasks: Sequence[Task]
    logits: Callable[[Any, Any, Any], jax.Array]

    def measure(self, run: Run, seed: int, on_step: OnStep) -> Record:
        """Learns all tasks from a seed; `matrix` is R[i, j], after task i on task j."""

        def train(weights: Weights, task: Task) -> Weights:
            end = trained.train_one(
                replace(run, dataset=task.dataset),
                seed,
                start=partial(going_on, weights.told(task)),
                on_step=on_step,
            )
            return Weights(end.params, end.stats)

        begin = init_state(run.model, run.tx, seed)
        matrix, _ = learn(self.tasks, Weights(begin.params, begin.stats), train, self.accuracy)
        steps = run.steps * len(self.tasks)
        return {
            "seed": seed,
            "steps": steps,
            "gradients": steps * run.gradients_per_step,
            "learning_accuracy": float(np.diag(matrix).mean()),
            "average_accuracy": average_accuracy(matrix),
            "forgetting": forgetting(matrix),
            "matrix": matrix.tolist(),
        }

    def accuracy(self, weights: Weights, task: Task) -> float:
        """On a task's test images."""
        logits = self.logits(*weights.told(task), task.dataset.test_images)
        return float(np.mean(logits.argmax(axis=1) == task.dataset.test_labels))


def going_on(weights: Weights, model: Model, tx: optax.GradientTransformation, seed: int) -> State:
    """The state before the first step of another task."""
    params, stats = jax.tree.map(jnp.copy, weights)  # The state is given away.
    return init_state(model, tx, seed)._replace(
        params=params, stats=stats, opt_state=tx.init(params)
    )


def logits_of(model: Model) -> Callable[[Any, Any, Any], jax.Array]:
    """What a network without weights answers with them."""

    @jax.jit
    def logits(params: Any, stats: Any, images: jax.Array) -> jax.Array:
        network = nnx.merge(model.graph, params, stats, copy=True)
        return network(model.dataset.standardise(images, model.input_norm), train=False)

    return logits


def runs_of(
    args: argparse.Namespace, parser: flags.Parser, tasks: Sequence[Task]
) -> dict[str, Run]:
    """What is trained with each optimizer in each task."""
    runs = trained.runs_of(args, parser, tasks[0].dataset)
    model = next(iter(runs.values())).model
    told = replace(model, make=partial(Told, model.make, model.dataset.classes))
    return {name: replace(run, model=told) for name, run in runs.items()}


def draw(records: Sequence[Record], labels: Mapping[str, str], title: str, folder: Path) -> None:
    """Accuracy and forgetting."""
    measures.plot(records, labels, COLUMNS, title, folder / "sequential.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    dataset = trained.dataset_of(args, parser)
    if dataset.classes % args.classes_per_task or dataset.classes == args.classes_per_task:
        parser.error(
            f"--classes_per_task: must divide the {dataset.classes} classes into two tasks or "
            f"more, got {args.classes_per_task}"
        )
    tasks = of_one_size(split_classes(dataset, args.classes_per_task))
    runs = runs_of(args, parser, tasks)
    learner = Learner(tasks, logits_of(next(iter(runs.values())).model))
    return trained.carry_out(
        args, parser, runs, learner.measure, COLUMNS, draw, trainings=len(tasks)
    )


if __name__ == "__main__":
    sys.exit(main())
