"""Optimizers that are tuned alike on held-out data, and then compared from fresh seeds.

Tuning goes in three rounds. Each is a sweep over the candidates of all optimizers, and goes on from
the best of each so far:

    1. every learning rate of a grid, in which they are a factor of 2 apart, and every annealing;
    2. other values of the optimizer's own settings;
    3. half and twice the learning rate.
"""

import itertools
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np

from experiments import flags, sweep
from experiments.command_line import (
    add_settings,
    add_sweep,
    config_of,
    options_inside,
    seeds_of,
)
from experiments.config import Config, SettingError
from experiments.figures import leads
from experiments.flags import Parser
from experiments.optimizers import OPTIMIZERS
from experiments.records import Record
from experiments.report import Column, by_seed, report
from experiments.schedules import ANNEALINGS
from experiments.settings import circumstances, shown_command, write_json
from experiments.sweep import Entry, Results, Sweep, title_of

Changes = Mapping[str, Any]

# Tuning has one seed, which the comparison does not use.
TUNING_SEED, FIRST_SEED = 0, 1


@dataclass(frozen=True)
class Problem:
    """What is learnt, and the optimizers that are tuned for it.

    Attributes:
      base: what all optimizers have in common.
      held_out: how many training examples tuning is decided by.
      learning_rates: the grid.
      starts: the own settings of each optimizer that tuning starts from, by its name, or by
        another one beside the setting `optimizer`; the first is what the others are compared with.
      others: other values of these settings.
      tuned: what tuning has found, for each optimizer: all settings that differ from the base.
      goal: what tuning is decided by, and the first column of the table.
      columns: the further columns.
      note: what the numbers are.
    """

    base: Config
    held_out: int
    learning_rates: Sequence[float]
    starts: Mapping[str, Changes]
    others: Mapping[str, Sequence[Changes]]
    tuned: Mapping[str, Changes]
    goal: Column
    columns: Sequence[Column]
    note: str

    def start(self, name: str) -> Config:
        """Returns the configuration of an optimizer that its tuning starts from."""
        return self._config(name, self.starts[name])

    def best(self, name: str) -> Config:
        """Returns the configuration of an optimizer that its tuning has found."""
        return self._config(name, self.tuned[name])

    def _config(self, name: str, changes: Changes) -> Config:
        return replace(self.base, **{"optimizer": name, **changes})


# From an optimizer's name, and the best of its configurations so far.
Candidates = Callable[[Problem, str, Config], list[Config]]


def of_the_grid(problem: Problem, _: str, best: Config) -> list[Config]:
    """Returns all learning rates with all annealings, but for those that need none."""
    annealings = ["none"] if best.optimizer == "schedule_free" else list(ANNEALINGS)
    return [
        replace(best, learning_rate=rate, annealing=annealing)
        for annealing, rate in itertools.product(annealings, problem.learning_rates)
    ]


def of_own_settings(problem: Problem, name: str, best: Config) -> list[Config]:
    """Returns other values of the optimizer's own settings."""
    return [replace(best, **changes) for changes in problem.others[name]]


def neighbours(problem: Problem, name: str, best: Config) -> list[Config]:
    """Returns half and twice the learning rate."""
    del problem, name
    return [replace(best, learning_rate=factor * best.learning_rate) for factor in (0.5, 2.0)]


ROUNDS: Sequence[Candidates] = (of_the_grid, of_own_settings, neighbours)


def tune(
    problem: Problem,
    starts: Mapping[str, Config],
    measure: Callable[[int, Sequence[Config]], Mapping[Config, float]],
) -> dict[str, Config]:
    """Returns the best configuration of each optimizer.

    Args:
      problem: has the candidates.
      starts: configurations to start from, by the optimizers' names.
      measure: trains the candidates of a round, by its number from 1, and returns the goal of
        each that has not diverged.

    Raises:
      SettingError: if an optimizer diverges with every candidate.
    """
    sign = 1 if problem.goal.lower_is_better else -1
    known: dict[Config, float] = {}
    best = dict(starts)
    for number, candidates in enumerate(ROUNDS, start=1):
        asked = {name: candidates(problem, name, config) for name, config in best.items()}
        new = [config for configs in asked.values() for config in configs if config not in known]
        if new:
            known |= measure(number, new)
        best = {
            name: min((best[name], *configs), key=lambda c: sign * known.get(c, sign * np.inf))
            for name, configs in asked.items()
        }
        for name, config in best.items():
            if config not in known:
                raise SettingError("optimizers", f"{name} diverges with every candidate")
    return best


def in_words(config: Config) -> str:
    """Names a candidate: its optimizer, and everything that is tuned."""
    row = OPTIMIZERS[config.optimizer]
    own = [(name, getattr(config, name)) for name in ("momentum", *row.settings)]
    rate = f"learning rate {config.learning_rate:g}, annealing {config.annealing}"
    return ", ".join([row.label_of(config), rate, *(f"{n} {number(value)}" for n, value in own)])


def number(value: float | Sequence[float]) -> str:
    """Writes a number, or one for each layer."""
    return " and ".join(f"{v:g}" for v in (value if isinstance(value, tuple) else (value,)))


# The command line


