"""Time of a training step with Lookbehind, compared with the same step with 2k gradients.

    python benchmarks/lookbehind.py --json benchmarks/results/lookbehind.json
    python benchmarks/lookbehind.py --small                                    # a smoke test
    python benchmarks/lookbehind.py --show benchmarks/results/lookbehind.json  # the tables again

A training step is one jit-compiled function, with all of its state donated: loss and gradient on a
batch, BatchNorm statistics, and update. The network is the small ResNet of the examples.

In each of its k ascent steps, Lookbehind's released code evaluates a gradient to ascend with and,
at the point it reaches, a gradient to descend with. The next ascent step starts at that point, so
its first gradient repeats the previous descent gradient. `slrla_jax.lookbehind` evaluates it only
once, which makes k + 1 gradients instead of 2k. If only gradient evaluations took time, a step
would take (k + 1)/2k of the time: 0.75, 0.60 and 0.55 for k = 2, 5 and 10.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from contenders import LEARNING_RATE, MOMENTUM
from experiments.models import ResNet
from flax import nnx
from tables import markdown
from timing import circumstances, heading, spread, take_turns

import slrla_jax

RHO = 0.05
SLOW_STEP_SIZE = 0.5
CLASSES = 10
Batch = tuple[jax.Array, jax.Array]
STEPS_PER_TIMING = 5


class State(NamedTuple):
    """The state of training.

    Attributes:
      params: the trained weights.
      stats: the running statistics of BatchNorm.
      opt_state: the optimizer's state.
    """

    params: Any
    stats: Any
    opt_state: optax.OptState


class Problem:
    """A network, a batch, and the compared training steps."""

    def __init__(self, widths: tuple[int, ...], size: int, batch_size: int, seed: int):

        @jax.jit
        def init() -> Any:
            rngs = nnx.Rngs(jax.random.key(seed, impl="rbg"))  # Compiles faster than the default.
            model = ResNet((size, size, 1), CLASSES, rngs=rngs, widths=widths)
            graph, *weights = nnx.split(model, nnx.Param, ...)
            return graph, *nnx.as_pure(weights)

        self.graph, self.params, self.stats = init()
        rng = np.random.default_rng(seed)
        images = rng.standard_normal((batch_size, size, size, 1)).astype(np.float32)
        labels = rng.integers(CLASSES, size=batch_size)
        self.batch = jax.device_put((images, labels))
        self.inner = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
        self.gradient = jax.grad(self._loss, has_aux=True)

    def _loss(self, params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
        model = nnx.merge(self.graph, params, stats, copy=True)
        loss = optax.softmax_cross_entropy_with_integer_labels(model(images, train=True), labels)
        return loss.mean(), nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

    def step(
        self, tx: optax.GradientTransformation, state: State, batch: Batch, same_batch: Batch
    ) -> State:
        """A step with this package: `tx` calls `grad_fn` for all gradients but the first."""
        del same_batch
        grads, stats = self.gradient(state.params, state.stats, *batch)
        updates, opt_state = optax.with_extra_args_support(tx).update(
            grads,
            state.opt_state,
            state.params,
            grad_fn=lambda params, i: self.gradient(params, state.stats, *batch)[0],
        )
        return State(optax.apply_updates(state.params, updates), stats, opt_state)

    def released_step(
        self, ascent_steps: int, state: State, batch: Batch, same_batch: Batch
    ) -> State:
        """A step as in the released code: 2k gradients, all of which update the statistics."""
        theta, stats, opt_state = state
        behind = fast = theta
        for _ in range(ascent_steps):
            grads, stats = self.gradient(behind, stats, *batch)
            factor = RHO / optax.global_norm(grads)
            behind = jax.tree.map(lambda b, g: b + factor * g, behind, grads)  # noqa: B023
            grads, stats = self.gradient(behind, stats, *same_batch)
            updates, opt_state = self.inner.update(grads, opt_state, fast)
            fast = optax.apply_updates(fast, updates)
        params = jax.tree.map(lambda v, t: t + SLOW_STEP_SIZE * (v - t), fast, theta)
        return State(params, stats, opt_state)

    def merged_step(
        self, ascent_steps: int, state: State, batch: Batch, same_batch: Batch
    ) -> State:
        """The same step, in which XLA can recognise the repeated gradients."""
        del same_batch
        return self.released_step(ascent_steps, state, batch, batch)

    def contenders(
        self, ascent_steps: Sequence[int]
    ) -> dict[str, tuple[int, Callable[..., State]]]:
        """The number of gradients per step and the step itself, by name."""
        found = {
            "sgd": (1, partial(self.step, self.inner)),
            "sam": (2, partial(self.step, slrla_jax.sam(self.inner, RHO))),
        }
        for k in ascent_steps:
            tx = slrla_jax.lookbehind(self.inner, k, RHO, SLOW_STEP_SIZE)
            found[f"lookbehind, k {k}"] = (k + 1, partial(self.step, tx))
            found[f"2k form, k {k}"] = (2 * k, partial(self.released_step, k))
            found[f"2k form merged, k {k}"] = (k + 1, partial(self.merged_step, k))
        return found


class Program:
    """A training step, compiled with its state donated, and its current state."""

    def __init__(self, step: Callable[..., State], problem: Problem):
        # XLA merges repeated gradient evaluations if it can prove that they are equal, which
        # it cannot if they read different copies of the batch.
        self.batches = problem.batch, jax.tree.map(lambda leaf: leaf.copy(), problem.batch)
        start = State(problem.params, problem.stats, problem.inner.init(problem.params))
        self.state = jax.tree.map(lambda leaf: leaf.copy(), start)
        self.compiled = jax.jit(step, donate_argnums=0).lower(self.state, *self.batches).compile()

    @property
    def flops(self) -> float:
        """The number of operations of a step, by the compiler's count."""
        return self.compiled.cost_analysis()["flops"]

    def run(self, steps: int) -> None:
        """Runs some steps and waits for them."""
        for _ in range(steps):
            self.state = self.compiled(self.state, *self.batches)
        jax.block_until_ready(self.state)


