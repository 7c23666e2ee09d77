"""One of the processes of `slow_links.py`; it does what it reads, and answers in a line.

    python benchmarks/slow_link_worker.py HOST:PORT NUM_PROCESSES PROCESS_ID

A line on the standard input is a job, a JSON object; all processes are given the same ones. The
answer is another object. The end of the input ends the process.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from slrla_jax import diloco, slow_params

AXIS = "worker"
LEARNING_RATE = 0.1
OWN, COMMON = P(AXIS), P()


def main() -> None:
    """Joins the others and does jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Gloo prints on the standard output.
    coordinator, workers, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    jax.distributed.initialize(coordinator, workers, number, cluster_detection_method="deactivate")
    for line in sys.stdin:
        print(json.dumps(work(json.loads(line), number)), file=answers, flush=True)
    os._exit(0)  # The others may be gone, for which JAX would wait.


def work(job: dict[str, Any], number: int) -> dict[str, Any]:
    """Trains for some cycles.

    Args:
      job: `parameters` in `arrays` equal arrays; `send`, the dtype of the pseudo-gradients;
        `sync_period`; `cycles`; `pauses`, the mean seconds that each process sleeps in a step, as
        if it computed, and their `jitter`; and whether to train `data_parallel` instead.
      number: which process this is.

    Returns:
      The seconds of each `cycle` and of the `sync` at its end, from before the last
      step's pause, of a plain `step`, and the `bytes` sent in a cycle. A first cycle, in which the
      programs are compiled, is left out.
    """
    mesh = jax.make_mesh((jax.process_count(),), (AXIS,))
    plain, last, carry = (data_parallel if job["data_parallel"] else local)(job, mesh)
    pause = pauses(job["pauses"][number], job["jitter"], number)
    found: dict[str, list[float]] = {"cycle": [], "step": [], "sync": [], "bytes": []}
    for cycle in range(job["cycles"] + 1):
        before, start = sent(), time.perf_counter()
        for _ in range(job["sync_period"] - 1):
            time.sleep(next(pause))
            carry = jax.block_until_ready(plain(*carry))
        middle = time.perf_counter()
        time.sleep(next(pause))
        carry = jax.block_until_ready(last(*carry))
        end = time.perf_counter()
        if cycle:
            found["cycle"].append(end - start)
            found["step"].append((middle - start) / max(1, job["sync_period"] - 1))
            found["sync"].append(end - middle)
            found["bytes"].append(sent() - before)
    return found


def pauses(mean: float, jitter: float, seed: int) -> Iterator[float]:
    """Times with a gamma distribution and this standard deviation relative to their mean."""
    rng = np.random.default_rng(seed)
    while True:
        yield rng.gamma(1 / jitter**2, mean * jitter**2) if jitter else mean


def local(job: dict[str, Any], mesh: jax.sharding.Mesh) -> tuple[Any, Any, Any]:
    """The programs of a step that does not sync and of one that does, and their arguments."""
    told = {} if job["send"] == "float32" else {"pseudo_gradient_dtype": job["send"]}
    tx = diloco(optax.sgd(LEARNING_RATE), AXIS, None, **told)
    abstract = jax.eval_shape(tx.init, one(job))
    # Of SGD there is no inner state; what a compressed mean leaves over is each worker's own.
    specs = jax.tree.map(lambda _: COMMON, abstract)
    if told:
        specs = specs._replace(residual=jax.tree.map(lambda _: OWN, abstract.residual))

    def step(state: Any, params: Any, *, sync: bool) -> tuple[Any, Any]:
        state, params = unstack(state, specs), jax.tree.map(lambda x: x[0], params)
        updates, state = tx.update(gradient(params), state, params, sync=sync)
        params = optax.apply_updates(params, updates)
        if sync:
            params = jax.tree.map(
                lambda p: jax.lax.pcast(p, AXIS, to="varying"), slow_params(state, params)
            )
        return stack(state, specs), jax.tree.map(lambda x: x[None], params)

    def program(sync: bool) -> Any:
        mapped = jax.shard_map(
            lambda state, params: step(state, params, sync=sync),
            mesh=mesh,
            in_specs=(specs, OWN),
            out_specs=(specs, OWN),
        )
        return jax.jit(mapped, donate_argnums=(0, 1))

    @jax.jit
    def start() -> tuple[Any, Any]:
        copies = jax.tree.map(lambda x: jnp.stack([x] * jax.process_count()), one(job))
        state = tx.init(one(job))
        if told:
            zeros = jax.tree.map(jnp.zeros_like, copies)
            state = state._replace(residual=zeros)
        return state, copies

    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    carry = jax.jit(start, out_shardings=(shardings, NamedSharding(mesh, OWN)))()
    return program(sync=False), program(sync=True), carry


def data_parallel(job: dict[str, Any], mesh: jax.sharding.Mesh) -> tuple[Any, Any, Any]:
    """The same for training with the mean of the gradients, in which all steps are alike."""
    tx = optax.sgd(LEARNING_RATE)

    def step(params: Any) -> tuple[Any]:
        own = jax.tree.map(lambda p: jax.lax.pcast(p, AXIS, to="varying"), params)
        grads = jax.lax.pmean(gradient(own), AXIS)
        updates, _ = tx.update(grads, tx.init(params))
        return (optax.apply_updates(params, updates),)

    mapped = jax.shard_map(step, mesh=mesh, in_specs=(COMMON,), out_specs=(COMMON,))
    program = jax.jit(mapped, donate_argnums=0)
    params = jax.jit(lambda: one(job), out_shardings=NamedSharding(mesh, COMMON))()
    return program, program, (params,)


def one(job: dict[str, Any]) -> dict[str, jax.Array]:
    """The initial params."""
    size = job["parameters"] // job["arrays"]
    return {f"w{i}": jnp.zeros(size) for i in range(job["arrays"])}


def gradient(params: Any) -> Any:
    """The gradient of ½‖v − r‖², for the worker r."""
    return jax.tree.map(lambda v: v - jax.lax.axis_index(AXIS), params)


def unstack(tree: Any, specs: Any) -> Any:
    """What is each worker's own, without the axis of the workers."""
    return jax.tree.map(lambda x, spec: x[0] if spec == OWN else x, tree, specs)


def stack(tree: Any, specs: Any) -> Any:
    """The opposite of `unstack`."""
    return jax.tree.map(lambda x, spec: x[None] if spec == OWN else x, tree, specs)


def sent() -> int:
    """The bytes that this process's link has sent: all packets, with their headers."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    counters = {name.strip(): rest.split() for name, _, rest in (x.partition(":") for x in lines)}
    return sum(int(of[8]) for name, of in counters.items() if name != "lo")


if __name__ == "__main__":
    main()
