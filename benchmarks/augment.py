"""Throughput of gathering, cropping, flipping and standardising CIFAR-size images.

    python benchmarks/augment.py --json benchmarks/results/augment.json     # half a minute
    python benchmarks/augment.py --small                                    # a smoke test

The images are random uint8 arrays of shape 32×32×3 in device memory, and a batch is an array of
indices into them, as in the examples. As in training, the augmentation is part of a larger program:
here of a compiled loop over 20 batches that writes out every batch. The last row instead calls one
program per batch and waits for it, which the examples never do.

Other programs running on the machine can only make a round slower, never faster, so the best round
is shown as well.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from experiments.data import Dataset
from experiments.data.augment import crop_and_flip
from tables import markdown
from timing import circumstances, heading

SHAPE = (32, 32, 3)
PADDING = 4
AIM = 300_000


def main() -> None:
    """Runs the benchmark with the settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch_size", type=int, default=128, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a smoke test, not a measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    flags = parser.parse_args()
    size, steps = (1_000, 2) if flags.small else (50_000, 20)
    results = {
        **circumstances(),
        "batch_size": flags.batch_size,
        "rounds": flags.rounds,
        "batches_per_timing": steps,
        "small": flags.small,
    }
    run = ways(random_images(size), flags.batch_size, steps)
    results["images_per_second"] = take_turns(run, flags.batch_size * steps, flags.rounds)
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


def ways(dataset: Dataset, batch_size: int, steps: int) -> dict[str, Callable[[], Any]]:
    """The functions to time; each processes `steps` batches."""
    rng = np.random.default_rng(0)
    indices = rng.integers(0, dataset.train_size, (steps, batch_size), np.int32)
    pool = jax.device_put(dataset.train_images)
    keys = jax.random.split(jax.random.key(0), steps)

    def in_a_loop(take: Callable[..., jax.Array], dtype: Any) -> Callable[[], jax.Array]:
        @jax.jit
        def loop(pool: jax.Array, keys: jax.Array, indices: jax.Array) -> jax.Array:
            def step(before: jax.Array, batch: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
                del before
                key, chosen = batch
                return take(key, pool, chosen), None

            return jax.lax.scan(step, jnp.zeros((batch_size, *SHAPE), dtype), (keys, indices))[0]

        return lambda: loop(pool, keys, indices)

    def prepare(key: jax.Array, pool: jax.Array, chosen: jax.Array) -> jax.Array:
        return dataset.standardise(crop_and_flip(key, pool, chosen, PADDING))

    one = jax.jit(prepare)
    return {
        "taken by index": in_a_loop(lambda key, pool, chosen: pool[chosen], np.uint8),
        "cropped and flipped": in_a_loop(
            functools.partial(crop_and_flip, padding=PADDING), np.uint8
        ),
        "the same by `vmap` of `dynamic_slice`": in_a_loop(sliced, np.uint8),
        "cropped, flipped and standardised": in_a_loop(prepare, np.float32),
        "the same, a call for every batch": lambda: [
            jax.block_until_ready(one(key, pool, chosen))
            for key, chosen in zip(keys, indices, strict=True)
        ],
    }


def sliced(key: jax.Array, pool: jax.Array, chosen: jax.Array) -> jax.Array:
    """The obvious way to crop and flip, for comparison."""
    border = (PADDING, PADDING)

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        for_shift, for_flip = jax.random.split(key)
        shift = jax.random.randint(for_shift, (2,), 0, 2 * PADDING + 1)
        padded = jnp.pad(image, (border, border, (0, 0)))
        crop = jax.lax.dynamic_slice(padded, (*shift, 0), image.shape)
        return jnp.where(jax.random.bernoulli(for_flip), crop[:, ::-1], crop)

    return jax.vmap(one)(jax.random.split(key, len(chosen)), pool[chosen])


def take_turns(
    run: dict[str, Callable[[], Any]], images: int, rounds: int
) -> dict[str, list[float]]:
    """Images per second of each function in each round; each call processes `images` images."""
    rates: dict[str, list[float]] = {name: [] for name in run}
    for way in run.values():
        jax.block_until_ready(way())
    for _ in range(rounds):
        for name, way in run.items():
            start = time.perf_counter()
            jax.block_until_ready(way())
            rates[name].append(images / (time.perf_counter() - start))
    return rates


def report(results: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    rows = []
    for name, rates in results["images_per_second"].items():
        low, median, high = np.quantile(rates, [0.25, 0.5, 0.75])
        rows.append([name, f"{median:,.0f}", f"{low:,.0f}–{high:,.0f}", f"{max(rates):,.0f}"])
    parts = [
        f"{heading(results)} Batches of {results['batch_size']}; {results['rounds']} rounds of "
        f"{results['batches_per_timing']} batches. Target: {AIM:,} images per second.",
        markdown(["", "images per second", "quartiles", "best"], rows),
    ]
    if results["small"]:
        parts.insert(1, "**These are too few images: not measurements.**")
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
