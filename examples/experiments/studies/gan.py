"""A generative adversarial network of two small players, and a run of it.

Both players are one tree of params and step one after the other, and what stands around their steps
is around both.
"""

import base64
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.config import Config
from experiments.data import Data, Dataset
from experiments.optimizers import inner_of, layers_around, lookahead_around
from experiments.records import Record
from experiments.run import Run, images_of, run_of
from experiments.signals import Stop
from experiments.steps import Model, init_weights
from experiments.studies.judge import (
    MLP,
    Judge,
    classes_seen,
    flat,
    has_collapsed,
    judge_of,
    shrunk,
)
from experiments.studies.players import alternating
from experiments.train import Epoch, OnStep, Stopped

NOISE, WIDTH = 32, 128
PLAYERS = ("discriminator", "generator")  # In the order in which they step.
# Generated images that are judged, and those that are kept to be shown.
JUDGED, SHOWN = 2_000, 6

Params = dict[str, Any]

# What stands around both players, from the transformation that makes their steps.
AROUND: Mapping[str, Callable[[optax.GradientTransformation, Config], Any]] = {
    "adam": lambda inner, config: inner,
    "lookahead": lookahead_around,
    "multilayer_lookahead": layers_around,
}


# The players.


class GAN(nnx.Module):
    """Both players.

    Attributes:
      discriminator: images (batch, pixels) to logits (batch, 1).
      generator: noise (batch, NOISE) to images before the hyperbolic tangent.
    """

    def __init__(self, pixels: int, *, rngs: nnx.Rngs):
        self.discriminator = MLP((pixels, WIDTH, WIDTH, 1), rngs=rngs)
        self.generator = MLP((NOISE, WIDTH, WIDTH, pixels), rngs=rngs)

    def losses(self, images: jax.Array, noise: jax.Array) -> dict[str, jax.Array]:
        """Returns the loss of each player, that of the generator in its non-saturating form.

        Goodfellow et al., Generative Adversarial Nets, https://arxiv.org/abs/1406.2661, 2014.
        """
        real = self.discriminator(images)
        fake = self.discriminator(jnp.tanh(self.generator(noise)))
        return {
            "discriminator": nnx.softplus(-real).mean() + nnx.softplus(fake).mean(),
            "generator": nnx.softplus(-fake).mean(),
        }


def losses_and_gradients(
    graph: nnx.GraphDef, params: Params, images: jax.Array, noise: jax.Array
) -> tuple[dict[str, jax.Array], Params]:
    """Returns the loss of each player, and its gradient with respect to the player's params."""

    def loss(own: Any, player: str) -> tuple[jax.Array, dict[str, jax.Array]]:
        network = nnx.merge(graph, params | {player: own}, copy=True)
        losses = network.losses(images, noise)
        return losses[player], losses

    gradients, losses = {}, {}
    for player in PLAYERS:
        gradients[player], losses = jax.grad(loss, has_aux=True)(params[player], player)
    return losses, gradients


@partial(jax.jit, static_argnums=0)
def generate(graph: nnx.GraphDef, params: Params, noise: jax.Array) -> jax.Array:
    """Returns the images (batch, pixels) that the generator makes of noise."""
    return jnp.tanh(nnx.merge(graph, params, copy=True).generator(noise))


class State(NamedTuple):
    """What a step takes and returns.

    Attributes:
      params: of both players.
      average: exponential moving average of the generator's.
      opt_state: the optimizer's state.
    """

    params: Params
    average: Any
    opt_state: optax.OptState


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def take_steps(
    graph: nnx.GraphDef,
    tx: optax.GradientTransformationExtraArgs,
    decay: float,
    state: State,
    images: jax.Array,
    batches: jax.Array,
    key: jax.Array,
) -> tuple[State, dict[str, jax.Array]]:
    """Takes a step for each batch.

    Args:
      graph: of the network.
      tx: makes a step of both players.
      decay: of the moving average.
      state: before the first step.
      images: of shape (examples, pixels).
      batches: indices of images, of shape (steps, batch).
      key: random key of the noise, which is the same for both players in a step.

    Returns:
      The state, and the mean loss of each player.
    """

    def step(
        state: State, of_step: tuple[jax.Array, jax.Array]
    ) -> tuple[State, dict[str, jax.Array]]:
        batch, key = of_step
        noise = jax.random.normal(key, (len(batch), NOISE))

        def play(params: Params) -> tuple[dict[str, jax.Array], Params]:
            return losses_and_gradients(graph, params, images[batch], noise)

        losses, gradients = play(state.params)
        updates, opt_state = tx.update(
            gradients, state.opt_state, state.params, grad_fn=lambda params, _: play(params)[1]
        )
        params = optax.apply_updates(state.params, updates)
        average = optax.incremental_update(params["generator"], state.average, 1 - decay)
        return State(params, average, opt_state), losses

    state, losses = jax.lax.scan(step, state, (batches, jax.random.split(key, len(batches))))
    return state, jax.tree.map(jnp.mean, losses)


