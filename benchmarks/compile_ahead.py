"""Compiles the updates for a TPU v5e or an H100 on a machine that has neither.

    python benchmarks/compile_ahead.py tpu --json benchmarks/results/compile_ahead_tpu.json
    python benchmarks/compile_ahead.py cuda --json benchmarks/results/compile_ahead_cuda.json
    python benchmarks/compile_ahead.py --show benchmarks/results/compile_ahead_tpu.json

Nothing is run, so there are no times. For each program of `update.py` it prints the figures of
the accelerator's compiler: temporaries, bytes accessed, fusions and copies.

Each target needs its own compiler, preferably in a separate virtual environment: the extra
`compile-tpu` for `tpu` (libtpu, 684 MB), or `compile-cuda` for `cuda` (jax's CUDA plugin, in the
same version as jax).
"""

import argparse
import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

# Must be set before libtpu and jax are imported: they read it to look for devices.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
}

import jax
from contenders import OPTIMIZERS, Contender, contenders, program_facts, resnet34, tree_bytes
from jax.experimental import topologies
from tables import TITLES, programs_table, versions

TARGETS = {"tpu": "TPU v5e", "cuda": "NVIDIA H100 SXM"}

# The description of the absent GPU that XLA needs, from NVIDIA's data sheets.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  l2_cache_size: 52428800
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  name: "H100"
  runtime_version: "12.8.0"
  driver_version: "12.8.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
"""


def main() -> None:
    """Compiles for the target given on the command line, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("--small", action="store_true", help="a tiny tree, as a smoke test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of a file")
    flags = parser.parse_args()
    if (flags.target is None) == (flags.show is None):
        parser.error("either a target or --show FILE is needed")

    if flags.show:
        print(report(json.loads(flags.show.read_text())))
        return
    results = compile_all(flags.target, flags.small)
    print(report(results))
    if flags.json:
        flags.json.write_text(json.dumps(results, indent=1) + "\n")


def compile_all(target: str, small: bool) -> dict[str, Any]:
    """Compiles every contender's update for the target and collects the compiler's figures."""
    shapes = resnet34((1,), 8, 10) if small else resnet34()
    sharding = jax.sharding.SingleDeviceSharding(device_of(target))
    params = {
        name: jax.ShapeDtypeStruct(shape, "float32", sharding=sharding)
        for name, shape in shapes.items()
    }
    found = {
        optimizer: {"programs": compile_contenders(contenders(optimizer), params)}
        for optimizer in OPTIMIZERS
    }
    return {
        "target": target,
        "versions": versions("libtpu", "jax-cuda12-plugin"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/compile_ahead.py", *sys.argv[1:]]),
        "parameters": sum(x.size for x in params.values()),
        "leaves": len(params),
        "optimizers": found,
    }


def compile_contenders(
    compared: list[Contender], params: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, Any]:
    """The figures of each program, by the name of its contender."""
    (sharding,) = {x.sharding for x in params.values()}
    facts, kept = {}, {}
    for contender in compared:
        # Abstract evaluation does not preserve the device.
        own_params, state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(contender.start, params),
        )
        step = jax.jit(contender.step, donate_argnums=(1, 2))
        compiled = step.lower(params, state, own_params).compile()
        kept[contender.name] = tree_bytes((state, own_params)) - tree_bytes(params)
        copies = kept[contender.name] - kept["inner"]
        facts[contender.name] = program_facts(compiled) | {
            "copies_of_params": copies / tree_bytes(params)
        }
    return facts


def device_of(target: str) -> Any:
    """A device of the target that exists only in its compiler."""
    if target == "tpu":
        return topologies.get_topology_desc("v5e:2x2", platform="tpu").devices[0]
    return topologies.get_topology_desc(
        "h100", platform="cuda", topology="1x1x1", target_config=H100
    ).devices[0]


def report(results: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    parts = [
        f"`{results['command']}` on {results['date'][:10]}: for {TARGETS[results['target']]}; "
        + ", ".join(f"{package} {version}" for package, version in results["versions"].items())
        + f". {results['parameters'] / 1e6:.1f} M parameters in {results['leaves']} leaves."
    ]
    for optimizer, found in results["optimizers"].items():
        parts += [f"### {TITLES[optimizer]}", programs_table(found["programs"])]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
