"""Data parallel and local training side by side, each with a learning rate that is tuned alike.

Every entry is trained with each learning rate of one grid from the tuning seeds, and has the best
on held-out examples. It is then compared from fresh seeds. All take as many steps, with as many
examples in each, over all workers.
"""

import itertools
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from experiments import processes, sweep
from experiments.command_line import seeds_of
from experiments.config import SettingError
from experiments.local.methods import METHODS, LocalConfig
from experiments.local.run import LocalRun, run_of_workers
from experiments.local.table import draw, rows
from experiments.local.traffic import sent_in_a_cycle
from experiments.models import OF_TEXT
from experiments.records import Record
from experiments.report import Column, report
from experiments.settings import read_json
from experiments.sweep import Entry, Results, Sweep, title_of
from experiments.train import Epoch

TUNING_SEEDS = range(2)
FIRST_SEED = len(TUNING_SEEDS)
ACCURACY = Column("accuracy", "test_accuracy")
LOSS = Column("loss", "test_loss", form=".4f", lower_is_better=True)
NOTE = (
    "Accuracy in %, loss in nats, of the slow weights on the test examples. Gains are paired, seed "
    "by seed, with the half width of their 95 % interval; above 0 the entry is better. MB sent are "
    "those of one worker in the whole run, counted in the program"
)


def configs_of(base: LocalConfig, args: Namespace) -> Iterator[LocalConfig]:
    """Yields what is compared: for each number of workers data parallel, and all local ones."""
    for split, workers in itertools.product(args.split, args.workers):
        of_these = replace(base, split=split, workers=workers)
        yield replace(of_these, optimizer="data_parallel", sync_period=1)
        for k, (eta, mu), beta, send in itertools.product(
            args.sync_period, args.outer, args.beta, args.send
        ):
            yield replace(
                of_these,
                optimizer="local",
                sync_period=k,
                outer_learning_rate=eta,
                outer_momentum=mu,
                beta=beta,
                send=send,
            )


def label_of(config: LocalConfig) -> str:
    """Names an entry by its settings."""
    parts = [f"{config.workers} workers"]
    if config.split != "even":
        parts.append(f"split by {config.split}")
    if config.optimizer == "local":
        eta, mu = config.outer_learning_rate, config.outer_momentum
        parts.append(f"k {config.sync_period}, η {eta:g}, μ {mu:g}")
        parts += [f"β {config.beta:g}"] if config.beta else []
        parts += [f"sends {config.send}"] if config.send != "float32" else []
    else:
        parts.append(METHODS[config.optimizer].label)
    return ", ".join(parts)


def measure(run: LocalRun, seed: int, epoch: Epoch) -> Record:
    """Returns how often workers exchange something, and what each of them sends."""
    del seed, epoch
    cycles = run.steps // run.config.sync_period
    return {"exchanges": cycles, "megabytes": cycles * sent_in_a_cycle(run) / 1e6}


def run(args: Namespace, base: LocalConfig, options: Mapping[str, Any]) -> int:
    """Tunes, if there is more than one learning rate, and compares; returns the exit code.

    Args:
      args: the flags of `local_training.py`.
      base: what all entries have in common.
      options: of the sweeps.
    """
    goal = LOSS if base.model in OF_TEXT else ACCURACY
    options = {"run_of": run_of_workers, "measure": measure, **options}
    entries = [Entry(label_of(config), config) for config in configs_of(base, args)]
    entries = with_best_rates(entries, args, goal, options)
    others = [column for column in (ACCURACY, LOSS) if column is not goal]
    rates = ", ".join(f"{rate:g}" for rate in args.learning_rates)
    chosen = f"best of {rates} on held-out examples" if len(args.learning_rates) > 1 else rates
    return sweep.run(
        Sweep(
            entries=[
                replace(entry, folder=f"entry_{n}") for n, entry in enumerate(entries, start=1)
            ],
            seeds=seeds_of(args, FIRST_SEED),
            report=partial(report_workers, [goal, *others], f"{NOTE}. Learning rate: {chosen}"),
            name="comparison",
            checkpoint=args.save_every is not None,
            save_every=args.save_every,
            **options,
        )
    )


def with_best_rates(
    entries: Sequence[Entry], args: Namespace, goal: Column, options: Mapping[str, Any]
) -> list[Entry]:
    """Returns the entries, each with its best learning rate.

    Raises:
      SettingError: if an entry diverges with every one.
    """
    first, *others = args.learning_rates
    if not others:
        return [
            replace(entry, config=replace(entry.config, learning_rate=first)) for entry in entries
        ]
    candidates = {
        (entry.label, rate): Entry(
            f"{entry.label}, learning rate {rate:g}",
            replace(
                entry.config,
                learning_rate=rate,
                held_out=args.held_out,
                eval_every=entry.config.epochs,
            ),
        )
        for entry, rate in itertools.product(entries, args.learning_rates)
    }
    note = f"On {args.held_out:,} held-out training examples"
    tuning = Sweep(
        entries=list(candidates.values()),
        seeds=TUNING_SEEDS,
        report=partial(report, columns=[goal], note=note, pictures=[], compared=False),
        name="tuning",
        **options,
    )
    with processes.together():  # The first one has written the results when all go on.
        sweep.run(tuning)
    tuned = read_json(tuning.root / "tuning" / "results.json")
    sign = 1 if goal.lower_is_better else -1
    best = []
    for entry in entries:
        found = {
            rate: sign * tuned["entries"][label]["measured"][goal.measure]["final"]["mean"]
            for rate in args.learning_rates
            if (label := candidates[entry.label, rate].label) in tuned.get("entries", {})
        }
        if not found:
            raise SettingError("learning_rates", f"{entry.label} diverges with every one")
        rate = min(found, key=found.get)
        best.append(replace(entry, config=replace(entry.config, learning_rate=rate)))
    return best


def report_workers(columns: Sequence[Column], note: str, results: Results) -> list[str]:
    """Writes table, numbers and picture of the comparison; returns the lines to print."""
    if results.runs:
        title = title_of(next(iter(results.runs.values())))
        draw(results, columns[0], title, results.folder / "bytes.png")
    return report(results, columns, note, pictures=["bytes.png"], compared=False, tabulate=rows)
