"""The tables of a plan for many workers, each by the formulas of `cycles.py`.

A table is made from the settings of the command line of `plan_workers.py`, which describes them.
Sizes of states are those of the transformations themselves (`jax.eval_shape`).
"""

import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from contenders import resnet34, tree_bytes
from cycles import (
    Setting,
    cycle_seconds,
    exchange_seconds,
    least_period,
    messages,
    ring_bytes,
    seconds_if_all_restart,
    share_if_others_go_on,
    simulate,
    slowest_by_jitter,
    slowest_by_spread,
    utilisation,
)
from tables import HOUR, duration, percent, size

from slrla_jax import diloco

RATES = {
    "1 Mbit/s": 1e6,
    "10 Mbit/s": 1e7,
    "100 Mbit/s": 1e8,
    "1 Gbit/s": 1e9,
    "10 Gbit/s": 1e10,
    "100 Gbit/s": 1e11,
}
DTYPES = ("float32", "bfloat16", "int8")
VOCABULARY = 32_000
# Workers in the tables by bandwidth, whose numbers depend on R as 2(R − 1)/R does.
MANY = 64
SHARE = 0.9  # Of the time, in which workers should compute.


def transformer(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the params of a decoder whose embedding is also its head."""
    shapes: dict[str, tuple[int, ...]] = {"embedding": (VOCABULARY, width)}
    for layer in range(layers):
        shapes |= {
            f"{layer}/attention/in": (width, 3 * width),
            f"{layer}/attention/out": (width, width),
            f"{layer}/perceptron/in": (width, 4 * width),
            f"{layer}/perceptron/out": (4 * width, width),
            f"{layer}/norm0": (width,),
            f"{layer}/norm1": (width,),
        }
    return shapes


MODELS = {
    "ResNet-18": resnet34((2, 2, 2, 2)),
    "150 M": transformer(12, 896),
    "1 B": transformer(20, 1984),
    "7 B": transformer(32, 4224),
}
PLANNED = "1 B"


def parameters(model: str) -> int:
    """The number of params of a model."""
    return sum(math.prod(shape) for shape in MODELS[model].values())


def setting(args: Namespace, model: str, dtype: str, rate: float, workers: int = MANY) -> Setting:
    """Workers of equal speed that do not fail, without latency."""
    size = parameters(model) * jnp.dtype(dtype).itemsize
    return Setting(workers, args.sync_period, args.step_seconds, size, rate)


Table = tuple[list[str], list[list[str]]]


def bytes_table(args: Namespace) -> Table:
    """What each worker sends, spread over the steps."""
    rows = []
    for model in MODELS:
        sent = {
            dtype: ring_bytes(MANY, parameters(model) * jnp.dtype(dtype).itemsize)
            for dtype in DTYPES
        }
        parallel = [size(sent[dtype]) for dtype in DTYPES[:2]]
        local = [size(sent[dtype] / args.sync_period) for dtype in DTYPES]
        rows.append([model, f"{parameters(model) / 1e6:,.0f} M", *parallel, *local])
    header = ["", "params", *(f"data parallel, {dtype}" for dtype in DTYPES[:2])]
    return [*header, *(f"local, {dtype}" for dtype in DTYPES)], rows


def exchange_table(args: Namespace) -> Table:
    """The time of one exchange by bandwidth, without latency."""
    rows = [
        [
            f"{model}, {dtype}",
            *(duration(exchange_seconds(setting(args, model, dtype, b))) for b in RATES.values()),
        ]
        for model in MODELS
        for dtype in (DTYPES[0], DTYPES[-1])
    ]
    return ["", *RATES], rows


def messages_table(args: Namespace) -> Table:
    """What latency adds to an exchange by the number of workers."""
    latencies = (1e-4, 1e-2, 1e-1)
    arrays = len(MODELS[PLANNED])
    rows = []
    for workers in args.workers:
        one = [Setting(workers, 1, 1.0, 0.0, math.inf, latency) for latency in latencies]
        each = replace(one[1], arrays=arrays)
        seconds = [duration(exchange_seconds(of)) for of in (*one, each)]
        rows.append([f"{workers:,}", f"{messages(workers):,}", *seconds])
    header = ["workers", "messages", *(f"at {duration(x)}" for x in latencies)]
    return [*header, f"at {duration(latencies[1])}, {arrays} arrays apart"], rows


def period_table(args: Namespace) -> Table:
    """The least sync period at which workers compute nine tenths of the time."""
    rows = [
        [
            f"{model}, {dtype}",
            *(f"{least_period(setting(args, model, dtype, b), SHARE):,}" for b in RATES.values()),
        ]
        for model in MODELS
        for dtype in (DTYPES[0], DTYPES[-1])
    ]
    return ["", *RATES], rows


def utilisation_table(args: Namespace) -> Table:
    """The share of time that computes, for one model."""
    rows = []
    for dtype, period in (
        ("float32", 1),
        ("float32", args.sync_period),
        ("int8", args.sync_period),
    ):
        title = "data parallel" if period == 1 else f"local, k = {period}"
        settings = [
            replace(setting(args, PLANNED, dtype, rate), sync_period=period)
            for rate in RATES.values()
        ]
        rows.append([f"{title}, {dtype}", *(percent(utilisation(of)) for of in settings)])
    return ["", *RATES], rows


def memory_table(args: Namespace) -> Table:
    """What a worker holds and what checkpoints have once, with AdamW and compression."""
    tx = diloco(optax.adamw(1e-3), "worker", None, pseudo_gradient_dtype="int8")
    rows = []
    for model, shapes in MODELS.items():
        params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
        state = jax.eval_shape(tx.init, params)
        parts = {
            "params": params,
            "inner state": state.inner_state,
            "residual": state.residual,
            "θ": state.cycle_start_params,
            "outer momentum": state.outer_state,
            "a worker": (params, state),
            "common to all": (state.cycle_start_params, state.outer_state),
        }
        rows.append([model, *(size(tree_bytes(part)) for part in parts.values())])
    return ["", *parts], rows


def limited(args: Namespace, workers: int) -> Setting:
    """Workers with everything that the command line says of them."""
    return replace(
        setting(args, PLANNED, args.send, args.mbits * 1e6, workers),
        latency=args.latency,
        spread=args.spread,
        jitter=args.jitter,
        failure_seconds=args.failure_hours * HOUR,
        restart_seconds=args.restart_minutes * 60,
    )


def limits_table(args: Namespace) -> Table:
    """What each limit adds to the time of k steps, on its own."""
    compute = args.sync_period * args.step_seconds
    rows = []
    for workers in args.workers:
        of = limited(args, workers)
        transfer = replace(of, latency=0.0)
        cycle = cycle_seconds(transfer)
        added = [
            exchange_seconds(transfer) / compute,
            exchange_seconds(replace(of, sent_bytes=0)) / compute,
            slowest_by_spread(workers, of.spread) - 1,
            slowest_by_jitter(workers, of.jitter, of.sync_period) - 1,
            slowest_by_jitter(workers, of.jitter, 1) - 1,
            1 / share_if_others_go_on(of, cycle) - 1,
            seconds_if_all_restart(of, cycle) / cycle - 1,
        ]
        rows.append([f"{workers:,}", *map(percent, added)])
    header = [
        "workers",
        "bytes",
        "latency",
        "lasting differences of speed",
        "chance, in a cycle",
        "chance, in a step",
        "failures, others go on",
        "failures, all restart",
    ]
    return header, rows


def simulation_table(args: Namespace) -> Table:
    """The share of time that computes with all limits at once: formulas against a simulation."""
    rows = []
    for workers in args.workers:
        of = limited(args, workers)
        slowest = slowest_by_spread(workers, of.spread) * slowest_by_jitter(
            workers, of.jitter, of.sync_period
        )
        compute = of.sync_period * of.step_seconds
        cycle = compute * slowest + exchange_seconds(of)
        go_on = compute / cycle * share_if_others_go_on(of, cycle)
        restart = compute / seconds_if_all_restart(of, cycle)
        rows.append(
            [
                f"{workers:,}",
                percent(go_on),
                simulated(args, of, others_go_on=True),
                percent(restart),
                # Not if a cycle takes a thousand attempts.
                simulated(args, of, others_go_on=False) if restart > go_on / 1_000 else "–",
            ]
        )
    return ["workers", "others go on", "simulated", "all restart", "simulated"], rows


def simulated(args: Namespace, of: Setting, *, others_go_on: bool) -> str:
    """The share of time that computes, as mean ± standard deviation of several runs."""
    rng = np.random.default_rng(args.seed)
    runs = [
        simulate(of, args.cycles, rng, others_go_on=others_go_on).utilisation
        for _ in range(args.runs)
    ]
    return f"{percent(np.mean(runs))} ± {percent(np.std(runs, ddof=1))}"


TABLES: dict[str, Callable[[Namespace], Table]] = {
    "bytes": bytes_table,
    "exchange": exchange_table,
    "messages": messages_table,
    "period": period_table,
    "utilisation": utilisation_table,
    "memory": memory_table,
    "limits": limits_table,
    "simulation": simulation_table,
}
