"""What it costs when workers leave and join: the lesson `elastic_workers.py` with many histories.

    python examples/leaving_workers.py

trains its network with DiLoCo from many seeds, with workers that leave for good, for some cycles,
or in turn, and compares the results with those of workers that stay. That is a simulation in one
process. The lesson itself is also run some times: its params are compared with those of a
simulation with the same workers in each cycle, and the seconds that the others lose are measured.
"""

import multiprocessing
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import elastic_workers as lesson
import jax
import numpy as np
from experiments import figures, flags
from experiments.command_line import add_sweep, program, seeds_of
from experiments.config import SettingError
from experiments.flags import Parser
from experiments.paired import compare
from experiments.parts import provenance, run
from experiments.report import markdown, numbers, signed
from experiments.settings import Settings
from matplotlib.ticker import MaxNLocator

ALL = tuple(range(lesson.WORKERS))
BUT_ONE = ALL[:-1]
STAY = "all stay"
# The workers of each of the twelve cycles.
HISTORIES = {
    STAY: [ALL] * 12,
    "one leaves before the last cycle": [ALL] * 11 + [BUT_ONE],
    "one misses one cycle": [ALL] * 5 + [BUT_ONE] + [ALL] * 6,
    "one leaves, another joins after four cycles": [ALL] * 4 + [BUT_ONE] * 4 + [ALL] * 4,
    "one leaves after four cycles": [ALL] * 4 + [BUT_ONE] * 8,
    "in every cycle another one is missing": [
        tuple(worker for worker in ALL if worker != cycle % len(ALL)) for cycle in range(12)
    ],
    "one is never there": [BUT_ONE] * 12,
    "one is alone": [ALL[:1]] * 12,
}
LOST, BACK = "seconds until the others go on without it", "seconds until they go on with another"


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="leaving_workers.py",
        description="DiLoCo with workers that leave and join, in a simulation and as processes.",
    )
    parser.add_argument(
        "--runs",
        type=flags.number("a whole number, at least 2", lambda n: n >= 2, int),
        default=5,
        metavar="N",
        help="how often to kill and start a worker, a process (default: %(default)s)",
    )
    add_sweep(parser, seeds=50, name="--name", data=False)
    return parser


@jax.jit
@jax.vmap
@partial(jax.vmap, axis_name="workers")
def cycle_of_all(worker_run, batches):
    """A cycle; the rows of the arrays are seeds, and the rows of these are workers."""
    return lesson.sync_step(lesson.train_alone(worker_run, batches), batches)


def simulate(history: Sequence[Sequence[int]], seeds: Sequence[int]) -> Iterator[np.ndarray]:
    """Yields the slow weights after each cycle, of shape (seeds, params).

    Args:
      history: the workers that are there in each cycle. One that was not there in the cycle before
        joins with the slow weights, the outer state and a new inner state.
      seeds: of the first params and of the batches.
    """
    first = stacked([lesson.beginning(seed) for seed in seeds])
    runs, slow = {}, lesson.slow_part(first)
    for cycle, there in enumerate(history):
        rows = [runs.get(w) or jax.vmap(lesson.joined)(slow, first) for w in there]
        batches = [stacked([lesson.batches(w, cycle, seed) for seed in seeds]) for w in there]
        after = cycle_of_all(stacked(rows, axis=1), stacked(batches, axis=1))
        runs = {w: jax.tree.map(lambda x, row=n: x[:, row], after) for n, w in enumerate(there)}
        params, _ = runs[there[0]]
        slow = lesson.slow_part(runs[there[0]])
        yield params


def stacked(trees: Sequence, axis: int = 0):
    """Returns a tree of arrays with a new axis for several."""
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis), *trees)


def compare_histories(seeds: Sequence[int]) -> Settings:
    """Returns test accuracy, training loss, and the mean training loss after each cycle."""
    train, test = lesson.load_data()
    accuracy = jax.jit(jax.vmap(lambda params: lesson.eval_step(params, *test)))
    loss = jax.jit(jax.vmap(lambda params: lesson.loss_fn(params, *train)))
    found = {}
    for label, history in HISTORIES.items():
        path = list(simulate(history, seeds))
        curve = np.stack([loss(params) for params in path])
        found[label] = {
            "shares": sum(map(len, history)),
            "accuracy": numbers(100 * np.asarray(accuracy(path[-1]))),
            "loss": numbers(curve[-1]),
            "curve": [round(float(point), 4) for point in curve.mean(axis=1)],
        }
    return {"histories": found}