# A run.


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
      SettingError: as `images_of` and `run_of` do.
    """
    dataset = shrunk(images_of(dataset), shrink)
    one = run_of(replace(config, model="softmax"), dataset, **options)
    inner = alternating(inner_of(config)(one.stages.schedule), PLAYERS)
    return GanRun(
        **{field.name: getattr(one, field.name) for field in fields(Run)}
        | {
            "model": model_of(dataset),
            "tx": AROUND[config.optimizer](inner, config),
            "gradients_per_step": len(PLAYERS),
            "judge": judge_of(dataset),
            "ema_decay": config.ema_decay,
        }
    )


def train_players(
    run: GanRun, seeds: Sequence[int], *, stop: Stop, on_step: OnStep, **_: Any
) -> Iterator[Epoch]:
    """Trains both players from a seed.

    Yields:
      The epochs. Measures without a prefix are those of the slow weights, where there are any;
      then `fast_` stands before those of the fast weights, and `average_` before those of the
      moving average. The last record has `best`, the lowest distance of the run after a step, and
      whether the run has `collapsed`.
    """
    (seed,) = seeds
    state = begin(run, seed)
    images = jnp.asarray(flat(run.dataset, run.dataset.train_images))
    batches = run.dataset.train_batches(seed, run.batch_size)
    distances: dict[str, list[float]] = {}
    for epoch in range(run.epochs + 1):
        started, end, losses = time.perf_counter(), run.end_of(epoch), {}
        count = end - run.end_of(epoch - 1) if epoch else 0
        if count:
            chosen = np.stack(list(itertools.islice(batches, count)))
            key = jax.random.fold_in(jax.random.key(seed), epoch)
            state, means = take_steps(
                run.model.graph, run.tx, run.ema_decay, state, images, chosen, key
            )
            losses = {
                "batch_loss": float(means["discriminator"]),
                "generator_loss": float(means["generator"]),
            }
            on_step(end, losses["batch_loss"])
        seconds = time.perf_counter() - started
        record: Record = {
            "seed": seed,
            "epoch": epoch,
            "steps": end,
            "gradients": end * run.gradients_per_step,
            "learning_rate": run.learning_rate(end),
            "stage": run.stages.stage_of(end),
            **losses,
        }
        for prefix, weights in weights_of(run, state).items():
            made = np.asarray(generate(run.model.graph, weights, noise_of_the_judge()))
            distance, classes = run.judge.sees(made)
            along = distances.setdefault(prefix, [])
            record[f"{prefix}distance"] = distance
            if prefix == "":
                record["images"] = as_text(made[:SHOWN])
            if epoch > 0:
                along.append(distance)
            if epoch == run.epochs:
                seen = classes_seen(classes, run.dataset.classes)
                record[f"{prefix}classes"] = seen
                record[f"{prefix}best"] = min(along)
                record[f"{prefix}collapsed"] = int(has_collapsed(along, seen, run.dataset.classes))
        speed = count * run.batch_size / seconds
        yield Epoch(record, {"seconds": seconds, "images_per_second": speed}, state)
        if stop.requested and epoch < run.epochs:
            message = f"stopped after {end} of {run.steps} steps"
            raise Stopped(message, stop.number, saved=False)


def begin(run: GanRun, seed: int) -> State:
    """Returns the state before the first step."""
    both, _ = jax.jit(init_weights, static_argnums=0)(run.model, seed)
    params = {player: both[player] for player in PLAYERS}
    average = jax.tree.map(jnp.copy, params["generator"])  # The state is donated.
    return State(params, average, run.tx.init(params))


def weights_of(run: GanRun, state: State) -> dict[str, Any]:
    """Returns the params of both players that are judged, by the prefix of their measures."""
    fast = state.params
    weights = {"": fast}
    if run.slow_params is not None:
        weights = {"": run.slow_params(state.opt_state, fast), "fast_": fast}
    return weights | {"average_": fast | {"generator": state.average}}


def noise_of_the_judge() -> jax.Array:
    """Returns the noise of the images that are judged, which is the same in every run."""
    return jax.random.normal(jax.random.key(0), (JUDGED, NOISE))


def as_text(images: np.ndarray) -> str:
    """Returns images as base64 of a byte per pixel, as records hold them; black for no number."""
    pixels = np.round(127.5 * (np.nan_to_num(images, nan=-1.0) + 1))
    return base64.b64encode(np.uint8(pixels)).decode()


def from_text(text: str) -> np.ndarray:
    """Returns the images that `as_text` has written, of shape (SHOWN, pixels)."""
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(SHOWN, -1)