def make_parser(prog: str, description: str, problem: Problem) -> Parser:
    """Returns the parser of a program that compares tuned optimizers."""
    parser = Parser(prog=prog, description=description)
    add_settings(
        parser,
        "data and model",
        problem.base,
        dataset="--dataset",
        train_images="--train_examples",
        model="--network",
    )
    add_settings(
        parser,
        "training",
        problem.base,
        epochs="--epochs",
        epoch_steps="--epoch_steps",
        batch_size="--batch_size",
        eval_every="--eval_every",
    )
    add = parser.add_argument_group("optimizers").add_argument
    add(
        "--optimizers",
        type=flags.names_among(problem.starts),
        default=tuple(problem.starts),
        metavar="NAMES",
        help="which, comma-separated; the others are compared with the first (default: "
        f"{','.join(problem.starts)})",
    )
    add(
        "--tune",
        action="store_true",
        help=f"first tune each on {problem.held_out:,} held-out examples, instead of taking the "
        "settings that were found before",
    )
    add_sweep(parser, seeds=5, name="--name", always_resumes=True)
    parser.flags_of["held_out"] = "--tune"
    return parser


def run(args: Namespace, parser: Parser, problem: Problem) -> int:
    """Runs the command line: perhaps tunes, then compares; returns the exit code."""
    options = options_inside(args, parser)
    if args.tune:
        starts = {n: config_of(args, problem.start(n)) for n in args.optimizers}
        configs = tuned_and_recorded(problem, starts, options)
    else:
        configs = {n: config_of(args, problem.best(n)) for n in args.optimizers}
    return sweep.run(
        Sweep(
            entries=[
                Entry(OPTIMIZERS[config.optimizer].label_of(config), config)
                for config in configs.values()
            ],
            seeds=seeds_of(args, FIRST_SEED),
            report=partial(report_comparison, problem),
            name="comparison",
            **options,
        )
    )


def tuned_and_recorded(
    problem: Problem, starts: Mapping[str, Config], options: Mapping[str, Any]
) -> dict[str, Config]:
    """Tunes, and writes what each candidate has come to into `tuning.json`."""
    rounds: dict[str, Mapping[str, float]] = {}

    def measure(number: int, configs: Sequence[Config]) -> Mapping[Config, float]:
        found = measured_in_a_sweep(problem, options, number, configs)
        rounds[str(number)] = {in_words(config): value for config, value in found.items()}
        return found

    best = tune(problem, starts, measure)
    about = {
        "command": shown_command(shlex.join([sys.executable, *sys.argv])),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        **circumstances(),
        "seed": TUNING_SEED,
        "held_out": problem.held_out,
        "measure": problem.goal.measure,
    }
    write_json(options["root"] / "tuning.json", {**about, "rounds": rounds})
    return best


def measured_in_a_sweep(
    problem: Problem, options: Mapping[str, Any], number: int, configs: Sequence[Config]
) -> dict[Config, float]:
    """Trains the candidates of a round; returns the goal of those that have not diverged."""
    entries = {
        in_words(config): replace(config, held_out=problem.held_out, eval_every=config.epochs)
        for config in configs
    }
    found: dict[str, float] = {}

    def keep(results: Results) -> list[str]:
        for label in results.runs:
            mine = [record for record in results.records if record["optimizer"] == label]
            found[label] = mine[-1][problem.goal.measure]
        note = f"On {problem.held_out:,} held-out training examples. {problem.note}"
        return report(results, [problem.goal], note, pictures=[], compared=False)

    sweep.run(
        Sweep(
            entries=[Entry(label, config) for label, config in entries.items()],
            seeds=[TUNING_SEED],
            report=keep,
            name=f"tuning_{number}",
            **options,
        )
    )
    return {config: found[label] for config in configs if (label := in_words(config)) in found}


# The comparison

STEPS_TO_FIRST = Column("steps to the first's result", "steps_to_first", form=",.0f")


def report_comparison(problem: Problem, results: Results) -> list[str]:
    """Writes table, numbers and picture of the comparison; returns the lines to print."""
    columns = [problem.goal, STEPS_TO_FIRST, *problem.columns]
    if results.runs:
        title = title_of(next(iter(results.runs.values())))
        leads(results.records, results.runs, problem.goal, title, results.folder / "curves.png")
        records = with_steps_to_first(results, problem.goal)
        results = replace(results, records=records)
    return report(results, columns, problem.note)


def with_steps_to_first(results: Results, goal: Column) -> list[Record]:
    """Returns the records, the last one of each seed with the steps to the first entry's result.

    That is after how many steps the entry is as good as the first one is in the end, from the
    same seed; between two evaluations it is interpolated. NaN if it never is.
    """
    first, *_ = results.runs
    records = [dict(record) for record in results.records]
    target = by_seed([r for r in records if r["optimizer"] == first], goal.measure)[:, -1]
    for label in results.runs:
        mine = [r for r in records if r["optimizer"] == label]
        seeds = sorted({r["seed"] for r in mine})
        for seed, level in zip(seeds, target, strict=True):
            own = [r for r in mine if r["seed"] == seed and goal.measure in r]
            values = by_seed(own, goal.measure)[0]
            own[-1]["steps_to_first"] = first_crossing(
                [r["steps"] for r in own], values, level, goal.lower_is_better
            )
    return records


def first_crossing(
    steps: Sequence[int], values: Sequence[float], level: float, lower_is_better: bool
) -> float:
    """Returns where values, interpolated between steps, first reach a level; NaN for never."""
    sign = -1.0 if lower_is_better else 1.0
    above = sign * (np.asarray(values) - level)
    reached = np.flatnonzero(above >= 0)
    if not len(reached):
        return float("nan")
    n = reached[0]
    if n == 0:
        return float(steps[0])
    part = -above[n - 1] / (above[n] - above[n - 1])
    return float(steps[n - 1] + part * (steps[n] - steps[n - 1]))
