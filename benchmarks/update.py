"""Time and memory of one optimizer update, compared with the inner optimizer, optax and PyTorch.

    python benchmarks/update.py --json benchmarks/results/update.json   # about 7 minutes
    python benchmarks/update.py --small                                 # a smoke test
    python benchmarks/update.py --show benchmarks/results/update.json   # the tables again

An update is `tx.update` and `optax.apply_updates` in one jit-compiled function with params and
state donated, over the params of a ResNet-34. In every round, the contenders for one inner
optimizer take turns in random order: each takes one untimed step and then one whole cycle, so that
every timing contains a sync. Ratios are computed within a round and their medians printed, so a
temporary slowdown of the machine has little effect.

The rows for PyTorch need `torch` and `pytorch_optimizer`, from the extra `benchmark`.
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
from compiled import program_facts
from contenders import (
    LEARNING_RATE,
    MOMENTUM,
    SLOW_STEP_SIZE,
    SYNC_PERIOD,
    WEIGHT_DECAY,
    Program,
    contenders,
    random_tree,
    resnet34,
    tree_bytes,
)
from tables import MEGABYTE, TITLES, markdown
from timing import circumstances, heading, ratios, spread, take_turns

try:
    import pytorch_optimizer
    import torch
except ImportError:
    torch = None


# The targets: contender, baseline, inner optimizer, and the bound on the ratio of their times;
# `>=` if the contender is expected to be the slower one.
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
# The other transformations compute norms, for which the compiler needs temporary partial sums.
FAMILY = ("lookahead", "multilayer_lookahead", "slrla_sgd", "slrla")
# Those that the pages outside of this folder show.
SUMMARISED = (
    "lookahead",
    "multilayer_lookahead",
    "slrla_sgd",
    "slrla",
    "primal_averaging",
    "snoo",
    "snoo-manual",
    "optax.lookahead",
)
# In bytes. Temporaries for flags, counters and step sizes are not copies of params.
SCALARS = 4096


def main() -> None:
    """Runs the benchmark with the settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--rounds", type=int, help="timings per contender (default: 40, or 2 with --small)"
    )
    parser.add_argument("--seed", type=int, default=0, help="for values and order (default: 0)")
    parser.add_argument("--inner", choices=TITLES, help="the inner optimizer (default: all)")
    parser.add_argument("--small", action="store_true", help="a tiny tree, as a smoke test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of a file")
    flags = parser.parse_args()

    if flags.show:
        print(report(json.loads(flags.show.read_text())))
        return
    if torch is None:
        print("Skipping PyTorch: `torch` or `pytorch_optimizer` is not installed.\n")
    optimizers = [flags.inner] if flags.inner else list(TITLES)
    rounds = flags.rounds or (2 if flags.small else 40)
    results = measure(optimizers, rounds, flags.seed, flags.small)
    print(report(results))
    if flags.json:
        flags.json.write_text(json.dumps(results, indent=1) + "\n")


def measure(optimizers: list[str], rounds: int, seed: int, small: bool) -> dict[str, Any]:
    """Takes all measurements around these inner optimizers, and records the conditions."""
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
    for optimizer in optimizers:
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
    """Measures all contenders for one inner optimizer."""
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
    for contender in contenders(optimizer):
        if contender.full_sync is not None:
            manual = Program(contender, values, on_device, manual=True)
            manual.check_donation()
            run[f"{contender.name}-manual"] = manual.run
    if torch is not None:
        run |= torch_contenders(optimizer, values, grads)
    return {"programs": facts, "milliseconds": take_turns(run, rounds, SYNC_PERIOD, rng)}


def torch_contenders(
    optimizer: str, values: dict[str, np.ndarray], grads: dict[str, np.ndarray]
) -> dict[str, Callable[[int], None]]:
    """PyTorch's optimizer, with its defaults and fused, alone and inside Lookahead."""
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
    """Formats the results as Markdown."""
    parts = [
        f"{heading(results)} {results['parameters'] / 1e6:.1f} M parameters in "
        f"{results['leaves']} leaves; {results['rounds']} rounds of "
        f"{results['steps_per_timing']} steps, seed {results['seed']}."
    ]
    if results["small"]:
        parts.append("**The tree is tiny: these are not measurements.**")
    for optimizer, found in results["optimizers"].items():
        parts += [f"### {TITLES[optimizer]}", times_table(found), programs_table(found["programs"])]
        if "torch inner" in found["milliseconds"]:
            parts.append(torch_table(found))
    parts += ["### Targets", aims_table(results)]
    return "\n\n".join(parts)


def summary(results: dict[str, Any]) -> str:
    """Formats the ratios of times to those of the inner optimizer alone."""
    found = results["optimizers"]
    times = [one["milliseconds"] for one in found.values()]
    rows = [
        [f"`{name}`", *(spread(t, name, "inner")[0] if name in t else "–" for t in times)]
        for name in SUMMARISED
    ]
    return markdown(["", *(TITLES[optimizer] for optimizer in found)], rows)


def times_table(found: dict[str, Any]) -> str:
    """The time of each contender, and its ratio to the inner optimizer in the same framework."""
    times = found["milliseconds"]
    rows = []
    for name in times:
        framework = name.rpartition(" ")[0]
        inner = f"{framework} inner".strip()
        rows.append([name, f"{np.median(times[name]):.1f}", *spread(times, name, inner)])
    return markdown(["", "ms", "ms / inner", "quartiles"], rows)


def programs_table(programs: dict[str, Any]) -> str:
    """The compiler's figures for each program; see `compiled.program_facts`."""
    header = [
        "",
        "temporaries, MB",
        "bytes accessed, MB",
        "(arguments + results) / inner",
        "fusions",
        "copies",
        "params held beyond inner",
    ]
    rows = [
        [
            name,
            f"{facts['temporaries'] / MEGABYTE:.3f}",
            f"{facts['accessed'] / MEGABYTE:.0f}" if facts["accessed"] else "–",
            f"{facts['least'] / programs['inner']['least']:.2f}",
            facts["fusions"],
            facts["copies"],
            f"{facts['copies_of_params']:.2f}",
        ]
        for name, facts in programs.items()
    ]
    return markdown(header, rows)


def torch_table(found: dict[str, Any]) -> str:
    """The ratios of our times to those of PyTorch."""
    times = found["milliseconds"]
    rows = [
        [name, framework, *spread(times, name, f"{framework} {name}")]
        for name in ("inner", "lookahead")
        for framework in ("torch", "torch fused")
    ]
    return markdown(["ours", "against", "ratio of times", "quartiles"], rows)


def aims_table(results: dict[str, Any]) -> str:
    """The targets, and whether they are met."""
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
    return markdown(["", "", "target", "measured", "met"], rows)


def yes_or_no(met: bool) -> str:
    """Formats a verdict."""
    return "yes" if met else "**no**"


if __name__ == "__main__":
    main()
