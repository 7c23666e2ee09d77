"""Slow weights on the device and in the memory of the host: time, memory, and the same results.

    python benchmarks/host_memory.py --json benchmarks/results/host_memory.json   # on a GPU or TPU
    python benchmarks/host_memory.py --small                                      # a smoke test

Lookahead and SNOO with manual syncs take turns with `memory_kind=None` and `"pinned_host"`, over
the params of a ResNet-34. Steps that do not sync and steps that do are timed apart. On a CPU both
memories are the same.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from contenders import (
    LEARNING_RATE,
    OPTIMIZERS,
    SLOW_STEP_SIZE,
    random_tree,
    resnet34,
    tree_bytes,
)
from tables import TITLES, markdown
from timing import circumstances, heading, take_turns

import slrla_jax

HOST = "pinned_host"
MAKERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "lookahead": lambda inner, **kept: slrla_jax.lookahead(inner, None, SLOW_STEP_SIZE, **kept),
    "snoo": lambda inner, **kept: slrla_jax.snoo(inner, None, **kept),
}


class Run:
    """Steps of a transformation with manual syncs, and their current arguments."""

    def __init__(self, tx: optax.GradientTransformation, values: Any, grads: Any):
        before = held_on_device()
        self.params = jax.tree.map(jax.numpy.array, values)
        self.state = tx.init(self.params)
        jax.block_until_ready((self.state, self.params))
        after = held_on_device()
        self.held = None if before is None or after is None else after - before
        shardings = jax.tree.map(lambda x: x.sharding, (self.state, self.params))

        @functools.partial(
            jax.jit, donate_argnums=(1, 2), static_argnames="sync", out_shardings=shardings
        )
        def step(grads: Any, state: Any, params: Any, sync: bool) -> tuple[Any, Any]:
            updates, state = tx.update(grads, state, params, sync=sync)
            return state, optax.apply_updates(params, updates)

        self.step, self.grads = step, grads

    def steps(self, steps: int, sync: bool) -> None:
        """Makes some steps, all with or all without a sync, and waits for them."""
        for _ in range(steps):
            self.state, self.params = self.step(self.grads, self.state, self.params, sync=sync)
        jax.block_until_ready((self.state, self.params))


def held_on_device() -> int | None:
    """The bytes that are allocated on the device; None where that is not counted."""
    stats = jax.devices()[0].memory_stats()
    return None if stats is None else stats["bytes_in_use"]


def measure(rounds: int, seed: int, small: bool) -> dict[str, Any]:
    """Takes all measurements, and records the conditions."""
    rng = np.random.default_rng(seed)
    shapes = resnet34((1,), 8, 10) if small else resnet34()
    values, grads = random_tree(shapes, rng), jax.device_put(random_tree(shapes, rng))
    results = {
        **circumstances(),
        "seed": seed,
        "rounds": rounds,
        "params_bytes": tree_bytes(values),
        "optimizers": {},
    }
    for optimizer in TITLES:
        found = results["optimizers"][optimizer] = {}
        inner = OPTIMIZERS[optimizer](LEARNING_RATE)
        for name, make in MAKERS.items():
            transforms = {kind: make(inner, memory_kind=kind) for kind in (None, HOST)}
            runs = {kind: Run(tx, values, grads) for kind, tx in transforms.items()}
            timed = {
                f"{kind or 'device'}, sync={sync}": functools.partial(run.steps, sync=sync)
                for kind, run in runs.items()
                for sync in (False, True)
            }
            found[name] = {
                "milliseconds": take_turns(timed, rounds, 5, rng),
                "held_on_device": [run.held for run in runs.values()],
                "same_results": same(values, grads, transforms),
            }
    return results


def same(
    values: Any, grads: Any, transforms: dict[str | None, optax.GradientTransformation]
) -> bool:
    """Whether two cycles of three steps end at the same params, bit for bit."""
    ends = []
    for tx in transforms.values():
        run = Run(tx, values, grads)
        for sync in 2 * [False, False, True]:
            run.steps(1, sync)
        ends.append(jax.device_get(run.params))
    return all(map(np.array_equal, *map(jax.tree.leaves, ends)))


def report(results: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    rows = []
    for optimizer, found in results["optimizers"].items():
        for name, of in found.items():
            times = [f"{np.median(t):.2f}" for t in of["milliseconds"].values()]
            held = [
                "–" if h is None else f"{h / results['params_bytes']:.2f}"
                for h in of["held_on_device"]
            ]
            row = [f"{name}, {TITLES[optimizer]}", *times, *held]
            rows.append([*row, "yes" if of["same_results"] else "**no**"])
    header = [
        "",
        *("θ on the device: a step, ms", "a sync, ms"),
        *("θ on the host: a step, ms", "a sync, ms"),
        *("copies of the params held on the device", "with θ on the host"),
        "the same bits",
    ]
    conditions = (
        f"{heading(results)} Params of {results['params_bytes'] / 1e6:.1f} MB; medians of "
        f"{results['rounds']} rounds of 5 steps, seed {results['seed']}."
    )
    return f"{conditions}\n\n{markdown(header, rows)}"


def main() -> None:
    """Runs the benchmark with the settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="timings of each (default: 20, 2 with --small)")
    parser.add_argument("--seed", type=int, default=0, help="for values and order (default: 0)")
    parser.add_argument("--small", action="store_true", help="a tiny tree, as a smoke test")
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


if __name__ == "__main__":
    main()
