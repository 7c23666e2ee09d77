"""The bytes that a worker sends, counted in the program that all workers run.

What XLA is given for R devices is searched for collectives. Each is taken to be done on a ring, in
which a worker sends, of an array of n bytes,

    all-reduce                  2 (R − 1) / R n
    all-gather                    (R − 1) / R n, of the gathered array
    all-to-all, reduce-scatter    (R − 1) / R n
    permutation                               n
"""

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from experiments.devices import AXIS
from experiments.local.cycle import cycle_of, divided_settings, over_devices, own_part, state_of
from experiments.local.methods import LocalConfig
from experiments.local.run import LocalRun
from experiments.steps import Model

# Times (R − 1) / R, what is sent of the largest of operand and result.
ROUNDS = {
    "stablehlo.all_reduce": 2,
    "stablehlo.all_gather": 1,
    "stablehlo.all_to_all": 1,
    "stablehlo.reduce_scatter": 1,
}
WHOLE = "stablehlo.collective_permute"
SEVERAL = ("stablehlo.while", "stablehlo.case", "stablehlo.if")
BITS = {"f64": 64, "f32": 32, "bf16": 16, "f16": 16, "ui16": 16, "i32": 32, "i8": 8}


class Collective(NamedTuple):
    """A collective in a program.

    Attributes:
      name: of the operation.
      dtype: of what is sent, as XLA writes it.
      size: elements of the largest of operand and result.
    """

    name: str
    dtype: str
    size: int


def collectives(lowered: jax.stages.Lowered) -> list[Collective]:
    """Returns the collectives of a program that is lowered for several devices.

    Raises:
      ValueError: if one is in a loop or a branch, as then it is not said how often it is run.
    """
    module = lowered.compiler_ir("stablehlo")
    functions = {str(op.attributes["sym_name"]): op for op in module.body.operations}

    def inside(op: Any, *, once: bool) -> Iterator[Collective]:
        for inner in (i for region in op.regions for block in region for i in block.operations):
            name = inner.operation.name
            if name in ROUNDS or name == WHOLE:
                if not once:
                    raise ValueError(f"{name} is in a loop or a branch")
                types = [value.type for value in (*inner.operands, *inner.results)]
                largest = max(types, key=lambda kind: math.prod(kind.shape))
                yield Collective(name, str(largest.element_type), math.prod(largest.shape))
            elif name == "func.call":
                callee = str(inner.attributes["callee"]).removeprefix("@")
                yield from inside(functions[f'"{callee}"'], once=once)
            else:
                yield from inside(inner, once=once and name not in SEVERAL)

    return list(inside(functions['"main"'], once=True))


def bytes_sent(found: Collective, workers: int) -> float:
    """Returns the bytes that a worker sends for a collective on a ring."""
    size = found.size * BITS[found.dtype] / 8
    if found.name == WHOLE:
        return size
    return ROUNDS[found.name] * (workers - 1) / workers * size


def sent_in_a_cycle(run: LocalRun) -> float:
    """Returns the bytes that a worker of a run sends in a cycle."""
    program, _ = divided_settings(run.config)
    return _sent_in_a_cycle(run.model, program, run.steps)


@functools.lru_cache(maxsize=32)  # The runs of a sweep share programs.
def _sent_in_a_cycle(model: Model, config: LocalConfig, steps: int) -> float:
    mesh = AbstractMesh((config.workers,), (AXIS,), axis_types=(AxisType.Auto,))
    lowered = lowered_cycle(model, config, steps, mesh)
    return sum(bytes_sent(found, config.workers) for found in collectives(lowered))


def lowered_cycle(
    model: Model, config: LocalConfig, steps: int, mesh: Mesh | AbstractMesh
) -> jax.stages.Lowered:
    """Lowers the cycle of all workers for a mesh of a device of each, which need not be there."""
    state = state_of(model, config, steps)
    own = own_part(state)
    cycles = over_devices(cycle_of(model, config, steps), own, mesh)

    def of_all(mine: bool, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.workers, *x.shape) if mine else x.shape, x.dtype)

    _, traced = divided_settings(config)
    pool = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in model.dataset.pool("train")]
    batches = jax.ShapeDtypeStruct((config.sync_period, config.batch_size), np.int32)
    state = jax.tree.map(of_all, own, state)
    return jax.jit(cycles).trace(traced, tuple(pool), state, batches).lower()
