"""Lookahead in a bilinear game, and the rates that the eigenvalues of its cycle predict.

    python examples/bilinear_game.py

min over x, max over y of xᵀAy + bᵀx + cᵀy: gradient descent–ascent spirals outwards, or circles if
the players take turns, and Lookahead around both players comes to rest. The distance to the
equilibrium is measured in the game itself and with gradients of random samples of it, and its rate
compared with theory: (1 − α) I + α (I + η J)^k is the matrix of a cycle. `--help` says what can be
changed.
"""

import signal
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
import numpy as np
from experiments import figures, flags
from experiments.command_line import add_layers, add_sweep, program, seeds_of
from experiments.config import SettingError
from experiments.flags import Parser
from experiments.parts import provenance, run
from experiments.report import markdown
from experiments.studies import games
from experiments.studies.games import METHODS, Bilinear, Settings
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import MaxNLocator

# The game is the same from every seed, which draws where the players begin and the batches.
GAME_SEED = 0
GAME = "the game"  # The only part of the results.
POINTS = 80  # Of a line in the picture.
PERIODS, SIZES = np.arange(1, 41), np.linspace(0.02, 1.0, 50)


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="bilinear_game.py",
        description="Play a bilinear game with gradient descent–ascent, with Lookahead and nested "
        "Lookahead around both players, and with extragradient and optimistic steps.",
    )
    add = parser.add_argument_group("game").add_argument
    add("--size", type=flags.count, default=5, metavar="N", help="of x and y (default: 5)")
    add(
        "--samples",
        type=flags.count,
        default=200,
        metavar="N",
        help="games whose mean is played (default: %(default)s)",
    )
    add(
        "--noise",
        type=flags.not_negative,
        default=0.1,
        metavar="σ",
        help="how far a sample is from the mean, whose matrix has singular values from 0.5 to 1 "
        "(default: %(default)s)",
    )
    add(
        "--batch_size",
        type=flags.count,
        default=8,
        metavar="N",
        help="samples that a stochastic gradient is the mean of (default: %(default)s)",
    )
    add = parser.add_argument_group("players").add_argument
    add(
        "--steps",
        type=flags.count,
        default=4_000,
        metavar="N",
        help="steps of both players (default: %(default)s)",
    )
    add(
        "--lr",
        dest="learning_rate",
        type=flags.number("more than 0 and at most 2", lambda eta: 0 < eta <= 2),
        default=0.2,
        metavar="η",
        help="learning rate, at most 2 (default: %(default)s)",
    )
    add_layers(parser, "players", "5_0.5,5_0.5")
    add_sweep(parser, seeds=5, name="--name", data=False)
    return parser


def settings_of(args: Namespace) -> Settings:
    """Returns the settings of the methods.

    Raises:
      SettingError: if the layers are not two or more, or the run has too few cycles.
    """
    if len(args.layers) < 2:
        raise SettingError("layers", f"must be two layers or more, got {args.layers}")
    periods, sizes = zip(*args.layers, strict=True)
    cycle = int(np.prod(periods))
    if args.steps < 4 * cycle:
        raise SettingError("steps", f"must be four cycles of {cycle} or more, got {args.steps}")
    return Settings(args.learning_rate, periods, sizes)


