"""Compares stagewise SGD, stagewise Lookahead (SLA) and SLRLA, in a few minutes.

    python examples/compare.py

trains a small residual network on scikit-learn's digits with each optimizer, from the
same initial weights, on the same batches, for several seeds. It prints a table of test
accuracies, and leaves it in a folder under `runs/` together with the curves, a line of
metrics for each epoch, and all settings. `--help` says what can be changed.
"""

import argparse
import functools
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
from experiments.config import Config
from experiments.data import DATASETS, DataError, Dataset
from experiments.models import NETWORKS
from experiments.optimizers import OPTIMIZERS
from experiments.reporting import report
from experiments.running.flags import (
    Parser,
    count,
    folder_name,
    fractions,
    names_among,
    not_negative,
    positive,
    step_size,
)
from experiments.schedules import Stages, stages_of, with_milestones_that_fit
from experiments.training import (
    Diverged,
    Model,
    Run,
    init_weights,
    seeds_together_are_faster,
    train,
)
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

STAGES = (0.3, 0.6, 0.8)
COMPARED = ("sgd", "sla", "slrla")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="compare.py",
        description="Compare stagewise SGD, stagewise Lookahead (SLA) and SLRLA: same initial "
        "weights, same batches, same number of gradients.",
    )
    add = parser.add_argument_group("what is trained on what").add_argument
    add(
        "--dataset",
        choices=DATASETS,
        default="digits",
        help="digits come with scikit-learn; mnist and fashion_mnist are read from --data_path "
        "(default: %(default)s)",
    )
    add(
        "--data_path",
        type=Path,
        metavar="DIR",
        help="folder with the four IDX files of mnist or fashion_mnist, gzipped or not",
    )
    add(
        "--network",
        choices=NETWORKS,
        default="resnet",
        help="resnet or small_vgg, small networks with batch normalisation; softmax, a linear "
        "one; the others are those of the papers, for larger images and faster machines "
        "(default: %(default)s)",
    )
    add = parser.add_argument_group("how").add_argument
    add(
        "--optimizers",
        type=names_among(COMPARED),
        default="sgd,sla,slrla",
        metavar="NAMES",
        help="which to compare, with commas between them; the first is what the others are "
        "compared with (default: %(default)s)",
    )
    add(
        "--epochs",
        type=count,
        default=30,
        metavar="N",
        help="passes over the training images (default: %(default)s)",
    )
    add(
        "--seeds",
        type=count,
        default=5,
        metavar="N",
        help="runs of each optimizer, from the seeds 0 to N-1 (default: %(default)s)",
    )
    add(
        "--batch_size",
        type=count,
        default=64,
        metavar="N",
        help="images in a batch (default: %(default)s)",
    )
    add(
        "--lr",
        type=positive,
        default=0.1,
        help="learning rate of the first stage; each further stage has a fifth of the last "
        "one's (default: %(default)s)",
    )
    add(
        "--stages",
        type=fractions,
        metavar="FRACTIONS",
        help="when the next stage begins, as fractions of a run, rounded to whole cycles of k "
        f"steps (default: {','.join(map(str, STAGES))}, without those that a short run has no "
        "cycle for)",
    )
    add(
        "--k",
        type=count,
        default=5,
        metavar="N",
        help="steps of the fast weights for each step of the slow ones (default: %(default)s)",
    )
    add(
        "--alpha",
        type=step_size,
        default=0.8,
        help="how far the slow weights then go towards the fast ones; at 1 all the way, as if "
        "there were none (default: %(default)s)",
    )
    add(
        "--beta",
        type=not_negative,
        default=0.01,
        help="how strongly SLRLA holds the weights near those that the stage began with; at 0 "
        "it is SLA (default: %(default)s)",
    )
    add = parser.add_argument_group("where to").add_argument
    add(
        "--name",
        type=folder_name,
        help="folder for the results, a new one inside runs/ (default: the data set and a number)",
    )
    return parser


def run_all(
    args: argparse.Namespace, dataset: Dataset, model: Model, config: Config, stages: Stages
) -> Iterator[dict[str, Any]]:
    """Trains with each optimizer in turn; yields the records of all."""
    seeds = range(args.seeds)
    for name in args.optimizers:
        optimizer = OPTIMIZERS[name]
        run = Run(
            label=optimizer.label,
            model=model,
            dataset=dataset,
            tx=optimizer.make(config, stages),
            slow_params=optimizer.slow_params,
            epochs=args.epochs,
            steps=stages.steps,
            batch_size=args.batch_size,
            devices=jax.devices()[:1],
        )
        for group in [seeds] if seeds_together_are_faster() else [[seed] for seed in seeds]:
            for epoch in train(run, group):
                yield {"optimizer": name, **epoch.record}


