"""Compiles the optimizers for a TPU v5e or an H100 on a machine that has neither.

    python benchmarks/compile_ahead.py tpu --json benchmarks/results/compile_ahead_tpu.json
    python benchmarks/compile_ahead.py cuda --json benchmarks/results/compile_ahead_cuda.json
    python benchmarks/compile_ahead.py cpu --small                      # a smoke test
    python benchmarks/compile_ahead.py --show benchmarks/results/compile_ahead_tpu.json

Nothing is run, so there are no times. For each of `programs.py` it prints the figures of the
accelerator's compiler. A whole training step takes the compiler for TPU some minutes; the file is
written after every program, and `--only` keeps the other kinds of programs in it as they are.

Each target needs its own compiler, preferably in a separate virtual environment: the extra
`compile-tpu` for `tpu` (libtpu, 684 MB), or `compile-cuda` for `cuda` (jax's CUDA plugin, in the
same version as jax).
"""

import argparse
import datetime
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Must be set before libtpu and jax are imported: they read it to look for devices.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
}

import jax
import jax.numpy as jnp
from compiled import program_facts
from programs import (
    GRADIENT,
    REPLICAS,
    Source,
    host_programs,
    replica_programs,
    step_programs,
    update_programs,
)
from tables import MEGABYTE, TITLES, markdown, versions
from targets import TARGETS, devices_of

OPTIMIZERS = ("momentum", "adamw")
KINDS = {
    "update": "One update",
    "host": "One update with slow weights on the host",
    "replicas": f"One update of {REPLICAS} replicas",
    "step": "One training step of a ResNet-18",
}
# The aims for an update on an accelerator: no temporaries beyond those of the inner optimizer, one
# fusion a leaf, and all donated arrays used again; but for scalars and the pointers to the results.
SCALARS = 10_000  # bytes
FUSIONS_OF_SCALARS = 3