def play(args: Namespace, settings: Settings, seeds: Sequence[int]) -> dict[str, Any]:
    """Plays with every method, from every seed; returns rates and distances."""
    with jax.enable_x64(True):
        samples = games.samples_of_a_game(args.size, args.samples, args.noise, GAME_SEED)
        mean = samples.mean()
        equilibrium = mean.equilibrium()
        starts = {
            player: w + np.stack([games.start(seed, n, args.size) for seed in seeds])
            for n, (player, w) in enumerate(equilibrium.items())
        }
        keys = jax.numpy.stack([jax.random.key(seed) for seed in seeds])
        every = max(1, args.steps // POINTS)
        measured = {}
        for method in METHODS.values():
            batch, stochastic = (
                np.asarray(
                    games.distances(
                        method, settings, samples, equilibrium, starts, keys, args.steps, size
                    )
                )
                for size in (None, args.batch_size)
            )
            cycle = method.steps_per_cycle(settings)
            measured[method.label] = {
                "gradients": method.gradients,
                "predicted": method.rate(mean.a, settings),
                "measured": [measured_rate(line, cycle) for line in batch],
                "batch": rounded(batch[:, ::every]),
                "stochastic": rounded(stochastic[:, ::every]),
            }
    return {"singular_values": svd(mean).tolist(), "every": every, "methods": measured}


def measured_rate(distances: np.ndarray, cycle: int) -> float | None:
    """Returns the factor per step; None if there are not two cycles before numbers end."""
    try:
        return games.measured_rate(distances, cycle)
    except ValueError:
        return None


def rounded(distances: np.ndarray) -> list[list[float]]:
    """Returns distances with four digits, which is all that a picture needs."""
    return [[float(f"{distance:.3e}") for distance in line] for line in distances]


def svd(game: Bilinear) -> np.ndarray:
    """Returns the singular values of A, in falling order."""
    return np.linalg.svd(game.a, compute_uv=False)


def rates_of(results: Mapping[str, Any]) -> np.ndarray:
    """Returns the predicted rate of Lookahead over `SIZES` and `PERIODS`."""
    a = np.diag(results["parts"][GAME]["singular_values"])
    return games.lookahead_rates(a, results["learning_rate"], PERIODS, SIZES)


def page(results: Mapping[str, Any]) -> str:
    """Returns the table and what one has to know to read it, in Markdown."""
    factors = ("predicted factor", "measured", "factor per gradient")
    rows = [("", "gradients per step", *factors, "distance at the end", "from batches")]
    game = results["parts"][GAME]
    for label, method in game["methods"].items():
        predicted, gradients = method["predicted"], method["gradients"]
        batch, stochastic = (np.array(method[name])[:, -1] for name in ("batch", "stochastic"))
        rows.append(
            (
                label,
                f"{gradients}",
                f"{predicted:.6f}",
                "–" if None in method["measured"] else f"{np.mean(method['measured']):.6f}",
                f"{predicted ** (1 / gradients):.6f}",
                f"{batch.mean():.1e}",
                f"{stochastic.mean():.1e}",
            )
        )
    rates, values = rates_of(results), game["singular_values"]
    size, period = np.unravel_index(rates.argmin(), rates.shape)
    periods, sizes = zip(*results["layers"], strict=True)
    lines = [
        f"A game of {results['size']} + {results['size']} weights, with singular values of A from "
        f"{values[-1]:g} to {values[0]:g}; learning rate {results['learning_rate']:g}, "
        f"{results['steps']:,} steps in float64 from {len(results['seeds'])} seeds. Layers of "
        f"Lookahead: k = {', '.join(map(str, periods))} and α = "
        f"{', '.join(f'{size:g}' for size in sizes)}, of which Lookahead has the first.",
        "",
        *markdown(rows),
        "",
        "The factor is that of the distance to the equilibrium per step; measured in the second "
        "half of the run, or before rounding sets in, mean over the seeds. Both distances are "
        f"means over the seeds, the last one with gradients of {results['batch_size']} of "
        f"{results['samples']} samples, whose noise is {results['noise']:g}.",
        "",
        f"Of one layer with k up to {PERIODS[-1]}, k = {PERIODS[period]} and α = "
        f"{SIZES[size]:.2g} has the lowest factor, {rates.min():.6f}.",
        "",
        provenance(results),
        "",
        "![bilinear game](bilinear_game.png)",
        "",
    ]
    return "\n".join(lines)


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Draws the distances over the steps in both games, and the predicted rate over k and α."""
    game = results["parts"][GAME]
    title = (
        f"Bilinear game, learning rate {results['learning_rate']:g}; mean and range of "
        f"{len(results['seeds'])} seeds; dotted: the predicted rate. Right: + is what "
        "was played, × the best; on the black line the factor is 1"
    )
    with figures.picture(folder / "bilinear_game.png", (13, 4.4), title, dpi=90) as figure:
        batch, stochastic, radii = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
        for axes, name in ((batch, "batch"), (stochastic, "stochastic")):
            for label, look in figures.styles(list(game["methods"])):
                method = game["methods"][label]
                lines = np.array(method[name])
                steps = game["every"] * np.arange(lines.shape[1])
                mean = np.exp(np.log(lines).mean(0))
                axes.plot(steps, mean, linewidth=1.6, **look)
                band = {"color": look["color"], "alpha": 0.15, "linewidth": 0}
                axes.fill_between(steps, lines.min(0), lines.max(0), **band)
                if name == "batch":
                    n = len(steps) // 4  # The line goes through this point.
                    predicted = mean[n] * method["predicted"] ** (steps - steps[n])
                    axes.plot(steps, predicted, color="0.2", linestyle=":", linewidth=1, zorder=9)
            axes.set(yscale="log", xlabel="step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        batch.set(title="All samples in each gradient", ylabel="distance to the equilibrium")
        batch.set_ylim(1e-9, 1e3)
        stochastic.set(title=f"{results['batch_size']} samples in each gradient", ylim=(1e-3, 1e3))
        stochastic.legend(fontsize=8, loc="upper right")
        rates = rates_of(results)
        colours = TwoSlopeNorm(1.0, min(rates.min(), 0.999), max(rates.max(), 1.001))
        mesh = radii.pcolormesh(PERIODS, SIZES, rates, cmap="RdBu_r", norm=colours)
        radii.contour(PERIODS, SIZES, rates, levels=[1.0], colors="black", linewidths=1)
        figure.colorbar(mesh, ax=radii)
        radii.plot(*results["layers"][0], "k+", ms=10, mew=2)
        size, period = np.unravel_index(rates.argmin(), rates.shape)
        radii.plot(PERIODS[period], SIZES[size], "kx", ms=7, mew=1.5)
        radii.set(title="Lookahead's factor per step", xlabel="k", ylabel="α")


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    settings, seeds = settings_of(args), seeds_of(args)
    names = ("size", "samples", "noise", "batch_size", "steps", "learning_rate", "layers")
    asked = {name: getattr(args, name) for name in names} | {"seeds": list(seeds)}
    parts = {GAME: lambda: play(args, settings, seeds)}
    return run(args, parser, "bilinear_game", asked, parts, page, draw)


if __name__ == "__main__":
    sys.exit(main())