def run_processes(runs: int) -> Settings:
    """Returns how far the params of real runs are from those of a simulation, and seconds."""
    distances, lost, back, histories = [], [], [], []
    for _ in range(runs):
        # A fresh process, as JAX joins others before it is used.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            params, history = pool.submit(lesson.main).result()
        there = [workers for workers, _ in history]
        (*_, expected), seconds = simulate(there, [0]), [s for _, s in history]
        distances.append(float(np.abs(params - expected[0]).max()))
        lost.append(seconds[there.index(list(BUT_ONE))])
        back.append(seconds[len(there) - there[::-1].index(list(BUT_ONE))])
        histories.append([len(workers) for workers in there])
    return {
        "workers": histories,
        "distance": max(distances),
        LOST: numbers(np.array(lost)),
        BACK: numbers(np.array(back)),
    }


def page(results: Settings) -> str:
    """Returns the tables, in Markdown."""
    histories = results["parts"]["simulation"]["histories"]
    stay = histories[STAY]
    rows = [("", "shares", "test accuracy", "difference", "training loss", "difference")]
    for label, found in histories.items():
        row = [label, f"{found['shares']}"]
        for measure, form in (("accuracy", ".2f"), ("loss", ".4f")):
            row += [f"{found[measure]['mean']:{form}} ± {found[measure]['std']:{form}}"]
            row += [difference(found[measure], stay[measure], form) if found != stay else "–"]
        rows.append(row)
    processes = results["parts"]["processes"]
    seconds = [("", "mean ± std", "least", "most")]
    for label in (LOST, BACK):
        values = processes[label]["by_seed"]
        mean = f"{processes[label]['mean']:.1f} ± {processes[label]['std']:.1f}"
        seconds.append((label, mean, f"{min(values):.1f}", f"{max(values):.1f}"))
    lines = [
        f"Test accuracy in % and training loss after {len(HISTORIES[STAY])} cycles of "
        f"{lesson.STEPS} steps with up to {lesson.WORKERS} workers; mean ± standard deviation of "
        f"{len(results['seeds'])} seeds. A share is a cycle of one worker. The differences are to "
        "the same seeds when all stay, with 95 % intervals.",
        "",
        *markdown(rows),
        "",
        "![Training loss after each cycle](leaving_workers.png)",
        "",
        f"{len(processes['workers'])} runs as processes, one of which is killed and started again. "
        f"The params are at most {processes['distance']:.0e} from those of the simulation with the "
        f"same workers in each cycle. A worker counts as dead after {lesson.SILENCE} seconds.",
        "",
        *markdown(seconds),
        "",
        provenance(results),
        "",
    ]
    return "\n".join(lines)


def difference(found: Settings, stay: Settings, form: str) -> str:
    """Returns a cell of the differences between the same seeds."""
    gains = np.subtract(found["by_seed"], stay["by_seed"])
    compared = compare(gains)
    return f"{signed(compared.mean, form)} ± {compared.half_width:{form}}"


def draw(results: Settings, folder: Path) -> None:
    """Draws the training loss after each cycle."""
    title = (
        f"Loss of the slow weights on the training images of all {lesson.WORKERS} workers, mean of "
        f"{len(results['seeds'])} seeds"
    )
    with figures.picture(folder / "leaving_workers.png", (8, 3.8), title, dpi=100) as figure:
        axes = figure.subplots()
        histories = results["parts"]["simulation"]["histories"]
        for label, look in figures.styles(list(histories)):
            curve = histories[label]["curve"]
            axes.plot(range(1, len(curve) + 1), curve, linewidth=1.6, **look)
        axes.set(xlabel="cycle", ylabel="training loss", yscale="log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color="0.92")
        figure.legend(loc="outside right center", fontsize=8)


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    seeds = seeds_of(args)
    if len(seeds) < 2:
        raise SettingError("seeds", f"must be at least 2, got {len(seeds)}")
    names = ("WORKERS", "CYCLES", "STEPS", "BATCH_SIZE", "HIDDEN", "SILENCE")
    settings = {name.lower(): getattr(lesson, name) for name in names}
    settings |= {"runs": args.runs, "seeds": list(seeds)}
    parts = {
        "simulation": partial(compare_histories, seeds),
        "processes": partial(run_processes, args.runs),
    }
    return run(args, parser, "leaving_workers", settings, parts, page, draw)


if __name__ == "__main__":
    sys.exit(main())
