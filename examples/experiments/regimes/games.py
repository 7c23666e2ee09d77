"""The regimes of games: min over x, max over y of xᵀAy + bᵀx + cᵀy, with and without noise.

Plain are simultaneous gradient descent–ascent steps of both players. All others are around these
steps, so that a sync or a prox is of both players together; beside the methods of the map are
those that are meant for games. Momentum is tuned for plain steps and for these; the methods of the
map stand around steps without it. An extragradient step takes two gradients, and is taken half as
often. Every seed draws its own game, where the players begin, and the batches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import Config
from experiments.optimizers import OPTIMIZERS, Optimizer, inner_of
from experiments.regimes.engine import Measure, Method, Regime, Setting
from experiments.regimes.supervised import settings
from experiments.regimes.training import Static, by_static_part, stacked, traced_part
from experiments.schedules import Stages, stages_of
from experiments.studies.games import Bilinear, path, samples_of_a_game, start
from experiments.studies.players import averaging, extragradient

GRADIENTS, STAGES = 1_500, 30
BASE = Config(
    milestones=tuple(q / STAGES for q in range(1, STAGES)),  # Of SLRLA's stages.
    stages_in="steps",
    decay=1.0,
    momentum=0.0,
    weight_decay=0.0,
)
SIZE, SAMPLES, NOISE, LOWEST, BATCH = 5, 200, 0.1, 0.2, 8
RATES = tuple(2.0**n for n in range(-7, 2))
# Negative momentum is an old remedy in games.
MOMENTA = (0.25, 0.0, -0.25, -0.5)


Around = Callable[[optax.GradientTransformation], optax.GradientTransformation]


def around_steps(around: Around) -> Callable[[Config, Stages], optax.GradientTransformation]:
    """Makes a method from what is put around the steps of plain gradient descent–ascent."""
    return lambda config, stages: around(inner_of(config)(stages.schedule))


def optimistic(steps: optax.GradientTransformation) -> optax.GradientTransformation:
    """Steps with the gradient that is expected next: 2 v_t − v_{t−1}."""
    return optax.chain(optax.scale_by_optimistic_gradient(), steps)


PLAYERS: Mapping[str, Optimizer] = OPTIMIZERS | {
    "average": Optimizer(
        "Average of the iterates", around_steps(averaging), lambda state, w: state.average
    ),
    "extragradient": Optimizer(
        "Extragradient", around_steps(extragradient), gradients=lambda config: 2
    ),
    "optimistic": Optimizer("Optimistic", around_steps(optimistic)),
}
FOR_GAMES = ("average", "extragradient", "optimistic")
METHODS: Mapping[str, Method] = {
    "sgd": Method("Descent–ascent", settings(momentum=MOMENTA)),
    **{name: Method(PLAYERS[name].label, settings(momentum=MOMENTA)) for name in FOR_GAMES},
    "ema": Method("EMA", settings(ema_decay=(0.97, 0.99, 0.997, 0.999))),
    "schedule_free": Method("Schedule-free", settings(momentum=(0.1, 0.5, 0.9, 0.98))),
    "lookahead": Method("Lookahead", settings(sync_period=(5, 20), slow_step_size=(0.2, 0.5))),
    "multilayer_lookahead": Method(
        "Multilayer Lookahead",
        [
            {"sync_period": (5, 5), "slow_step_size": (inner, outer)}
            for inner in (0.2, 0.5)
            for outer in (0.2, 0.5)
        ],
    ),
    "slrla": Method("SLRLA", settings(slow_step_size=(0.5, 0.8), beta=(0.1, 0.2))),
    "slrla_released": Method(
        "SLRLA (released form)", settings(slow_step_size=(0.2, 0.5), beta=(0.1, 0.2))
    ),
    "snoo": Method(
        "SNOO",
        [
            {"sync_period": 5, **setting}
            for setting in settings(outer_learning_rate=(0.2, 0.5), outer_momentum=(0.1, 0.25))
        ],
    ),
    "primal_averaging": Method(
        "Primal averaging",
        settings(train_interpolation=(0.1, 0.7), eval_interpolation=(0.9, 0.9967)),
    ),
}
# Players that are further away than this have left.
FAR = 2.0
DISTANCE = Measure("log₁₀ of the distance to the equilibrium", worst=FAR)


def regimes() -> list[Regime]:
    """Returns the regimes of games."""
    return [
        regime("game", "Bilinear game", batch_size=None),
        regime("noisy_game", "Bilinear game, noisy", batch_size=BATCH),
    ]


def regime(name: str, label: str, batch_size: int | None) -> Regime:
    """Returns a regime, in which gradients are of so many samples, or of all."""
    of = "all" if batch_size is None else f"{batch_size} of {SAMPLES}"
    return Regime(
        name,
        label,
        "Games",
        DISTANCE,
        METHODS,
        RATES,
        Games(batch_size).scores,
        GRADIENTS,
        note=f"{SIZE} + {SIZE} weights, singular values from {LOWEST:g} to 1; gradients of {of} "
        "samples. Gradient descent–ascent moves away from the equilibrium at every learning rate, "
        "so that its best one is the smallest. A run counts as diverged beyond a distance of "
        f"{10**FAR:g}.",
    )


class Draw(NamedTuple):
    """What a seed draws; of several seeds, stacked.

    Attributes:
      game: samples, along the first axis.
      equilibrium: of their mean.
      start: where the players begin.
    """

    game: Bilinear
    equilibrium: Any
    start: Any


@dataclass(frozen=True, eq=False)
class Games:
    """Games that are played for `GRADIENTS` gradients.

    Attributes:
      batch_size: how many samples of a game a gradient is of; None for all.
    """

    batch_size: int | None

    def scores(
        self, method: str, settings: Sequence[Setting], seeds: Sequence[int], held_out: bool
    ) -> np.ndarray:
        """Plays from all seeds with all settings.

        Args:
          method: a name in `PLAYERS`.
          settings: changes of `BASE`.
          seeds: of the games.
          held_out: makes no difference: tuning has other games, as it has other seeds.

        Returns:
          log₁₀ of the distance of the weights that the method evaluates to the equilibrium, of
          shape (settings, seeds); not finite beyond `FAR`.
        """
        del held_out
        found = np.empty((len(settings), len(seeds)))
        with jax.enable_x64(True):
            draws = stacked(draw(seed) for seed in seeds)
            keys = jnp.stack([jax.random.key(seed) for seed in seeds])
            for fixed, mine in by_static_part(settings).items():
                play = jax.vmap(partial(self.play, method, fixed), (None, 0, 0))
                traced = stacked(traced_part(settings[n]) for n in mine)
                found[mine] = jax.jit(jax.vmap(play, (0, None, None)))(traced, draws, keys)
        return np.where(found > FAR, np.nan, found)

    def play(
        self, method: str, fixed: Static, traced: Setting, draw: Draw, key: jax.Array
    ) -> jax.Array:
        """Plays once, with batches from a key; returns log₁₀ of the distance at the end."""
        row = PLAYERS[method]
        config = replace(BASE, optimizer=method, **dict(fixed), **traced)
        steps = GRADIENTS // row.gradients(config)
        tx = row.make(config, stages_of(config, steps, epoch=1))
        evaluated = row.slow_params or (lambda state, w: w)
        distances = path(tx, evaluated, *draw, key, steps, self.batch_size)
        return jnp.log10(distances[-1])


def draw(seed: int) -> Draw:
    """Returns the game of a seed, in float64, without the key of its batches."""
    game = samples_of_a_game(SIZE, SAMPLES, NOISE, seed, LOWEST)
    equilibrium = game.mean().equilibrium()
    away = {player: start(seed, n, SIZE) for n, player in enumerate(equilibrium)}
    return Draw(game, equilibrium, jax.tree.map(np.add, equilibrium, away))
