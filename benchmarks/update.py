"""Time and memory of one optimizer update, against the inner optimizer, optax and PyTorch.

    python benchmarks/update.py --json benchmarks/results/update.json   # about 7 minutes
    python benchmarks/update.py --small                                 # a smoke test
    python benchmarks/update.py --show benchmarks/results/update.json   # the tables again

An update is `tx.update` and `optax.apply_updates` in one jitted function with params
and state donated, over the parameters of a ResNet-34. In every round each contender of
one inner optimizer takes its turn, in random order: a step that is not timed, then one
whole cycle, so that every timing has a sync in it. Ratios are taken within a round and
their medians printed, so that a machine that slows down and recovers changes little.

PyTorch's rows need `torch` and `pytorch_optimizer`, of the extra `benchmark`.
"""

import argparse
import functools
import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from contenders import (
    LEARNING_RATE,
    MOMENTUM,
    SLOW_STEP_SIZE,
    SYNC_PERIOD,
    WEIGHT_DECAY,
    Program,
    contenders,
    program_facts,
    random_tree,
    resnet34,
    tree_bytes,
)
from tables import TITLES, markdown, programs_table
from timing import circumstances, heading, ratios, spread, take_turns

try:
    import pytorch_optimizer
    import torch
except ImportError:
    torch = None


# What is aimed at: contender, its base, inner optimizer, and the bound on the ratio of
# their times; `>=` where the contender is the slower one by intention.
AIMS = [
    ("lookahead", "inner", "momentum", "<=", 1.45),
    ("lookahead", "inner", "adam", "<=", 1.35),
    ("lookahead", "inner", "adamw", "<=", 1.35),
    ("slrla_sgd", "inner", "momentum", "<=", 1.6),
    ("slrla", "inner", "momentum", "<=", 2.1),
    ("slrla", "inner", "adam", "<=", 2.1),
    ("slrla", "inner", "adamw", "<=", 2.1),
    ("optax.lookahead", "lookahead", "momentum", ">=", 4.0),
    ("optax.lookahead", "lookahead", "adam", ">=", 3.0),
    ("optax.lookahead", "lookahead", "adamw", ">=", 3.0),
]
# The others compute norms, for which a compiler needs partial sums.
FAMILY = ("lookahead", "multilayer_lookahead", "slrla_sgd", "slrla")
# A flag, a counter or a step size in an array of its own is no temporary copy of anything.
SCALARS = 4096


def main() -> None:
    """Runs the benchmark as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="timings of each contender; 40, or 2 if small")
    parser.add_argument("--seed", type=int, default=0, help="of the values and of the turns")
    parser.add_argument("--small", action="store_true", help="a tiny tree: a test, no measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of a file")
    flags = parser.parse_args()

    if flags.show:
        print(report(json.loads(flags.show.read_text())))
        return
    if torch is None:
        print("PyTorch is skipped: `torch` or `pytorch_optimizer` is not installed.\n")
    results = measure(flags.rounds or (2 if flags.small else 40), flags.seed, flags.small)
    print(report(results))
    if flags.json:
        flags.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(rounds: int, seed: int, small: bool) -> dict[str, Any]:
    """All measurements, and the circumstances they were made in."""
    rng = np.random.default_rng(seed)
    shapes = resnet34((1,), 8, 10) if small else resnet34()
    values, grads = random_tree(shapes, rng), random_tree(shapes, rng)
    results = {
        **circumstances("torch", "pytorch_optimizer"),
        "seed": seed,
        "rounds": rounds,
        "steps_per_timing": SYNC_PERIOD,
        "parameters": sum(x.size for x in values.values()),
        "leaves": len(values),
        "small": small,
        "optimizers": {},
    }
    for optimizer in TITLES:
        results["optimizers"][optimizer] = measure_optimizer(optimizer, values, grads, rounds, rng)
        gc.collect()
    return results


def measure_optimizer(
    optimizer: str,
    values: dict[str, np.ndarray],
    grads: dict[str, np.ndarray],
    rounds: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Times and programs of all that is put around one inner optimizer."""
    on_device = jax.device_put(grads)
    programs = {c.name: Program(c, values, on_device) for c in contenders(optimizer)}
    facts = {}
    kept_by_inner = tree_bytes((programs["inner"].state, programs["inner"].params))
    for name, program in programs.items():
        kept = tree_bytes((program.state, program.params)) - kept_by_inner
        copies = kept / tree_bytes(values)
        facts[name] = program_facts(program.compiled) | {"copies_of_params": copies}
        program.check_donation()

    run = {name: program.run for name, program in programs.items()}
    if torch is not None:
        run |= torch_contenders(optimizer, values, grads)
    return {"programs": facts, "milliseconds": take_turns(run, rounds, SYNC_PERIOD, rng)}


