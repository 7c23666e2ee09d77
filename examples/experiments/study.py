"""What the programs that measure trained networks have in common.

They train a small network with several optimizers of `configs.lookbehind`, from the same initial
weights and on the same batches, from several seeds, and measure something of the final weights.
"""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments import flags
from experiments.command_line import add_settings, add_sweep, seeds_of, sweep_options
from experiments.config import Config, SettingError
from experiments.configs.lookbehind import BASE, CONFIGS
from experiments.data import Data, Dataset
from experiments.figures import bars
from experiments.flags import Parser
from experiments.optimizers import OPTIMIZERS
from experiments.report import Column, report
from experiments.run import Run, run_of
from experiments.sweep import Entry, Results, Sweep, title_of

DEFAULT = ("sgd", "sam", "lookbehind_sam", "asam", "lookbehind_asam")


def make_parser(prog: str, description: str, *, epochs: int, batch_size: int) -> Parser:
    """Returns a parser with the flags that the programs have in common."""
    base = replace(BASE, epochs=epochs, batch_size=batch_size)
    parser = Parser(prog=prog, description=description)
    add_settings(
        parser,
        "data and model",
        base,
        dataset="--dataset",
        train_images="--train_images",
        model="--network",
    )
    add_settings(parser, "training", base, epochs="--epochs", batch_size="--batch_size")
    add = parser.add_argument_group("optimizers").add_argument
    add(
        "--optimizers",
        type=flags.names_among(CONFIGS),
        default=DEFAULT,
        metavar="NAMES",
        help=f"some of {', '.join(CONFIGS)}, comma-separated (default: {','.join(DEFAULT)})",
    )
    add(
        "--equal",
        choices=("epochs", "gradients"),
        default="epochs",
        help="what all optimizers have in common: epochs; or gradients, so that those which take "
        "several in a step take fewer steps (default: %(default)s)",
    )
    add_sweep(parser, seeds=3, name="--name")
    return parser


def entries_of(args: Namespace) -> list[Entry]:
    """Returns the configurations that are compared."""

    def config(name: str) -> Config:
        return replace(
            CONFIGS[name],
            dataset=args.dataset,
            train_images=args.train_images,
            model=args.model,
            epochs=args.epochs,
            batch_size=args.batch_size,
            equal=args.equal,
            eval_every=args.epochs,
            recalibrate=False,
        )

    return [Entry(OPTIMIZERS[name].label, config(name), name) for name in args.optimizers]


def sweep_of(
    args: Namespace,
    parser: Parser,
    columns: Sequence[Column],
    note: str,
    further: Mapping[str, Any],
    draw: Callable[[Results, str, Path], None] | None = None,
    **options: Any,
) -> Sweep:
    """Returns the sweep of a program.

    Args:
      args: the flags.
      parser: their parser.
      columns: of the table.
      note: what the numbers are.
      further: the settings of the measurement.
      draw: draws a picture of the results, with a title, into a file; None for `bars`.
      options: of the `Sweep`: what is trained, and how it is measured.

    When it is run, data that do not fit into memory are a SettingError.
    """
    build = options.pop("run_of", run_of)

    def run_in_memory(config: Config, dataset: Data, **others: Any) -> Run:
        if not isinstance(dataset, Dataset):
            raise SettingError("dataset", f"must be one that fits into memory, got {dataset.name}")
        return build(config, dataset, **others)

    picture = f"{Path(parser.prog).stem}.png"

    def draw_bars(results: Results, title: str, path: Path) -> None:
        bars(results.records, list(results.runs), columns, title, path)

    def report_of(results: Results) -> list[str]:
        if results.runs:
            title = title_of(next(iter(results.runs.values())))
            (draw or draw_bars)(results, title, results.folder / picture)
        return report(results, columns, note, pictures=[picture])

    return Sweep(
        entries=entries_of(args),
        seeds=seeds_of(args),
        report=report_of,
        further=further,
        run_of=run_in_memory,
        one_device=True,
        **sweep_options(args, parser),
        **options,
    )