def main() -> None:
    """Compiles for the target given on the command line, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("--only", choices=KINDS, help="compile the programs of this kind alone")
    parser.add_argument("--small", action="store_true", help="tiny networks, as a smoke test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of a file")
    flags = parser.parse_args()
    if (flags.target is None) == (flags.show is None):
        parser.error("either a target or --show FILE is needed")

    if flags.show:
        print(report(json.loads(flags.show.read_text())))
        return
    results = circumstances(flags.target)
    if flags.only and flags.json and flags.json.exists():
        results["tables"] = json.loads(flags.json.read_text())["tables"]
    for kind in [flags.only] if flags.only else KINDS:
        for title, sources in tables_of(kind, flags.target, flags.small):
            table = results["tables"][title] = {
                "kind": kind,
                "parameters": sum(x.size for x in jax.tree.leaves(sources["inner"].params)),
                "leaves": len(jax.tree.leaves(sources["inner"].params)),
                "programs": {},
            }
            for name, source in sources.items():
                print(f"{title}: {name}", file=sys.stderr, flush=True)
                table["programs"][name] = figures(source)
                if flags.json:
                    flags.json.write_text(json.dumps(results, indent=1) + "\n")
    print(report(results))


def circumstances(target: str) -> dict[str, Any]:
    """The target, the versions, the date and the command; no tables yet."""
    return {
        "target": target,
        "versions": versions("flax", "libtpu", "jax-cuda12-plugin"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/compile_ahead.py", *sys.argv[1:]]),
        "tables": {},
    }


def tables_of(kind: str, target: str, small: bool) -> Iterator[tuple[str, dict[str, Source]]]:
    """The programs of one kind, by the titles of their tables."""
    devices = devices_of(target, REPLICAS if kind == "replicas" else 1)
    if kind == "step":
        yield KINDS[kind], step_programs(devices, small)
        return
    if kind == "host" and not devices[0].addressable_memories():
        return  # An H100 that is described to the compiler has no host.
    make = {"update": update_programs, "host": host_programs, "replicas": replica_programs}[kind]
    for optimizer in OPTIMIZERS[:1] if small else OPTIMIZERS:
        yield f"{KINDS[kind]}, {TITLES[optimizer]}", make(optimizer, devices, small)


def figures(source: Source) -> dict[str, Any]:
    """Compiles a program; returns its figures, and the arrays that are donated to it."""
    where = {} if source.out_shardings is None else {"out_shardings": source.out_shardings}
    jitted = jax.jit(source.function, donate_argnums=source.donated, **where)
    donated = list(donated_arrays(source))
    return program_facts(jitted.lower(*source.arguments).compile()) | {
        "donated": len(donated),
        "held": sum(math.prod(shape) * itemsize for shape, itemsize in donated),
        "gradients": source.gradients,
    }


def donated_arrays(source: Source) -> Iterator[tuple[tuple[int, ...], int]]:
    """The shape on one device and the size of an element of each donated array."""
    for leaf in jax.tree.leaves([source.arguments[n] for n in source.donated]):
        # A random key consists of several numbers.
        if leaf.ndim or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            yield leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize


def report(results: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    parts = [
        f"`{results['command']}` on {results['date'][:10]}: for {TARGETS[results['target']]}; "
        + ", ".join(f"{package} {version}" for package, version in results["versions"].items())
        + "."
    ]
    for title, table in results["tables"].items():
        format_table = {"step": step_table, "host": host_table}.get(table["kind"], update_table)
        parts += [
            f"### {title}",
            f"{table['parameters'] / 1e6:.1f} M parameters in {table['leaves']} leaves.",
            format_table(table),
        ]
    return "\n\n".join(parts)


def update_table(table: dict[str, Any]) -> str:
    """The figures of each program for an update, and whether it meets the aims."""
    inner = table["programs"]["inner"]
    header = [
        "",
        "temporaries, MB",
        "bytes accessed, MB",
        "(arguments + results) / inner",
        "params held beyond inner",
        "fusions",
        *("copies", "conditionals", "collectives"),
        "donated arrays used again",
        "aims missed",
    ]
    rows = [
        [
            name,
            f"{found['temporaries'] / MEGABYTE:.3f}",
            # The estimate counts the whole buffer of a collective for every part that is read.
            "–"
            if found["is_estimated"] and found["collectives"]
            else f"{found['accessed'] / MEGABYTE:.0f}",
            f"{found['least'] / inner['least']:.2f}",
            f"{(found['held'] - inner['held']) / (4 * table['parameters']):.2f}",
            found["fusions"],
            *(found[kind] for kind in ("copies", "conditionals", "collectives")),
            f"{found['aliased']} of {found['donated']}",
            ", ".join(missed(found, inner, table["leaves"])),
        ]
        for name, found in table["programs"].items()
    ]
    return markdown(header, rows)


def host_table(table: dict[str, Any]) -> str:
    """Where the state is, and what a sync fetches, in copies of the params."""
    inner = table["programs"]["inner"]
    params = 4 * table["parameters"]
    header = [
        "",
        "held on the device beyond inner",
        "held on the host",
        "temporaries",
        "donated arrays used again",
    ]
    rows = [
        [
            name,
            f"{(found['on_device'] - inner['on_device']) / params:.2f}",
            f"{found['on_host'] / params:.2f}",
            f"{found['temporaries'] / params:.2f}",
            f"{found['aliased']} of {found['donated']}",
        ]
        for name, found in table["programs"].items()
    ]
    return markdown(header, rows)


def missed(found: dict[str, Any], inner: dict[str, Any], leaves: int) -> Iterator[str]:
    """The aims for an update that a program misses."""
    if found["temporaries"] > inner["temporaries"] + SCALARS:
        yield "temporaries"
    if found["fusions"] > leaves + FUSIONS_OF_SCALARS:
        yield "fusions"
    if found["aliased"] < found["donated"]:
        yield "aliasing"


def step_table(table: dict[str, Any]) -> str:
    """The figures of whole training steps, and what the optimizer adds to their gradients."""
    gradient = table["programs"][GRADIENT]
    header = [
        "",
        "temporaries, MB",
        "bytes accessed, MB",
        "the optimizer's part",
        "fusions",
        "copies",
        "conditionals",
        "donated arrays used again",
    ]
    rows = [
        [
            name,
            f"{found['temporaries'] / MEGABYTE:.0f}",
            f"{found['accessed'] / MEGABYTE:.0f}",
            # With several gradients it is not clear what they share.
            f"{1 - gradient['accessed'] / found['accessed']:.1%}"
            if found["gradients"] == 1
            else "–",
            *(found[kind] for kind in ("fusions", "copies", "conditionals")),
            f"{found['aliased']} of {found['donated']}",
        ]
        for name, found in table["programs"].items()
    ]
    return markdown(header, rows)


if __name__ == "__main__":
    main()
