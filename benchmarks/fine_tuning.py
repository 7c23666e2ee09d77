"""Compiles a step in which AdaLoss fine-tunes ViT-S/16 or ResNet-50, as `examples/train.py` does.

    python benchmarks/fine_tuning.py cuda --json benchmarks/results/fine_tuning.json
    python benchmarks/fine_tuning.py --show benchmarks/results/fine_tuning.json

The batch is 128 of CIFAR-100's images, which the step resizes to 256 pixels and crops to 224.
Nothing is run, so there are no times: operations are counted in the program before it is compiled,
and the memory is the compiler's. Targets and their compilers are those of `compile_ahead.py`.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from compile_ahead import circumstances  # First: it sets what jax reads when it is imported.

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from experiments.configs.adaloss import BASE, MODELS
from experiments.data import Dataset
from experiments.models import NETWORKS
from experiments.optimizers import OPTIMIZERS
from experiments.schedules import stages_of
from experiments.steps import Model, init_state, train_step
from jax.sharding import SingleDeviceSharding
from programs import on
from tables import markdown
from targets import TARGETS, devices_of

IMAGES = 45_000
STEPS = BASE.epochs * (IMAGES // BASE.batch_size)
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def main() -> None:
    """Compiles for the target given on the command line, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of a file")
    flags = parser.parse_args()
    if (flags.target is None) == (flags.show is None):
        parser.error("either a target or --show FILE is needed")
    if flags.show:
        print(report(json.loads(flags.show.read_text())))
        return
    results = circumstances(flags.target, "fine_tuning.py")
    for network in MODELS.values():
        for name, dtype in DTYPES.items():
            print(f"{network} in {name}", file=sys.stderr, flush=True)
            results["tables"][f"{network}, {name}"] = figures(network, dtype, flags.target)
            if flags.json:
                flags.json.write_text(json.dumps(results, indent=1) + "\n")
    print(report(results))


def figures(network: str, dtype: Any, target: str) -> dict[str, float]:
    """Compiles the step of a network; returns its size, operations and bytes."""
    none = {"images": np.empty((0, 32, 32, 3), np.uint8), "labels": np.empty(0, np.int32)}
    dataset = Dataset(
        name="cifar100",
        classes=100,
        mean=np.zeros(3, np.float32),
        std=np.ones(3, np.float32),
        augmented=True,
        image_size=BASE.image_size,
        **{f"{split}_{what}": x for split in ("train", "test") for what, x in none.items()},
    )
    make = partial(NETWORKS[network], dataset.image_shape, dataset.classes, dtype=dtype)
    model = Model(make, dataset)
    tx = OPTIMIZERS["adaloss"].make(BASE, stages_of(BASE, STEPS, STEPS // BASE.epochs))
    pool = (
        jax.ShapeDtypeStruct((IMAGES, 32, 32, 3), jnp.uint8),
        jax.ShapeDtypeStruct((IMAGES,), jnp.int32),
    )
    state = jax.eval_shape(lambda: init_state(model, tx, 0))
    arguments = (pool, state, jax.ShapeDtypeStruct((BASE.batch_size,), jnp.int32))
    step = jax.jit(partial(train_step, model, tx), donate_argnums=1)
    counted = step.lower(*arguments).cost_analysis()
    (device,) = devices_of(target, 1)
    memory = step.lower(*on(SingleDeviceSharding(device), arguments)).compile().memory_analysis()
    return {
        "parameters": model.size,
        "flops": counted["flops"],
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }


def report(results: dict[str, Any]) -> str:
    """The table of the results."""
    header = ["", "parameters", "TFLOP a step", "arguments, GB", "temporaries, GB"]
    rows = [
        [
            name,
            f"{found['parameters']:,}",
            f"{found['flops'] / 1e12:.2f}",
            f"{found['arguments'] / 1e9:.2f}",
            f"{found['temporaries'] / 1e9:.2f}",
        ]
        for name, found in results["tables"].items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n".join(
        [
            f"`{results['command']}` on {results['date'][:10]}: for {TARGETS[results['target']]}; "
            f"{versions}.",
            "",
            markdown(header, rows),
        ]
    )


if __name__ == "__main__":
    main()
