"""Faults in real processes, and what a run loses by them.

    python benchmarks/faults.py --json benchmarks/results/faults.json
    python benchmarks/faults.py --small                                # a smoke test

`examples/main.py` trains a perceptron with Lookahead on the digits, on several processes that are
started as on as many hosts. Faults come at random moments, and what fails is resumed. At the end
params, optimizer state and records are compared bit for bit with those of an undisturbed run.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fault_lab import ENDED, LOOK, NONE, SECONDS, Fault, Lab, saves, state_of
from tables import markdown
from timing import circumstances, heading

import slrla_jax

HOURS = 5 * 3600
# By which two programs differ that compute the same.
ROUNDING = 1e-5


def kills(lab: Lab, count: int, times: int) -> Fault:
    """Kills one process at a time, of a run that is resumed after each."""
    name, seconds, lines = f"killed {count}", [], []
    while len(seconds) < times:
        with lab.started(name, count, NONE) as processes:
            victim = processes[lab.rng.integers(count)]
            wanted, before = lab.rng.integers(1, 3), saves(lab.root / name)
            while len(saves(lab.root / name) - before) < wanted and victim.poll() is None:
                time.sleep(LOOK)
            time.sleep(lab.rng.uniform(0, 0.1))
            if victim.poll() is not None:
                raise RuntimeError(f"the run has ended after {len(seconds)} kills")
            victim.kill()
            killed = time.monotonic()
            others = [process for process in processes if process is not victim]
            for process in others:
                said = process.communicate(timeout=SECONDS)[1].splitlines()
                if process.returncode not in ENDED:
                    raise RuntimeError(f"{process.returncode}: {said}")
                lines.append(len(said))
            seconds.append(time.monotonic() - killed)
    lab.run(name, count)
    return {
        "fault": "a process is killed",
        "processes": count,
        "times": times,
        "seconds": seconds,
        "lines": max(lines),
        "lost": lab.lost(name, count),
    }


def full_disks(lab: Lab, count: int, times: int) -> Fault:
    """Lets the disk of one process be full, of a run that is resumed with room on it after each."""
    name, lines = f"full disk {count}", []
    for _ in range(times):
        process, save = int(lab.rng.integers(count)), int(lab.rng.integers(2, 4))
        said = lab.run(name, count, {"fault": "full_disk", "process": process, "save": save})
        lines.append(len(said))
    lab.run(name, count)
    return {
        "fault": "the disk of a process is full",
        "processes": count,
        "times": times,
        "lines": max(lines),
        "lost": lab.lost(name, count),
    }


def slow_data(lab: Lab, count: int, times: int) -> Fault:
    """Lets the data of one process be late, in one run."""
    steps = sorted({lab.step() for _ in range(times)})
    fault = {"fault": "slow_data", "process": count - 1, "steps": steps, "seconds": 1.0}
    said = lab.run(f"slow data {count}", count, fault)
    return {
        "fault": "the data of a process are a second late",
        "processes": count,
        "times": len(steps),
        "lines": len(said),
        "lost": lab.lost(f"slow data {count}", count),
    }


def skewed_clocks(lab: Lab, count: int, times: int) -> Fault:
    """Lets the clock of one process be hours before or behind, in runs that are interrupted."""
    lost: dict[str, bool] = {}
    lines = []
    for n in range(times):  # Once before, once behind.
        name = f"skewed clock {count} {n}"
        process = int(lab.rng.integers(count))
        skewed = {"fault": "skewed_clock", "process": process, "seconds": (-1) ** n * HOURS}
        lines.append(len(lab.run(name, count, skewed)))
        for part, differs in lab.lost(name, count).items():
            lost[part] = lost.get(part, False) or differs
    return {
        "fault": "the clock of a process is 5 hours before or behind",
        "processes": count,
        "times": times,
        "lines": max(lines),
        "lost": lost,
    }


def nan_gradients(lab: Lab, count: int, times: int) -> list[Fault]:
    """Lets one process have NaN gradients, with and without a guard against them."""
    steps = sorted({lab.step() for _ in range(times)})
    fault = {"fault": "nan_gradients", "process": count - 1, "steps": steps}
    said = {
        how: lab.run(f"NaN {how} {count}", count, {**fault, "how": how})
        for how in ("left_out", "guarded", "unguarded")
    }
    guarded, wanted, unguarded = (
        lab.root / f"NaN {how} {count}" for how in ("guarded", "left_out", "unguarded")
    )
    (_, state), (_, without) = state_of(guarded), state_of(wanted)
    places = {  # Of the same array in both.
        name: name.replace("opt_state.inner_state.", "opt_state.1.")
        for name in state
        if name.startswith(("params.", "opt_state.inner_state."))
    }
    apart = max(float(np.abs(state[n] - without[m] * 1.0).max()) for n, m in places.items())
    common = {"processes": count, "times": len(steps)}
    return [
        {
            "fault": "NaN gradients in a process, with `optax.apply_if_finite`",
            **common,
            "lines": len(said["guarded"]),
            "skipped": int(state["opt_state.total_notfinite"]),
            "equal": len({checksums.read_text() for checksums in guarded.glob("checksums_*")}) == 1,
            "apart": apart,
            "lost": {"params": apart > ROUNDING, "optimizer state": apart > ROUNDING},
        },
        {
            "fault": "NaN gradients in a process, without a guard",
            **common,
            "lines": len(said["unguarded"]),
            "diverged": "the last good checkpoint" in (unguarded / "printed_0").read_text(),
            "lost": {},
        },
    ]


def diloco_replicas(rng: np.random.Generator, times: int) -> list[Fault]:
    """Lets one of four replicas that train alone between syncs have NaN gradients.

    With a guard inside `diloco` that replica leaves out its steps, and the others do not.
    """
    replicas, k, cycles = 4, 5, max(2, times)
    slopes = jnp.asarray(rng.normal(size=(replicas, 8)))
    bad = np.zeros((cycles * k, replicas), bool)
    bad[rng.choice(cycles * k - k, times, replace=False), rng.integers(replicas, size=times)] = True

    def trained_with(tx: optax.GradientTransformation, bad: np.ndarray) -> Any:
        def replica(slope: jax.Array, bad: jax.Array) -> Any:
            params = jnp.ones(8)

            def step(carried: Any, bad: jax.Array) -> tuple[Any, None]:
                params, state = carried
                gradient = jnp.where(bad, jnp.nan, params - slope)
                updates, state = tx.update(gradient, state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, tx.init(params)), bad)[0][0]

        return jax.vmap(replica, axis_name="replica", in_axes=(0, 1))(slopes, jnp.asarray(bad))

    guarded = optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=times)
    found = []
    for name, inner in (("with", guarded), ("without", optax.sgd(0.1))):
        tx = slrla_jax.diloco(inner, "replica", k)
        ends = trained_with(tx, bad)
        found.append(
            {
                "fault": f"NaN gradients in a replica of `diloco`, {name} the guard around its "
                "inner optimizer",
                "processes": replicas,
                "times": times,
                "finite": bool(jnp.isfinite(ends).all()),
                "moved": float(jnp.abs(ends[0] - trained_with(tx, 0 * bad)[0]).max()),
            }
        )
    return found


def measure(seed: int, small: bool) -> dict[str, Any]:
    """Injects all faults."""
    times = 1 if small else 10
    with tempfile.TemporaryDirectory() as root:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{root}/compiled"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        lab = Lab(Path(root), 2 if small else 16, seed)
        faults = [kills(lab, 2, times)]
        if not small:
            faults += [kills(lab, 4, 3)]
        faults += [
            *nan_gradients(lab, 2, times),
            full_disks(lab, 2, 1 if small else 4),
            slow_data(lab, 2, times),
            skewed_clocks(lab, 2, 1 if small else 2),
        ]
    faults += diloco_replicas(lab.rng, times)
    return {**circumstances(), "seed": seed, "steps": lab.steps, "faults": faults}


def report(results: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    rows = [
        [of["fault"], of["processes"], of["times"], outcome(of), losses(of)]
        for of in results["faults"]
    ]
    header = ["fault", "processes", "times", "what happens", "lost"]
    conditions = (
        f"{heading(results)} Runs of {results['steps']} steps with a checkpoint after each; seed "
        f"{results['seed']}."
    )
    return f"{conditions}\n\n{markdown(header, rows)}"


def outcome(of: Fault) -> str:
    """Says in words what a fault leads to."""
    if "seconds" in of:
        lines = "a line each" if of["lines"] == 1 else f"up to {of['lines']} lines"
        return (
            f"the others end with {lines}, in the median after {np.median(of['seconds']):.1f} s, "
            f"at most after {max(of['seconds']):.1f} s; resumed"
        )
    if "skipped" in of:
        equal = "with the same bits on all" if of["equal"] else "**with other bits on each**"
        return (
            f"all processes leave out {of['skipped']} steps, {equal}, and end within "
            f"{of['apart']:.0e} of a run that leaves out these by their numbers"
        )
    if "diverged" in of:
        return "all end with a line that names the last good checkpoint"
    if "finite" in of:
        if not of["finite"]:
            return "all replicas have NaN from the next sync on"
        return "that replica leaves out its steps, and the others do not"
    if of["lines"]:
        return "all end; resumed"
    return "goes on"


def losses(of: Fault) -> str:
    """Says in words what is lost."""
    if of.get("diverged"):
        return "the run, from there"
    if "finite" in of:
        return "its share of these steps" if of["finite"] else "the run"
    return ", ".join(name for name, differs in of["lost"].items() if differs) or "nothing"


def main() -> None:
    """Runs the benchmark with the settings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims (default: 0)")
    parser.add_argument("--small", action="store_true", help="each fault once, as a smoke test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of a file")
    flags = parser.parse_args()
    if flags.show:
        print(report(json.loads(flags.show.read_text())))
        return
    results = measure(flags.seed, flags.small)
    print(report(results))
    if flags.json:
        flags.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
