"""The compared optimizers, the params they update, and their compiled programs."""

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import slrla_jax

SYNC_PERIOD = 5
SLOW_STEP_SIZE = 0.8
LEARNING_RATE = 1e-3
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
BETA = 0.4
ANCHOR_PERIOD = 100

OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "momentum": lambda learning_rate: optax.sgd(learning_rate, momentum=MOMENTUM),
    "adam": optax.adam,
    "adamw": lambda learning_rate: optax.adamw(learning_rate, weight_decay=WEIGHT_DECAY),
}


@dataclass(frozen=True)
class Contender:
    """A transformation around one of the optimizers.

    Attributes:
      name: its name in the tables.
      transform: the transformation.
      pair: whether its params are optax's pair of fast and slow weights.
      extra: what else is passed to every update.
      gradients: the number of gradients that a training step takes with it.
      full_sync: the value of `sync` with which all slow weights sync, if it takes one.
      sync: the value of `sync` that is passed to every update; None for automatic syncs.
    """

    name: str
    transform: optax.GradientTransformation
    pair: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    gradients: int = 1
    full_sync: bool | int | None = None
    sync: bool | int | None = None

    def start(self, params: Any) -> tuple[Any, Any]:
        """New buffers with the params in the form the transformation needs, and its state."""
        own = optax.LookaheadParams(_copy(params), _copy(params)) if self.pair else _copy(params)
        return own, self.transform.init(own)

    def step(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """One update, as in a training loop."""
        told = self.extra if self.sync is None else self.extra | {"sync": self.sync}
        updates, state = self.transform.update(grads, state, params, **told)
        return state, optax.apply_updates(params, updates)


def contenders(optimizer: str) -> list[Contender]:
    """The inner optimizer alone, followed by everything that wraps or replaces it."""
    make = OPTIMIZERS[optimizer]
    inner = make(LEARNING_RATE)
    stages = [
        slrla_jax.Stage(20, LEARNING_RATE * 0.2**q, BETA, SYNC_PERIOD, SLOW_STEP_SIZE)
        for q in range(3)
    ]
    found = [
        Contender("inner", inner),
        Contender(
            "lookahead", slrla_jax.lookahead(inner, SYNC_PERIOD, SLOW_STEP_SIZE), full_sync=True
        ),
        Contender(
            "multilayer_lookahead",
            slrla_jax.multilayer_lookahead(inner, (SYNC_PERIOD,) * 2, (SLOW_STEP_SIZE,) * 2),
            full_sync=2,
        ),
        Contender("slrla", slrla_jax.slrla(make, stages), full_sync=True),
        Contender(
            "stagewise_prox", optax.chain(slrla_jax.stagewise_prox(BETA, ANCHOR_PERIOD), inner)
        ),
        Contender("two_loop", slrla_jax.two_loop(inner, optax.adam(LEARNING_RATE), SYNC_PERIOD)),
        Contender("snoo", slrla_jax.snoo(inner, SYNC_PERIOD), full_sync=True),
        Contender("primal_averaging", slrla_jax.primal_averaging(inner)),
        Contender(
            "lookbehind",
            slrla_jax.lookbehind(inner),
            # In place of a network's, the gradient of ½‖v‖², which costs nothing.
            extra={"grad_fn": lambda params, i: params},
            gradients=3,
        ),
        Contender("optax.lookahead", optax.lookahead(inner, SYNC_PERIOD, SLOW_STEP_SIZE), True),
    ]
    if optimizer == "momentum":
        settings = (SYNC_PERIOD, SLOW_STEP_SIZE, MOMENTUM)
        # The only transformation whose anchor is the slow weights themselves.
        shared = slrla_jax.slrla_sgd(LEARNING_RATE, BETA, None, *settings)
        own = slrla_jax.slrla_sgd(LEARNING_RATE, BETA, ANCHOR_PERIOD, *settings)
        found[3:3] = [
            Contender("slrla_sgd", shared, full_sync=True),
            Contender("slrla_sgd-own-anchor", own, full_sync=True),
        ]
        # Two transformations that replace the inner optimizer.
        adaloss = slrla_jax.adaloss(LEARNING_RATE, momentum=MOMENTUM)
        adagrad_norm = slrla_jax.adagrad_norm(LEARNING_RATE, momentum=MOMENTUM)
        found[-1:-1] = [
            Contender("adaloss", adaloss, extra={"value": 1.0}),
            Contender("adagrad_norm", adagrad_norm),
        ]
    else:
        found.insert(-1, Contender("adabound", slrla_jax.adabound(LEARNING_RATE)))
    return found


def resnet34(
    blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000
) -> dict[str, tuple[int, ...]]:
    """Shapes of the params of a ResNet of basic blocks, by name: 21.8 M in 110 leaves."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, size: int, inputs: int, outputs: int) -> None:
        shapes[f"{name}/kernel"] = (size, size, inputs, outputs)
        shapes[f"{name}/norm/scale"] = shapes[f"{name}/norm/bias"] = (outputs,)

    convolution("stem", 7, 3, width)
    inputs = width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage
        for block in range(count):
            convolution(f"stage{stage}/block{block}/conv0", 3, inputs, outputs)
            convolution(f"stage{stage}/block{block}/conv1", 3, outputs, outputs)
            if inputs != outputs:
                convolution(f"stage{stage}/block{block}/shortcut", 1, inputs, outputs)
            inputs = outputs
    shapes["head/kernel"], shapes["head/bias"] = (inputs, classes), (classes,)
    return shapes


def random_tree(
    shapes: dict[str, tuple[int, ...]], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Random float32 values with standard deviation 0.1."""
    return {
        name: (0.1 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


class Program:
    """A contender's steps, compiled with params and state donated, and their current arguments.

    Args:
      contender: the contender.
      params: the initial params.
      grads: the gradients of every step.
      manual: whether the steps of a cycle are two programs, `sync=False` for all but the last.
    """

    def __init__(self, contender: Contender, params: Any, grads: Any, manual: bool = False):
        self.params, self.state = contender.start(params)
        self.grads = grads
        if manual:
            between = self._compile(replace(contender, sync=False))
            last = self._compile(replace(contender, sync=contender.full_sync))
            self._cycle = itertools.cycle([between] * (SYNC_PERIOD - 1) + [last])
        else:
            self.compiled = self._compile(contender)
            self._cycle = itertools.repeat(self.compiled)

    def _compile(self, contender: Contender) -> jax.stages.Compiled:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # about donated buffers that cannot be used
            step = jax.jit(contender.step, donate_argnums=(1, 2))
            return step.lower(self.grads, self.state, self.params).compile()

    def run(self, steps: int) -> None:
        """Runs some steps and waits for them."""
        for compiled in itertools.islice(self._cycle, steps):
            self.state, self.params = compiled(self.grads, self.state, self.params)
        jax.block_until_ready((self.state, self.params))

    def check_donation(self) -> None:
        """Runs a step; raises if an array of the old params or state survives it.

        A scalar may: that of automatic syncs is not read where syncs are manual.
        """
        before = jax.tree.leaves((self.state, self.params))
        self.run(1)
        if not all(leaf.is_deleted() for leaf in before if leaf.ndim):
            raise RuntimeError("Some params or state were not donated.")


def tree_bytes(tree: Any) -> int:
    """The total size of all leaves in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _copy(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
