"""A small GAN with Adam, with Lookahead around both players and with nested Lookahead.

    python examples/gan.py --dataset fashion_mnist --shrink 2 --data_path DIR

trains two fully connected players with each and with several learning rates, and measures along
each run how far the generated images are from real ones; with the fast weights, with the slow
ones and with an exponential moving average of the fast ones. Without data it takes scikit-learn's
digits. `--help` says what can be changed.
"""

import base64
import itertools
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments import figures, flags, sweep
from experiments.command_line import add_settings, add_sweep, program, seeds_of, sweep_options
from experiments.config import Config, SettingError
from experiments.data import Data, Dataset
from experiments.flags import Parser
from experiments.optimizers import inner_of
from experiments.records import Record
from experiments.report import Column, by_seed, report
from experiments.run import Run, run_of
from experiments.signals import Stop
from experiments.steps import Model, init_weights
from experiments.studies import gan
from experiments.studies.gan import GAN, NOISE, PLAYERS, Judge
from experiments.studies.games import alternating
from experiments.sweep import Entry, Results, Sweep, title_of
from experiments.train import Epoch, OnStep, Stopped

from slrla_jax import lookahead, multilayer_lookahead

BASE = Config(
    model="gan",
    epochs=16,
    epoch_steps=178,  # No multiple of k, so that evaluation is in mid-cycle.
    batch_size=64,
    milestones=(),
    inner="adam",
    momentum=0.0,
    weight_decay=0.0,
    ema_decay=0.995,
)
# What stands around both players, whose steps are one of the inner transformation.
AROUND: Mapping[str, Callable[[optax.GradientTransformation, Config], Any]] = {
    "adam": lambda inner, config: inner,
    "lookahead": lambda inner, config: lookahead(inner, config.sync_period, config.slow_step_size),
    "multilayer_lookahead": lambda inner, config: multilayer_lookahead(
        inner, config.sync_period, config.slow_step_size
    ),
}
LABELS = {"adam": "Adam", "lookahead": "Lookahead", "multilayer_lookahead": "Nested Lookahead"}
# Generated images that are judged, and those that are shown.
JUDGED, SHOWN = 2_000, 6


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="gan.py",
        description="Train a small GAN with Adam, Lookahead and nested Lookahead, and measure how "
        "good and how stable each is.",
    )
    add_settings(parser, "data", BASE, dataset="--dataset", train_images="--train_images")
    add = parser.add_argument_group("data and length").add_argument
    add(
        "--shrink",
        type=flags.count,
        default=1,
        metavar="N",
        help="make images of the means over N × N pixels (default: %(default)s)",
    )
    lengths = {"epochs": "--epochs", "epoch_steps": "--epoch_steps", "batch_size": "--batch_size"}
    add_settings(parser, "length", BASE, **lengths)
    add = parser.add_argument_group("optimizers").add_argument
    add(
        "--optimizers",
        type=flags.names_among(AROUND),
        default=tuple(AROUND),
        metavar="NAMES",
        help=f"some of {', '.join(AROUND)}, comma-separated (default: all)",
    )
    add(
        "--lr",
        dest="learning_rate",
        type=flags.listed(flags.positive),
        default="0.0005,0.001,0.002",
        metavar="LIST",
        help="learning rates of both players, comma-separated (default: %(default)s)",
    )
    add(
        "--k",
        dest="sync_period",
        type=flags.listed(flags.count),
        default="5,20",
        metavar="LIST",
        help="sync periods of nested Lookahead, comma-separated, the inner one first, which is "
        "Lookahead's (default: %(default)s)",
    )
    add(
        "--alpha",
        dest="slow_step_size",
        type=flags.listed(flags.step_size),
        default="0.5,0.5",
        metavar="LIST",
        help="slow step sizes, likewise (default: %(default)s)",
    )
    add(
        "--ema_decay",
        type=flags.fraction,
        default=BASE.ema_decay,
        metavar="d",
        help="of the moving average of the generator's weights (default: %(default)s)",
    )
    add_sweep(parser, seeds=5, name="--name")
    return parser


def entries_of(args: Namespace) -> list[Entry]:
    """Returns the configurations, one optimizer after the other for each learning rate.

    Raises:
      SettingError: if there are not as many periods as slow step sizes.
    """
    given = ("dataset", "train_images", "epochs", "epoch_steps", "batch_size", "ema_decay")
    base = replace(BASE, **{name: getattr(args, name) for name in given})
    layers = replace(base, sync_period=args.sync_period, slow_step_size=args.slow_step_size)
    layers.each_layer("slow_step_size")
    of = {
        "adam": base,
        "lookahead": replace(
            base, sync_period=args.sync_period[0], slow_step_size=args.slow_step_size[0]
        ),
        "multilayer_lookahead": layers,
    }
    return [
        Entry(f"{LABELS[name]}, {rate:g}", replace(of[name], optimizer=name, learning_rate=rate))
        for rate, name in itertools.product(args.learning_rate, args.optimizers)
    ]


@dataclass(frozen=True)
class GanRun(Run):
    """A run of both players.

    Attributes:
      judge: which the generated images are judged by.
      ema_decay: of the moving average of the generator's weights.
    """

    judge: Judge | None = None
    ema_decay: float = 0.0

    def flops_per_step(self) -> None:
        """A step is not that of a classifier, whose operations are counted."""


