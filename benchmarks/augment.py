"""How many CIFAR-size images a second are batched, cropped, flipped and standardised.

    python benchmarks/augment.py --json benchmarks/results/augment.json     # half a minute
    python benchmarks/augment.py --small                                    # a smoke test

The images are random uint8 of 32×32×3 in memory, the batches those of the examples. Each
way is timed for a number of batches, in several rounds in which the ways take turns. What
else runs on the machine makes a round slower, never faster, so the best is shown too.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tables import markdown
from timing import circumstances, heading

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from data import Dataset, batches
from data.augment import crop_and_flip

SHAPE = (32, 32, 3)
PADDING = 4
AIM = 300_000


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch_size", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a test, no measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    flags = parser.parse_args()
    size, steps = (1_000, 2) if flags.small else (50_000, 20)
    results = {
        **circumstances(),
        "batch_size": flags.batch_size,
        "rounds": flags.rounds,
        "batches_per_timing": steps,
        "small": flags.small,
    }
    run = ways(random_images(size), flags.batch_size)
    results["images_per_second"] = take_turns(run, flags.batch_size, flags.rounds, steps)
    print(report(results))
    if flags.json:
        flags.json.write_text(json.dumps(results, indent=1) + "\n")


def random_images(size: int) -> Dataset:
    """As many training images as CIFAR has, or fewer."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, *SHAPE), np.uint8)
    labels = rng.integers(0, 10, size, np.int32)
    mean, std = np.float32([125, 123, 114]), np.float32([52, 51, 51])
    return Dataset(
        name="random",
        classes=10,
        mean=mean,
        std=std,
        train_images=images,
        train_labels=labels,
        test_images=images[:1],
        test_labels=labels[:1],
    )


def ways(dataset: Dataset, batch_size: int) -> dict[str, Callable[[int], Any]]:
    """What is timed: functions of the number of a batch."""
    order = batches(0, len(dataset.train_images), batch_size)
    key = jax.random.key(0)
    on_device = jax.device_put(dataset.train_images[:batch_size])

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        indices = next(order)
        return dataset.train_images[indices], dataset.train_labels[indices]

    @jax.jit
    def augment(images: jax.Array, step: int) -> jax.Array:
        return crop_and_flip(jax.random.fold_in(key, step), images, PADDING)

    @jax.jit
    def prepare(images: jax.Array, step: int) -> jax.Array:
        return dataset.standardise(augment(images, step))

    @jax.jit
    def slice_each(images: jax.Array, step: int) -> jax.Array:
        return sliced(jax.random.fold_in(key, step), images)

    return {
        "a batch by index, in NumPy": batch,
        "crop and flip": lambda step: augment(on_device, step),
        "crop, flip and standardise": lambda step: prepare(on_device, step),
        "all of these": lambda step: prepare(batch(step)[0], step),
        "crop and flip by `vmap` of `dynamic_slice`": lambda step: slice_each(on_device, step),
    }


def sliced(key: jax.Array, images: jax.Array) -> jax.Array:
    """The obvious way to crop and flip, to compare with."""
    border = (PADDING, PADDING)

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        for_shift, for_flip = jax.random.split(key)
        shift = jax.random.randint(for_shift, (2,), 0, 2 * PADDING + 1)
        padded = jnp.pad(image, (border, border, (0, 0)))
        crop = jax.lax.dynamic_slice(padded, (*shift, 0), image.shape)
        return jnp.where(jax.random.bernoulli(for_flip), crop[:, ::-1], crop)

    return jax.vmap(one)(jax.random.split(key, len(images)), images)


def take_turns(
    run: dict[str, Callable[[int], Any]], batch_size: int, rounds: int, steps: int
) -> dict[str, list[float]]:
    """Images a second of each way in each round."""
    rates: dict[str, list[float]] = {name: [] for name in run}
    for way in run.values():
        jax.block_until_ready(way(0))
    for _ in range(rounds):
        for name, way in run.items():
            start = time.perf_counter()
            for step in range(steps):
                jax.block_until_ready(way(step))
            rates[name].append(batch_size * steps / (time.perf_counter() - start))
    return rates


def report(results: dict[str, Any]) -> str:
    """The table of a run, in Markdown."""
    rows = []
    for name, rates in results["images_per_second"].items():
        low, median, high = np.quantile(rates, [0.25, 0.5, 0.75])
        rows.append([name, f"{median:,.0f}", f"{low:,.0f}–{high:,.0f}", f"{max(rates):,.0f}"])
    parts = [
        f"{heading(results)} Batches of {results['batch_size']}; {results['rounds']} rounds of "
        f"{results['batches_per_timing']} batches. Aimed at: {AIM:,} images a second.",
        markdown(["", "images a second", "quartiles", "best"], rows),
    ]
    if results["small"]:
        parts.insert(1, "**These are too few images: no measurements.**")
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