def torch_contenders(
    optimizer: str, values: dict[str, np.ndarray], grads: dict[str, np.ndarray]
) -> dict[str, Callable[[int], None]]:
    """PyTorch's optimizer, as it is by default and fused, alone and with Lookahead."""
    torch.set_num_threads(os.cpu_count() or 1)
    makers = {
        "momentum": functools.partial(torch.optim.SGD, momentum=MOMENTUM),
        "adam": torch.optim.Adam,
        "adamw": functools.partial(torch.optim.AdamW, weight_decay=WEIGHT_DECAY),
    }

    def make(fused: bool, wrapped: bool) -> Callable[[int], None]:
        params = [torch.nn.Parameter(torch.tensor(x)) for x in values.values()]
        for param, grad in zip(params, grads.values(), strict=True):
            param.grad = torch.tensor(grad)
        inner = makers[optimizer](params, lr=LEARNING_RATE, fused=fused or None)
        if wrapped:
            inner = pytorch_optimizer.Lookahead(inner, k=SYNC_PERIOD, alpha=SLOW_STEP_SIZE)

        def run(steps: int) -> None:
            for _ in range(steps):
                inner.step()

        return run

    return {
        f"{kind} {name}": make(kind == "torch fused", name == "lookahead")
        for kind in ("torch", "torch fused")
        for name in ("inner", "lookahead")
    }


def report(results: dict[str, Any]) -> str:
    """The tables of a run, in Markdown."""
    parts = [
        f"{heading(results)} {results['parameters'] / 1e6:.1f} M parameters in "
        f"{results['leaves']} leaves; {results['rounds']} rounds of "
        f"{results['steps_per_timing']} steps, seed {results['seed']}."
    ]
    if results["small"]:
        parts.append("**The tree is tiny: these are no measurements.**")
    for optimizer, found in results["optimizers"].items():
        parts += [f"### {TITLES[optimizer]}", times_table(found), programs_table(found["programs"])]
        if "torch inner" in found["milliseconds"]:
            parts.append(torch_table(found))
    parts += ["### Aims", aims_table(results)]
    return "\n\n".join(parts)


def times_table(found: dict[str, Any]) -> str:
    """Each contender's time, and its ratio to the inner optimizer of its own framework."""
    times = found["milliseconds"]
    rows = []
    for name in times:
        framework = name.rpartition(" ")[0]
        inner = f"{framework} inner".strip()
        rows.append([name, f"{np.median(times[name]):.1f}", *spread(times, name, inner)])
    return markdown(["", "ms", "of inner", "quartiles"], rows)


def torch_table(found: dict[str, Any]) -> str:
    """Our times as parts of PyTorch's."""
    times = found["milliseconds"]
    rows = [
        [name, framework, *spread(times, name, f"{framework} {name}")]
        for name in ("inner", "lookahead")
        for framework in ("torch", "torch fused")
    ]
    return markdown(["ours", "against", "ratio of times", "quartiles"], rows)


def aims_table(results: dict[str, Any]) -> str:
    """What was aimed at, and whether it was met."""
    rows = []
    for optimizer, found in results["optimizers"].items():
        worst = max(
            program["temporaries"] for name, program in found["programs"].items() if name in FAMILY
        )
        title = TITLES[optimizer]
        rows.append(
            [title, "temporaries", "scalars", f"{worst} bytes", yes_or_no(worst <= SCALARS)]
        )
        for name, base, wanted, relation, bound in AIMS:
            if wanted == optimizer:
                ratio = float(np.median(ratios(found["milliseconds"], name, base)))
                met = ratio <= bound if relation == "<=" else ratio >= bound
                what = f"{name} / {base}"
                rows.append([title, what, f"{relation} {bound}", f"{ratio:.2f}", yes_or_no(met)])
    return markdown(["", "", "aim", "measured", "met"], rows)


def yes_or_no(met: bool) -> str:
    """A verdict."""
    return "yes" if met else "**no**"


if __name__ == "__main__":
    main()
