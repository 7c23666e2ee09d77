"""The regimes of a small language model: AdamW, and what may be put around it.

A transformer predicts the characters of Python's reference, with a learning rate that is constant
or falls to 0 in half a cosine wave, after a short warm-up. b1 is tuned for plain AdamW, and is then
the inner optimizer's of every method but schedule-free learning, which has its interpolation in
its place. The pull of SLRLA's regulariser is part of the gradient that AdamW sees.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import Config
from experiments.data import load
from experiments.models import Transformer
from experiments.regimes.engine import TUNING_SEEDS, Measure, Method, Regime, Setting
from experiments.regimes.supervised import METHODS as AROUND_SGD
from experiments.regimes.supervised import settings
from experiments.regimes.training import Draw, Problem
from experiments.steps import Model, eval_step

BASE = Config(
    dataset="python_reference",
    model="transformer",
    batch_size=8,
    milestones=(0.25, 0.5, 0.75),  # Of SLRLA's stages; the learning rate does not know them.
    stages_in="steps",
    decay=1.0,
    warmup=0.05,
    inner="adamw",
    weight_decay=0.1,
)
WINDOW, WIDTH, HEADS = 32, 32, 2
STEPS = 400
RATES = tuple(1e-3 * 2**n for n in range(7))
METHODS: Mapping[str, Method] = {
    "adamw": Method("Plain", settings(momentum=(0.6, 0.8, 0.9, 0.95))),
    **{name: method for name, method in AROUND_SGD.items() if name != "sgd"},
    "schedule_free": Method("Schedule-free", settings(momentum=(0.6, 0.8, 0.9, 0.95))),
    "slrla": Method("SLRLA", settings(slow_step_size=(0.5, 0.8), beta=(1e-3, 1e-2))),
    "slrla_released": Method(
        "SLRLA (released form)", settings(slow_step_size=(0.5, 0.8), beta=(1e-3, 1e-2))
    ),
}
LOSS = Measure("test loss in nats per character", worst=10.0, form=".4f")


def regimes() -> list[Regime]:
    """Returns the regimes of the language model."""
    return [
        regime("language", "Language model, constant rate", "none"),
        regime("language_decayed", "Language model, decayed rate", "cosine"),
    ]


def regime(name: str, label: str, annealing: str) -> Regime:
    """Returns a regime with an annealing of the learning rate."""
    text = Text(load("python_reference"), replace(BASE, annealing=annealing), STEPS)
    return Regime(
        name,
        label,
        "Language model",
        LOSS,
        METHODS,
        RATES,
        text.scores,
        STEPS,
        ("momentum",),
        TUNING_SEEDS[:2],
        note=f"A transformer of one block of width {WIDTH}, AdamW, {BASE.batch_size} windows of "
        f"{WINDOW} characters a step. Two tuning seeds.",
    )


@dataclass(frozen=True, eq=False)
class Text(Problem):
    """A text in windows, whose next characters are predicted."""

    train_images: int = 12_000
    test_images: int = 400
    at_once: int = 6

    @cached_property
    def pool(self) -> tuple[np.ndarray, np.ndarray]:
        """All windows, and the characters that follow each of theirs."""
        windows, following = super().pool
        return windows.reshape(-1, WINDOW), following.reshape(-1, WINDOW)

    @cached_property
    def model(self) -> Model:
        """The network without its weights."""
        size = {"width": WIDTH, "heads": HEADS, "depth": 1}
        make = partial(Transformer, (WINDOW,), self.dataset.classes, **size)
        return Model(make, self.dataset, name=self.base.model)

    def labels(self, seed: int, train: np.ndarray) -> tuple[()]:
        """Returns nothing: the labels are those of the text, from every seed."""
        del seed, train
        return ()

    def images_and(self, labels: Any) -> tuple[jax.Array, jax.Array]:
        """Returns all windows, and what follows."""
        del labels
        windows, following = self.pool
        return jnp.asarray(windows), jnp.asarray(following)

    def config_of(self, method: str, setting: Setting) -> Config:
        """Returns the configuration of a run, whose learning rate is AdamW's."""
        return replace(self.base, optimizer=method, **setting)

    def measure(self, params: Any, stats: Any, draw: Draw) -> jax.Array:
        """Returns the mean loss on the windows that are evaluated."""
        pool = self.images_and(draw.labels)
        loss, _ = eval_step(self.model, pool, params, stats, draw.evaluated, draw.counted)
        return loss / draw.counted.sum()
