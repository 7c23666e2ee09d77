"""Trained weights to look at: what `sharpness.py`, `noisy_weights.py`, `sequential.py` share.

They train a small network with several optimizers of `NAMED`, from the same initial
weights and on the same batches, for several seeds, measure something of the weights, and leave
`table.txt`, a PNG, `results.json` and `settings.json` in a folder under `runs/`.
"""

import argparse
import functools
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from experiments import data
from experiments import models as networks
from experiments.config import Config
from experiments.data import DataError, Dataset
from experiments.optimizers import OPTIMIZERS
from experiments.reporting import measures, report
from experiments.reporting.measures import Measure
from experiments.running import flags
from experiments.schedules import stages_of, with_milestones_that_fit
from experiments.training import Diverged, Model, Run, train

Tree = Any
Record = dict[str, Any]
OnStep = Callable[[int, float], None]
# Trains from a seed, tells each step and its loss to a function, and returns what came out.
Measuring = Callable[[Run, int, OnStep], Record]
# Makes the pictures, of records and labels, with a title, in a folder.
Drawing = Callable[[Sequence[Record], Mapping[str, str], str, Path], None]

# The recipe of Lookbehind's paper, and what differs in it for an optimizer: a learning rate with
# which it learns the digits.
BASE = Config(
    milestones=(0.25, 0.5, 0.75),
    stages_in="steps",
    decay=0.1,
    weight_decay=5e-4,
    slow_step_size="adaptive",
)
NAMED = {
    "sgd": BASE,
    "lookahead": replace(BASE, slow_step_size=0.8),
    "multilayer_lookahead": replace(BASE, slow_step_size=0.8),
    "slrla_released": replace(BASE, slow_step_size=0.8, beta=0.4),
    "sam": BASE,
    "asam": BASE,
    "lookbehind_sam": BASE,
    "lookbehind_asam": BASE,
    "adaloss": replace(BASE, learning_rate=0.5),
    "adagrad_norm": replace(BASE, learning_rate=0.5),
    "adam": replace(BASE, learning_rate=1e-2),
    "adabound": replace(BASE, learning_rate=1e-2),
}
NAMED = {name: replace(config, optimizer=name) for name, config in NAMED.items()}

DEFAULT = "sgd,sam,lookbehind_sam,asam,lookbehind_asam"
# Of a large data set so many examples are enough to measure on.
EXAMPLES = 2_000


def make_parser(prog: str, description: str, *, epochs: int, batch_size: int) -> flags.Parser:
    """The flags that the programs have in common."""
    parser = flags.Parser(prog=prog, description=description)
    add = parser.add_argument_group("what is trained on what").add_argument
    add(
        "--dataset",
        type=flags.spelling(data.find),
        default="digits",
        metavar="NAME",
        help=f"{', '.join(data.DATASETS)}, in any spelling (default: %(default)s)",
    )
    add("--data_path", type=Path, metavar="DIR", help="where it is; see examples/README.md")
    add("--train_images", type=flags.count, metavar="N", help="train on N of the images only")
    add(
        "--network",
        type=flags.spelling(networks.find),
        default="resnet",
        metavar="NAME",
        help=f"{', '.join(networks.NETWORKS)}, in any spelling (default: %(default)s)",
    )
    add = parser.add_argument_group("how").add_argument
    add(
        "--optimizers",
        type=flags.names_among(NAMED),
        default=DEFAULT,
        metavar="NAMES",
        help=f"some of {', '.join(NAMED)}, with commas between them (default: %(default)s)",
    )
    add(
        "--epochs",
        type=flags.count,
        default=epochs,
        metavar="N",
        help="passes over the training images (default: %(default)s)",
    )
    add(
        "--equal",
        choices=("epochs", "gradients"),
        default="epochs",
        help="what all optimizers have alike: epochs; or gradients, and then those that take "
        "several a step make so many steps fewer (default: %(default)s)",
    )
    add(
        "--seeds",
        type=flags.count,
        default=3,
        metavar="N",
        help="runs of each optimizer, from the seeds 0 to N-1 (default: %(default)s)",
    )
    add(
        "--batch_size",
        type=flags.count,
        default=batch_size,
        metavar="N",
        help="images in a batch (default: %(default)s)",
    )
    add(
        "--name",
        type=flags.folder_name,
        help="folder for the results, a new one inside runs/ (default: this program's name, the "
        "data set and a number)",
    )
    return parser


def dataset_of(args: argparse.Namespace, parser: flags.Parser) -> Dataset:
    """The data set, with as many training images as were asked for."""
    try:
        dataset = data.load(args.dataset, args.data_path)
    except DataError as error:
        parser.error(f"--data_path: {error}")
    if not isinstance(dataset, Dataset):
        parser.error(f"--dataset: must be one that fits into memory, got {dataset.name}")
    if args.train_images is not None:
        try:
            dataset = dataset.with_training_images(args.train_images)
        except DataError as error:
            parser.error(f"--train_images: {error}")
    return dataset


