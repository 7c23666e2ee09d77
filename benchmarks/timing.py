"""Contenders that take turns, and the circumstances they were timed in."""

import datetime
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tables import versions


def take_turns(
    run: dict[str, Callable[[int], None]], rounds: int, steps: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Milliseconds per step of each contender in each round.

    In every round they take turns in random order: a step that is not timed, so that each
    finds the caches and the threads as it leaves them itself, then `steps` that are.
    """
    times: dict[str, list[float]] = {name: [] for name in run}
    for name in run:
        run[name](steps)
    for _ in range(rounds):
        for name in rng.permutation(list(run)):
            run[name](1)
            start = time.perf_counter()
            run[name](steps)
            times[name].append((time.perf_counter() - start) / steps * 1e3)
    return times


def ratios(times: dict[str, list[float]], name: str, base: str) -> np.ndarray:
    """A contender's times as multiples of another's, round by round."""
    return np.asarray(times[name]) / np.asarray(times[base])


def spread(times: dict[str, list[float]], name: str, base: str) -> list[str]:
    """Median and quartiles of the ratios."""
    low, median, high = np.quantile(ratios(times, name, base), [0.25, 0.5, 0.75])
    return [f"{median:.2f}", f"{low:.2f}–{high:.2f}"]


def circumstances(*packages: str) -> dict[str, Any]:
    """The machine, how busy it is, the versions, the date and the command."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "machine": {
            "processor": names[0] if names else platform.processor(),
            "cores": os.cpu_count(),
            "backend": jax.default_backend(),
            "load": os.getloadavg()[0],
        },
        "versions": versions(*packages),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def heading(results: dict[str, Any]) -> str:
    """The circumstances in a sentence."""
    of, on = results["machine"], results["versions"]
    return (
        f"`{results['command']}` on {results['date'][:10]}: {of['processor']}, {of['cores']} cores "
        f"(load before: {of['load']:.1f}), backend {of['backend']}; "
        + ", ".join(f"{package} {version}" for package, version in on.items())
        + "."
    )
