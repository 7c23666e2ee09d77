"""The compared optimizers, the params they update, and their compiled programs."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
      loss: the loss passed to every update, if the transformation needs one.
    """

    name: str
    transform: optax.GradientTransformation
    pair: bool = False
    loss: float | None = None

    def start(self, params: Any) -> tuple[Any, Any]:
        """New buffers with the params in the form the transformation needs, and its state."""
        own = optax.LookaheadParams(_copy(params), _copy(params)) if self.pair else _copy(params)
        return own, self.transform.init(own)

    def step(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """One update, as in a training loop."""
        told = {} if self.loss is None else {"value": self.loss}
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
        Contender("lookahead", slrla_jax.lookahead(inner, SYNC_PERIOD, SLOW_STEP_SIZE)),
        Contender(
            "multilayer_lookahead",
            slrla_jax.multilayer_lookahead(inner, (SYNC_PERIOD,) * 2, (SLOW_STEP_SIZE,) * 2),
        ),
        Contender("slrla", slrla_jax.slrla(make, stages)),
        Contender("primal_averaging", slrla_jax.primal_averaging(inner)),
        Contender("optax.lookahead", optax.lookahead(inner, SYNC_PERIOD, SLOW_STEP_SIZE), True),
    ]
    if optimizer == "momentum":
        # The only transformation whose anchor is the slow weights themselves.
        shared = slrla_jax.slrla_sgd(
            LEARNING_RATE, BETA, None, SYNC_PERIOD, SLOW_STEP_SIZE, MOMENTUM
        )
        found.insert(3, Contender("slrla_sgd", shared))
        # Two transformations that replace the inner optimizer.
        adaloss = slrla_jax.adaloss(LEARNING_RATE, momentum=MOMENTUM)
        adagrad_norm = slrla_jax.adagrad_norm(LEARNING_RATE, momentum=MOMENTUM)
        found.insert(-1, Contender("adaloss", adaloss, loss=1.0))
        found.insert(-1, Contender("adagrad_norm", adagrad_norm))
    if optimizer == "adam":
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
    """A contender's update, compiled with params and state donated, and its current arguments."""

    def __init__(self, contender: Contender, params: Any, grads: Any):
        self.params, self.state = contender.start(params)
        self.grads = grads
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # about donated buffers that cannot be used
            step = jax.jit(contender.step, donate_argnums=(1, 2))
            self.compiled = step.lower(grads, self.state, self.params).compile()

    def run(self, steps: int) -> None:
        """Runs some steps and waits for them."""
        for _ in range(steps):
            self.state, self.params = self.compiled(self.grads, self.state, self.params)
        jax.block_until_ready((self.state, self.params))

    def check_donation(self) -> None:
        """Runs a step; raises if a buffer of the old params or state survives it."""
        before = jax.tree.leaves((self.state, self.params))
        self.run(1)
        if not all(leaf.is_deleted() for leaf in before):
            raise RuntimeError("Some params or state were not donated.")


def program_facts(compiled: Any) -> dict[str, Any]:
    """The compiler's figures for a program.

    Returns:
      In bytes: `temporaries`, `accessed` (by all instructions; None if the backend does not
      report it) and `least` (arguments and results, each once). As counts: the `fusions` and
      `copies` that make arrays. Scalars are not counted, nor are transfers to and from the
      faster memory of a TPU (marked S(1)).
    """
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    made = re.findall(r"= (\(.*?\)|\S+) (fusion|copy|copy-start)\(", compiled.as_text())
    kinds = [
        kind
        for result, kind in made
        if re.search(r"\[\d", result) and (kind == "fusion" or "S(1)" not in result)
    ]
    return {
        "temporaries": memory.temp_size_in_bytes,
        "accessed": cost.get("bytes accessed") if cost else None,
        "least": memory.argument_size_in_bytes + memory.output_size_in_bytes,
        "fusions": kinds.count("fusion"),
        "copies": len(kinds) - kinds.count("fusion"),
    }


def tree_bytes(tree: Any) -> int:
    """The total size of all leaves in bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _copy(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
