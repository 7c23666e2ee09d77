"""Times contenders in turns, and records the conditions of the measurement."""

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

    In every round the contenders take turns in random order. Each takes one untimed step, which
    leaves the caches and threads in the state of its own steps, and then `steps` timed steps.
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
    """The ratios of one contender's times to those of another, round by round."""
    return np.asarray(times[name]) / np.asarray(times[base])


def spread(times: dict[str, list[float]], name: str, base: str) -> list[str]:
    """The median and quartiles of the ratios."""
    low, median, high = np.quantile(ratios(times, name, base), [0.25, 0.5, 0.75])
    return [f"{median:.2f}", f"{low:.2f}–{high:.2f}"]


def circumstances(*packages: str) -> dict[str, Any]:
    """The machine and its load, the versions, the date and the command."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "machine": {
            "processor": names[0] if names else platform.processor(),
            "cores": os.cpu_count(),
            "backend": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "load": os.getloadavg()[0],
        },
        "versions": versions(*packages),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def heading(results: dict[str, Any]) -> str:
    """The conditions of the measurement in one sentence."""
    of, on = results["machine"], results["versions"]
    # A CPU's kind is no more than "cpu", and older results have none.
    device = f" ({of['device']})" if of.get("device", "cpu") != "cpu" else ""
    return (
        f"`{results['command']}` on {results['date'][:10]}: {of['processor']}, {of['cores']} cores "
        f"(load before: {of['load']:.1f}), backend {of['backend']}{device}; "
        + ", ".join(f"{package} {version}" for package, version in on.items())
        + "."
    )