def watch(
    records: Iterator[dict[str, Any]], args: argparse.Namespace, console: Console, path: Path
) -> list[dict[str, Any]]:
    """Passes the records on to the screen and, as they come, to a file of JSON lines."""
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        transient=True,
        speed_estimate_period=120,
    )
    seen = []
    with path.open("w") as file, progress:
        total = len(args.optimizers) * args.seeds * (args.epochs + 1)
        bar = progress.add_task("compiling", total=total)
        for record in records:
            file.write(json.dumps(record) + "\n")
            file.flush()
            seen.append(record)
            who = f"{OPTIMIZERS[record['optimizer']].label:5}  seed {record['seed']}"
            epoch, loss, accuracy = (record[n] for n in ("epoch", "train_loss", "test_accuracy"))
            what = f"loss {loss:.4f}  test {100 * accuracy:5.2f} %"
            when = f"epoch {epoch:{len(str(args.epochs))}}/{args.epochs}"
            progress.update(bar, advance=1, description=f"{who}  {when}  {what}")
            if epoch == args.epochs:
                progress.console.print(f"{who}  {what}", highlight=False)
    return seen


def prepare(args: argparse.Namespace, parser: Parser) -> tuple[Dataset, Model, Config, Stages]:
    """What the flags mean; what is wrong with them together ends the program."""
    try:
        dataset = DATASETS[args.dataset](args.data_path)
    except DataError as error:
        parser.error(f"--data_path: {error}")
    per_epoch = dataset.train_size // args.batch_size
    if per_epoch == 0:
        parser.error(f"--batch_size: there are only {dataset.train_size} training images")
    config = Config(
        dataset=args.dataset,
        model=args.network,
        epochs=args.epochs,
        batch_size=args.batch_size,
        milestones=STAGES if args.stages is None else args.stages,
        stages_in="steps",
        whole_cycles=True,
        learning_rate=args.lr,
        sync_period=args.k,
        slow_step_size=args.alpha,
        beta=args.beta,
    )
    steps = args.epochs * per_epoch
    if args.stages is None:
        config = with_milestones_that_fit(config, steps, per_epoch)
    try:
        stages = stages_of(config, steps, per_epoch)
    except ValueError as error:
        parser.error(f"--stages: {error}")
    make = functools.partial(NETWORKS[args.network], dataset.image_shape, dataset.classes)
    model = Model(make, dataset)
    try:
        _ = model.graph
    except ValueError as error:
        parser.error(f"--network: {args.network}: {error}")
    return dataset, model, config, stages


def compare(args: argparse.Namespace, parser: Parser, console: Console) -> None:
    """Does what the flags say: prepares, trains, reports."""
    started = time.monotonic()
    dataset, model, config, stages = prepare(args, parser)
    try:
        folder = report.new_folder(args.name, args.dataset)
    except OSError as error:
        parser.error(f"--name: cannot make {error.filename}: {error.strerror}")
    report.write_settings(folder, settings(args, config, stages))
    title, *introduction = describe(args, dataset, model, stages)
    console.print(title, *introduction, "", sep="\n", highlight=False)

    metrics = folder / "metrics.jsonl"
    try:
        records = watch(run_all(args, dataset, model, config, stages), args, console, metrics)
    except (KeyboardInterrupt, Diverged):
        console.print(f"\nThe epochs until then are in {metrics}", soft_wrap=True)
        raise

    labels = {name: OPTIMIZERS[name].label for name in args.optimizers}
    table = report.table(records, labels)
    text = [*report.comparison(records, labels), "", report.notes(records)]
    with (folder / "table.txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=80).print(table, *text, sep="\n")
    report.plot(records, labels, stages.ends, title, folder / "curves.png")
    console.print("", table, *text, "", sep="\n", highlight=False)
    seconds = round(time.monotonic() - started)
    console.print(f"Done in {seconds // 60} min {seconds % 60} s. Table, curves and metrics are in")
    console.print(str(folder.resolve()), highlight=False, soft_wrap=True)


def describe(args: argparse.Namespace, dataset: Dataset, model: Model, stages: Stages) -> list[str]:
    """What is going to happen, in three lines."""
    params, _ = jax.eval_shape(lambda: init_weights(model, 0))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    names = ", ".join(OPTIMIZERS[name].label for name in args.optimizers)
    return [
        f"{args.dataset}: {dataset.train_size:,} training, "
        f"{dataset.test_size:,} test images; {args.network}, {size:,} parameters",
        f"{names} with k {args.k}, α {args.alpha:g}, β {args.beta:g}; "
        f"seeds: {args.seeds}, epochs: {args.epochs}, batch size: {args.batch_size}",
        report.stages_in_words(stages.ends),
    ]


def settings(args: argparse.Namespace, config: Config, stages: Stages) -> dict[str, Any]:
    """What a run is a function of, for its folder."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "flags": {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()},
        "seeds": list(range(args.seeds)),
        "seeds_together": seeds_together_are_faster(),
        "stages": [{"learning_rate": rate, "last_step": end} for rate, end in stages.ends],
        "gradients_per_run": stages.steps,
        "config": config.as_json(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        compare(args, parser, Console())
    except KeyboardInterrupt:
        print("compare.py: interrupted", file=sys.stderr)
        return 130
    except Diverged as error:
        print(f"compare.py: {error}; a smaller --lr may help", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