def runs_of(args: argparse.Namespace, parser: flags.Parser, dataset: Dataset) -> dict[str, Run]:
    """What is trained with each optimizer."""
    make = functools.partial(networks.NETWORKS[args.network], dataset.image_shape, dataset.classes)
    model = Model(make, dataset)
    try:
        _ = model.graph
    except ValueError as error:
        parser.error(f"--network: {args.network}: {error}")
    per_epoch = dataset.train_size // args.batch_size
    if per_epoch == 0:
        parser.error(f"--batch_size: there are only {dataset.train_size} training images")
    runs = {}
    for name in args.optimizers:
        optimizer, config = OPTIMIZERS[name], NAMED[name]
        gradients = optimizer.gradients(config)
        divisor = gradients if args.equal == "gradients" else 1
        steps = args.epochs * per_epoch // divisor
        if steps == 0:
            parser.error(
                f"--epochs: {args.epochs} with {per_epoch} batches each are too few for one step "
                f"of {optimizer.label}, which takes {divisor} gradients"
            )
        config = with_milestones_that_fit(config, steps, per_epoch)
        epochs = -(-steps // per_epoch)
        runs[name] = Run(
            label=optimizer.label,
            model=model,
            dataset=dataset,
            tx=optimizer.make(config, stages_of(config, steps, per_epoch)),
            slow_params=optimizer.slow_params,
            epochs=epochs,
            steps=steps,
            batch_size=args.batch_size,
            eval_every=epochs,
            devices=jax.devices()[:1],
            gradients_per_step=gradients,
        )
    return runs


class Trained(NamedTuple):
    """What a training has left.

    Attributes:
      params: the weights; of a lookahead the slow ones.
      stats: the running statistics beside them.
      record: the last epoch's: seed, steps, gradients, losses and accuracies.
    """

    params: Tree
    stats: Tree
    record: Record


def train_one(run: Run, seed: int, **options: Any) -> Trained:
    """Trains from a seed to the end, with the options of `training.train`."""
    *_, last = train(run, [seed], **options)
    state, params = last.state, last.state.params
    if run.slow_params is not None:
        params = run.slow_params(state.opt_state, params)
    return Trained(params, state.stats, last.record)


def carry_out(
    args: argparse.Namespace,
    parser: flags.Parser,
    runs: Mapping[str, Run],
    measure: Measuring,
    columns: Sequence[Measure],
    draw: Drawing,
    trainings: int = 1,
) -> int:
    """Trains and measures, and leaves the results in a new folder; returns the exit code.

    Args:
      args: the flags.
      parser: their parser.
      runs: by the names of the optimizers.
      measure: called for each optimizer and seed.
      columns: of the table.
      draw: called with all that came out.
      trainings: how many of its run `measure` makes.
    """
    try:
        folder = report.new_folder(args.name, f"{Path(parser.prog).stem}-{args.dataset}")
    except OSError as error:
        parser.error(f"--name: cannot make {error.filename}: {error.strerror}")
    report.write_settings(folder, settings(args, runs))
    labels = {name: run.label for name, run in runs.items()}
    title = title_of(args, next(iter(runs.values())))
    console = Console()
    console.print(title, f"Results go to {folder}", "", sep="\n", highlight=False, soft_wrap=True)
    try:
        records = list(measured(runs, args.seeds, measure, trainings, console))
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except Diverged as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    (folder / "results.json").write_text(json.dumps(records, indent=1) + "\n")
    table = measures.table(records, labels, columns)
    with (folder / "table.txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=80).print(title, table, sep="\n", soft_wrap=True)
    draw(records, labels, title, folder)
    console.print("", table)
    console.print(f"All of it is in {folder.resolve()}", highlight=False, soft_wrap=True)
    return 0


def measured(
    runs: Mapping[str, Run],
    seeds: int,
    measure: Measuring,
    trainings: int,
    console: Console,
) -> Iterator[Record]:
    """What comes out for each optimizer and seed, while the progress is shown."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        speed_estimate_period=120,
    )
    # Counted in gradients, each of which takes about as long.
    total = sum(run.steps * run.gradients_per_step for run in runs.values())
    with progress:
        bar = progress.add_task("compiling", total=trainings * seeds * total)
        for name, run in runs.items():
            for seed in range(seeds):
                who = f"{run.label}  seed {seed}"
                on_step = functools.partial(show_step, progress, bar, who, run)
                yield {"optimizer": name, **measure(run, seed, on_step)}
                console.print(f"{who}  done", highlight=False)


def show_step(progress: Progress, bar: TaskID, who: str, run: Run, step: int, loss: float) -> None:
    """Moves the bar by a step."""
    what = f"{who}  step {step}/{run.steps}  loss {loss:.4f}"
    progress.update(bar, advance=run.gradients_per_step, description=what)


def title_of(args: argparse.Namespace, run: Run) -> str:
    """What was trained, in a line."""
    return (
        f"{args.dataset}, {args.network}, {run.dataset.train_size:,} training images; "
        f"{args.epochs} epochs of batches of {args.batch_size}, equal {args.equal}; "
        f"{args.seeds} seed{'s' if args.seeds > 1 else ''}"
    )


def settings(args: argparse.Namespace, runs: Mapping[str, Run]) -> Record:
    """What the results are a function of, for their folder."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "flags": {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()},
        "optimizers": {
            name: {
                "learning_rate": NAMED[name].learning_rate,
                "steps": run.steps,
                "gradients": run.steps * run.gradients_per_step,
            }
            for name, run in runs.items()
        },
    }