def main() -> None:
    """Runs the benchmark with the settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, help="timings per contender (default: 20, or 2 with --small)"
    )
    parser.add_argument("--seed", type=int, default=0, help="for values and order (default: 0)")
    parser.add_argument("--small", action="store_true", help="a tiny network, as a smoke test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of a file")
    flags = parser.parse_args()

    if flags.show:
        print(report(json.loads(flags.show.read_text())))
        return
    results = measure(flags.rounds or (2 if flags.small else 20), flags.seed, flags.small)
    print(report(results))
    if flags.json:
        flags.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(rounds: int, seed: int, small: bool) -> dict[str, Any]:
    """Takes all measurements, and records the conditions."""
    about = circumstances("flax")
    ascent_steps = (2,) if small else (2, 5, 10)
    widths, size, batch_size = ((2,), 4, 4) if small else ((16, 32), 14, 64)
    problem = Problem(widths, size, batch_size, seed)
    contenders = problem.contenders(ascent_steps)
    programs = {name: Program(step, problem) for name, (_, step) in contenders.items()}
    check(programs, ascent_steps)
    return {
        **about,
        "seed": seed,
        "rounds": rounds,
        "steps_per_timing": STEPS_PER_TIMING,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(problem.params)),
        "image_size": size,
        "batch_size": batch_size,
        "small": small,
        "ascent_steps": ascent_steps,
        "gradients": {name: gradients for name, (gradients, _) in contenders.items()},
        "flops": {name: program.flops for name, program in programs.items()},
        "milliseconds": take_turns(
            {name: program.run for name, program in programs.items()},
            rounds,
            STEPS_PER_TIMING,
            np.random.default_rng(seed),
        ),
    }


def check(programs: dict[str, Program], ascent_steps: Sequence[int]) -> None:
    """Runs a step; raises if the two forms of Lookbehind arrive at different weights."""
    for program in programs.values():
        program.run(1)
    for k in ascent_steps:
        ours, theirs = (
            programs[f"{form}, k {k}"].state.params for form in ("lookbehind", "2k form")
        )
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), ours, theirs)


def report(results: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    size = results["image_size"]
    parts = [
        f"{heading(results)} A ResNet of {results['parameters']:,} parameters, batches of "
        f"{results['batch_size']} images of {size}×{size}; {results['rounds']} rounds of "
        f"{results['steps_per_timing']} steps, seed {results['seed']}."
    ]
    if results["small"]:
        parts.append("**The network is tiny: these are not measurements.**")
    return "\n\n".join([*parts, steps_table(results), forms_table(results)])


def steps_table(results: dict[str, Any]) -> str:
    """Gradients, operations and time of each contender, and the ratios to plain SGD."""
    flops, times = results["flops"], results["milliseconds"]
    rows = [
        [
            name,
            gradients,
            f"{flops[name] / flops['sgd']:.2f}",
            f"{np.median(times[name]):.1f}",
            *spread(times, name, "sgd"),
        ]
        for name, gradients in results["gradients"].items()
    ]
    return markdown(["", "gradients", "flops / sgd", "ms", "ms / sgd", "quartiles"], rows)


def forms_table(results: dict[str, Any]) -> str:
    """The ratio of our form to the 2k form: expected, in operations, and in time."""
    flops, times = results["flops"], results["milliseconds"]
    rows = []
    for k in results["ascent_steps"]:
        ours, theirs = f"lookbehind, k {k}", f"2k form, k {k}"
        rows.append(
            [
                f"k {k}",
                f"{(k + 1) / (2 * k):.2f}",
                f"{flops[ours] / flops[theirs]:.2f}",
                *spread(times, ours, theirs),
            ]
        )
    header = ["lookbehind / 2k form", "(k + 1)/2k", "flops", "time", "quartiles"]
    return markdown(header, rows)


if __name__ == "__main__":
    main()