@lru_cache(maxsize=1)  # All runs share one, and what is compiled for it.
def model_of(dataset: Dataset) -> Model:
    """Returns both players for the images of a data set."""
    return Model(partial(GAN, int(np.prod(dataset.image_shape))), dataset, name="GAN")


def run_of_players(config: Config, dataset: Data, *, shrink: int, **options: Any) -> GanRun:
    """Builds a run of both players, one of whose steps takes a gradient of each.

    Raises:
      SettingError: if the data do not fit into memory, and as `run_of` does.
    """
    if not isinstance(dataset, Dataset) or dataset.unit != "images":
        raise SettingError("dataset", f"must be images that fit into memory, got {dataset.name}")
    dataset = gan.shrunk(dataset, shrink)
    one = run_of(replace(config, model="softmax"), dataset, **options)
    inner = alternating(inner_of(config)(one.stages.schedule), PLAYERS)
    return GanRun(
        **{field.name: getattr(one, field.name) for field in fields(Run)}
        | {
            "model": model_of(dataset),
            "tx": AROUND[config.optimizer](inner, config),
            "gradients_per_step": len(PLAYERS),
            "judge": gan.judge_of(dataset),
            "ema_decay": config.ema_decay,
        }
    )


class Measured(NamedTuple):
    """What is known of some weights at the end of an epoch."""

    distance: float
    classes: np.ndarray
    images: np.ndarray


def train_players(
    run: GanRun, seeds: Sequence[int], *, stop: Stop, on_step: OnStep, **_: Any
) -> Iterator[Epoch]:
    """Trains both players from a seed.

    Yields:
      The epochs. Measures without a prefix are those of the slow weights, where there are any;
      then `fast_` stands before those of the fast weights, and `average_` before those of the
      moving average. The last record has `best`, the lowest distance of the run, and whether the
      run has `collapsed`.
    """
    (seed,) = seeds
    both, _ = init_weights(run.model, seed)
    params = {player: both[player] for player in PLAYERS}
    average = jax.tree.map(jnp.copy, params["generator"])  # The state is donated.
    state = gan.State(params, average, run.tx.init(params))
    images = jnp.asarray(gan.flat(run.dataset, run.dataset.train_images))
    batches = run.dataset.train_batches(seed, run.batch_size)
    key = jax.random.key(seed)
    distances: dict[str, list[float]] = {}
    for epoch in range(run.epochs + 1):
        begin, end = run.end_of(max(epoch - 1, 0)), run.end_of(epoch)
        started, losses = time.perf_counter(), {}
        if epoch > 0:
            chosen = np.stack(list(itertools.islice(batches, end - begin)))
            state, losses = gan.take_steps(
                run.model.graph,
                run.tx,
                run.ema_decay,
                state,
                images,
                chosen,
                jax.random.fold_in(key, epoch),
            )
            on_step(end, float(losses["discriminator"]))
        seconds = time.perf_counter() - started
        record: Record = {
            "seed": seed,
            "epoch": epoch,
            "steps": end,
            "gradients": end * run.gradients_per_step,
            "learning_rate": run.learning_rate(end),
            "stage": run.stages.stage_of(end),
        }
        if losses:
            record["batch_loss"] = float(losses["discriminator"])
            record["generator_loss"] = float(losses["generator"])
        for prefix, weights in weights_of(run, state).items():
            found = judged(run, weights)
            distances.setdefault(prefix, []).append(found.distance)
            record[f"{prefix}distance"] = found.distance
            if epoch == run.epochs:
                seen = gan.classes_seen(found.classes, run.dataset.classes)
                along = distances[prefix][1:]
                record[f"{prefix}classes"] = seen
                record[f"{prefix}best"] = min(along)
                record[f"{prefix}collapsed"] = int(
                    gan.has_collapsed(along, seen, run.dataset.classes)
                )
            if prefix == "":
                record["images"] = as_text(found.images[:SHOWN])
        if epoch == run.epochs:
            record |= {"floor": run.judge.floor, "judge_accuracy": run.judge.accuracy}
        count = (end - begin) * run.batch_size
        timing = {"seconds": seconds, "waited": 0.0, "images_per_second": count / seconds}
        yield Epoch(record, timing, state)
        if stop.requested and epoch < run.epochs:
            message = f"stopped after {end} of {run.steps} steps"
            raise Stopped(message, stop.number, saved=False)


def weights_of(run: GanRun, state: gan.State) -> dict[str, Any]:
    """Returns the params of both players that are judged, by the prefix of their measures."""
    fast = state.params
    weights = {"": fast}
    if run.slow_params is not None:
        weights = {"": run.slow_params(state.opt_state, fast), "fast_": fast}
    return weights | {"average_": fast | {"generator": state.average}}


def judged(run: GanRun, params: Any) -> Measured:
    """Judges the images that are made of the same noise in every run."""
    noise = jax.random.normal(jax.random.key(0), (JUDGED, NOISE))
    images = np.asarray(gan.generate(run.model.graph, params, noise))
    return Measured(*run.judge.sees(images), images)


def as_text(images: np.ndarray) -> str:
    """Returns images as base64 of a byte per pixel, as records hold them."""
    return base64.b64encode(np.uint8(np.round(127.5 * (images + 1)))).decode()


def from_text(text: str) -> np.ndarray:
    """Returns the images that `as_text` has written, of shape (SHOWN, pixels)."""
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(SHOWN, -1)
