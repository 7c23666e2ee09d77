"""Training from many seeds with many settings of an optimizer in one compiled program.

    problem = Problem(load("digits"), steps=1_000)
    errors = problem.scores("lookahead", [{"learning_rate": 0.1}, ...], range(50), held_out=True)

Every seed draws its own split of the images, its flipped labels, initial weights and batches,
which are the same for all optimizers and settings. As all seeds split the same images, the test
images of one have decided the tuning of another; of its own seed, none has. A regime that draws,
trains or measures something else is a subclass that says so.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.config import Config
from experiments.data import Dataset, batches
from experiments.models import NETWORKS
from experiments.optimizers import OPTIMIZERS
from experiments.regimes.engine import Setting
from experiments.schedules import stages_of
from experiments.steps import Model, State, eval_step, init_weights, train_step

# Settings that a program is compiled for; all others may differ from run to run in it.
STATIC = ("momentum", "sync_period", "anchor_period")


Static = tuple[tuple[str, Any], ...]


class Draw(NamedTuple):
    """What a seed draws; of several seeds, stacked.

    Attributes:
      labels: of all images, with the flipped ones of the training images; int32 (images,).
      batches: indices of training images; int32 (steps, batch).
      evaluated: indices of the images that are evaluated; int32 (images evaluated or more,).
      counted: which of these count; bool, likewise.
      params: initial weights.
      stats: running statistics, of which a small network has none.
    """

    labels: Any
    batches: Any
    evaluated: Any
    counted: Any
    params: Any
    stats: Any


@dataclass(frozen=True, eq=False)
class Problem:
    """A data set, a network and the circumstances in which it is trained.

    Attributes:
      dataset: whose training and test images are put together, and split anew by each seed.
      base: the configuration that settings are changes of; it has network and batch size.
      steps: of a run.
      train_images: in a seed's training data.
      held_out: images that tuning is decided by.
      test_images: at most; after those for training and tuning, the others are for testing.
      flipped: the fraction of the training labels that are another class's.
      at_once: runs that are trained together, so that one compiled program serves tuning and
        fresh seeds.
      programs: that are compiled, by the method and what they are compiled for.
    """

    dataset: Dataset
    base: Config
    steps: int
    train_images: int = 600
    held_out: int = 400
    test_images: int = 2_000
    flipped: float = 0.0
    at_once: int = 50
    programs: dict[tuple[str, Static], Callable[..., jax.Array]] = field(
        default_factory=dict, init=False
    )

    @cached_property
    def model(self) -> Model:
        """The network without its weights."""
        make = partial(NETWORKS[self.base.model], self.dataset.image_shape, self.dataset.classes)
        return Model(make, self.dataset, name=self.base.model)

    @cached_property
    def pool(self) -> tuple[np.ndarray, np.ndarray]:
        """All images, and their labels."""
        pools = [self.dataset.pool(split) for split in ("train", "test")]
        images, labels = (np.concatenate(arrays) for arrays in zip(*pools, strict=True))
        return images, labels

    @cached_property
    def first_weights(self) -> Callable[[int], tuple[Any, Any]]:
        """Initial weights, from a seed."""
        return jax.jit(partial(init_weights, self.model))

    def split(self, seed: int) -> list[np.ndarray]:
        """Returns the indices of the images for training, for tuning and for testing."""
        order = np.random.default_rng((seed, 0)).permutation(len(self.pool[1]))
        train, held, rest = np.split(order, np.cumsum([self.train_images, self.held_out]))
        return [train, held, rest[: self.test_images]]

    def labels(self, seed: int, train: np.ndarray) -> Any:
        """Returns the labels of all images, with the flipped ones of a seed's training images."""
        labels = self.pool[1].copy()
        rng = np.random.default_rng((seed, 1))
        flips = rng.permutation(train)[: round(self.flipped * len(train))]
        shift = rng.integers(1, self.dataset.classes, len(flips))
        labels[flips] = (labels[flips] + shift) % self.dataset.classes
        return labels

    def draw(self, seed: int, *, held_out: bool) -> Draw:
        """Returns what a seed draws, to be evaluated on held-out data or on the test data."""
        train, held, test = self.split(seed)
        positions = batches(seed, len(train), self.base.batch_size)
        chosen = np.stack(list(itertools.islice(positions, self.steps)))
        evaluated = held if held_out else test
        size = max(len(held), len(test))  # One compiled program serves both.
        return Draw(
            self.labels(seed, train),
            train[chosen],
            np.resize(evaluated, size),
            np.arange(size) < len(evaluated),
            *self.first_weights(seed),
        )

    def scores(
        self, method: str, settings: Sequence[Setting], seeds: Sequence[int], held_out: bool
    ) -> np.ndarray:
        """Trains, and returns the measure of the weights that the method evaluates.

        Args:
          method: a name in `optimizers.OPTIMIZERS`.
          settings: changes of `base`.
          seeds: to train from with each.
          held_out: whether to evaluate held-out data, or the test data.

        Returns:
          What `measure` returns, of shape (settings, seeds); NaN where the weights are not finite.
        """
        draws = [self.draw(seed, held_out=held_out) for seed in seeds]
        found = np.empty((len(settings), len(seeds)))
        for fixed, mine in by_static_part(settings).items():
            train = self.compiled(method, fixed)
            runs = list(itertools.product(mine, range(len(seeds))))
            for start in range(0, len(runs), self.at_once):
                some = runs[start : start + self.at_once]
                full = [*some, *[some[-1]] * (self.at_once - len(some))]
                traced = stacked(traced_part(settings[n]) for n, _ in full)
                scores = train(traced, stacked(draws[s] for _, s in full))
                for run, score in zip(some, np.asarray(scores), strict=False):
                    found[run] = score
        return found

    def compiled(self, method: str, fixed: Static) -> Callable[[Setting, Draw], jax.Array]:
        """Returns the scores of runs as a function of what may differ from run to run."""

        def one(traced: Setting, draw: Draw) -> jax.Array:
            return self.score(method, {**dict(fixed), **traced}, draw)

        key = (method, fixed)
        if key not in self.programs:
            self.programs[key] = jax.jit(jax.vmap(one))
        return self.programs[key]

    def score(self, method: str, setting: Setting, draw: Draw) -> jax.Array:
        """Trains once, and returns the measure; all settings but what is static may be traced."""
        row = OPTIMIZERS[method]
        config = self.config_of(method, setting)
        tx = row.make(config, stages_of(config, self.steps, epoch=1))
        state = State(
            params=draw.params,
            stats=draw.stats,
            opt_state=tx.init(draw.params),
            key=jax.random.key(0),  # Nothing is random in these networks.
            step=jnp.zeros((), jnp.int32),
            loss=jnp.zeros(()),
            correct=jnp.zeros(()),
        )
        state = self.trained(tx, state, draw)
        params = state.params
        if row.slow_params is not None:
            params = row.slow_params(state.opt_state, params)
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]
        score = self.measure(params, state.stats, draw)
        return jnp.where(jnp.stack(finite).all(), score, jnp.nan)

    def config_of(self, method: str, setting: Setting) -> Config:
        """Returns the configuration of a run, in which SGD with momentum has (1 − μ) η."""
        config = replace(self.base, optimizer=method, **setting)
        momentum = 0.0 if method == "schedule_free" else config.momentum
        return replace(config, learning_rate=(1 - momentum) * config.learning_rate)

    def images_and(self, labels: Any) -> tuple[jax.Array, Any]:
        """Returns all images, and what a seed has for their labels."""
        return jnp.asarray(self.pool[0]), labels

    def trained(self, tx: optax.GradientTransformation, state: State, draw: Draw) -> State:
        """Trains from a state on all batches."""
        step = partial(train_step, self.model, tx, self.images_and(draw.labels))
        return jax.lax.scan(step, state, draw.batches)[0]

    def measure(self, params: Any, stats: Any, draw: Draw) -> jax.Array:
        """Returns the error in % on the images that are evaluated."""
        pool = self.images_and(draw.labels)
        _, correct = eval_step(self.model, pool, params, stats, draw.evaluated, draw.counted)
        return 100 * (1 - correct / draw.counted.sum())


def by_static_part(settings: Sequence[Setting]) -> dict[Static, list[int]]:
    """Returns which settings share a compiled program, by what it is compiled for."""
    groups: dict[Static, list[int]] = {}
    for n, setting in enumerate(settings):
        fixed = tuple((name, value) for name, value in setting.items() if name in STATIC)
        groups.setdefault(fixed, []).append(n)
    return groups


def traced_part(setting: Setting) -> dict[str, Any]:
    """Returns the other settings, as arrays."""
    others = {name: value for name, value in setting.items() if name not in STATIC}
    return jax.tree.map(np.float32, others)


def stacked(trees: Iterable[Any]) -> Any:
    """Stacks the leaves of trees."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
