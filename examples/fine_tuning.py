"""How much fine-tuning with AdaLoss and its baselines depends on b0.

    python examples/fine_tuning.py

pre-trains a small residual network on the first half of the classes of scikit-learn's digits, gives
it a new head, and fine-tunes all of it on the other half with each method and each b0. This takes
place from several seeds; a seed has one pre-trained network, which all methods start from.
`--train_images` is about fine-tuning only: pre-training takes all images of its classes.

The same command resumes what was interrupted. `--help` says what can be changed.
"""

import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
import jax.numpy as jnp
import optax
from experiments import flags, robustness, sweep, train, trained
from experiments.command_line import (
    config_of,
    options_inside,
    program,
    report_training,
    seeds_of,
)
from experiments.config import Config, SettingError
from experiments.data import Data, Dataset
from experiments.flags import Parser
from experiments.report import Column
from experiments.run import Run, images_of, run_of
from experiments.steps import Model, State, init_state, init_weights
from experiments.studies.sequential import split_classes
from experiments.sweep import Entry, Sweep
from experiments.train import Epoch
from experiments.trained import Trained

BASE = Config(
    model="narrow_resnet",
    epochs=10,
    batch_size=32,
    milestones=(),
    momentum=0.0,
    weight_decay=1e-4,
    recalibrate=False,
)
PRETRAINING = {
    "train_images": None,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "annealing": "cosine",
    "momentum": 0.9,
    "weight_decay": 1e-2,
    "b0": BASE.b0,
}
COLUMN = Column("test accuracy in %", "test_accuracy")
NOTE = "Accuracy in % on the test images of the classes that were fine-tuned on"
# Of a large data set so many test images are enough.
EXAMPLES = 1_000


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = robustness.make_parser(
        "fine_tuning.py",
        "Fine-tune a network on classes that it has not seen, with AdaLoss and its baselines and "
        "with several values of b0.",
        BASE,
        always_resumes=True,
    )
    parser.add_argument_group("pre-training").add_argument(
        "--pretraining_epochs",
        type=flags.count,
        default=20,
        metavar="N",
        help="passes over the training images of the other classes (default: %(default)s)",
    )
    return parser


# The two halves of a data set, and their runs


@lru_cache(maxsize=1)  # Runs share a model, and what is compiled for it, if they share the data.
def halves_of(dataset: Data) -> list[Dataset]:
    """Returns the first and the second half of the classes, as data sets of their own.

    Raises:
      SettingError: if they are not images in memory, or their classes are not even in number.
    """
    dataset = images_of(dataset)
    if dataset.classes % 2:
        raise SettingError("dataset", f"must have two halves of classes, got {dataset.classes}")
    return [
        replace(
            task.dataset,
            classes=len(task.classes),
            train_labels=task.dataset.train_labels - task.classes[0],
            test_images=task.dataset.test_images[:EXAMPLES],
            test_labels=task.dataset.test_labels[:EXAMPLES] - task.classes[0],
        )
        for task in split_classes(dataset, dataset.classes // 2)
    ]


def run_of_half(config: Config, dataset: Data, *, half: int, **options: Any) -> Run:
    """Builds the run of the first half, 0, or of the second, 1.

    Raises:
      SettingError: as `run_of` does, or if the network's last layer cannot be replaced.
    """
    run = run_of(config, halves_of(dataset)[half], **options)
    params, _ = jax.eval_shape(partial(init_weights, run.model, 0))
    if "head" not in params:
        raise SettingError("model", f"{run.model.name} has no layer `head` to be replaced")
    return run


def fine_tune(
    run: Run, seeds: Sequence[int], *, pretrained: Callable[[int], Trained], **options: Any
) -> Iterator[Epoch]:
    """Trains a run as `train.train` does, from the pre-trained network of each seed."""
    return train.train(run, seeds, start=partial(with_new_head, pretrained), **options)


def with_new_head(
    pretrained: Callable[[int], Trained], model: Model, tx: optax.GradientTransformation, seed: int
) -> State:
    """Returns the state before the first step: pre-trained weights, but for those of the head."""
    begin, before = init_state(model, tx, seed), pretrained(seed)
    body, stats = jax.tree.map(jnp.copy, (before.params, before.stats))  # The state is donated.
    params = body | {"head": begin.params["head"]}
    return begin._replace(params=params, stats=stats, opt_state=tx.init(params))


# The command line


def pretraining_of(args: Namespace, parser: Parser, options: dict[str, Any]) -> Sweep:
    """Returns the sweep that pre-trains a network from each seed, and keeps it in a checkpoint."""
    config = config_of(args, BASE, **PRETRAINING, epochs=args.pretraining_epochs)

    def flag_of(setting: str) -> str:
        return parser.flag_of("pretraining_epochs" if setting == "epochs" else setting)

    return Sweep(
        entries=[Entry("Pre-training", config)],
        seeds=seeds_of(args),
        report=report_training,
        name="pretraining",
        run_of=partial(run_of_half, half=0),
        checkpoint=True,
        **options | {"flag_of": flag_of},
    )


def fine_tuning_of(
    args: Namespace, parser: Parser, options: dict[str, Any], before: Sweep
) -> Sweep:
    """Returns the sweep of all methods with all b0, from the networks of a sweep before."""

    @lru_cache
    def pretrained(seed: int) -> Trained:
        folder = before.root / before.name / "checkpoints" / f"seed_{seed}"
        return trained.load(folder, data_path=before.data_path, run_of=before.run_of)

    return robustness.sweep_of(
        args,
        parser,
        replace(BASE, eval_every=args.epochs),
        COLUMN,
        NOTE,
        name="fine_tuning",
        run_of=partial(run_of_half, half=1),
        train=partial(fine_tune, pretrained=pretrained),
        further={"pretraining": before.entries[0].config.as_json()},
        **options,
    )


@program(make_parser, again="the same command")
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    options = options_inside(args, parser)
    before = pretraining_of(args, parser, options)
    after = fine_tuning_of(args, parser, options, before)
    sweep.build(after)  # What is wrong with it is said before pre-training.
    return sweep.run(before) or sweep.run(after)


if __name__ == "__main__":
    sys.exit(main())
