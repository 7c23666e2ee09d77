"""The file `settings.json` of a sweep: what it ran, and each process with versions and machine."""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jax

import slrla_jax
from experiments import processes
from experiments.checkpoints import OtherRun, differences

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "scikit-learn")

Settings = dict[str, Any]


def merged(
    path: Path,
    fingerprints: Mapping[str, Settings],
    seeds: Sequence[int],
    more_epochs: int,
    flag_of: Callable[[str], str],
) -> Settings:
    """Returns the settings of a sweep, with those that are in its file already.

    Args:
      path: of the file, which need not exist.
      fingerprints: what the records of each entry depend on, by its label.
      seeds: from which this process trains.
      more_epochs: by which this process extends the runs.
      flag_of: returns the flag of a setting, for messages.

    Raises:
      OtherRun: if an entry in the file has the label but not the settings of one here.
    """
    before = read_json(path)
    entries = dict(before.get("entries", {}))
    for label, here in fingerprints.items():
        if differing := differences(entries.get(label, here), here, flag_of):
            what = ", ".join(differing.values())
            raise OtherRun(f"{path.parent} is of another run: {what}", differing)
        entries[label] = here
    process = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seeds": list(seeds),
        "more_epochs": more_epochs,
        **circumstances(),
    }
    return {"entries": entries, "processes": [*before.get("processes", []), process]}


def circumstances() -> Settings:
    """Returns the versions of the packages, and the machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "versions": {
            "python": platform.python_version(),
            "slrla_jax": slrla_jax.__version__,
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
        "machine": {
            "platform": platform.platform(),
            "processor": names[0] if names else platform.machine(),
            "cpu_count": os.cpu_count(),
            "backend": jax.default_backend(),
            "devices": [device.device_kind for device in jax.devices()],
            "processes": processes.count(),
        },
    }


def weaker(settings: Settings) -> Iterator[str]:
    """Yields what the processes of a run differ in, so that it may not be equal bit for bit."""
    *earlier, now = settings["processes"]
    for before in earlier[-1:]:
        # What was run before processes were counted was run on one.
        there = {"processes": 1, **before["versions"], **before["machine"]}
        here = {**now["versions"], **now["machine"]}
        changed = [
            f"{name} {there.get(name)} before and {here[name]} now"
            for name in here
            if there.get(name) != here[name] and name != "platform"
        ]
        if changed:
            yield f"Resumed with {', '.join(changed)}: results may differ in the last bits"


def shown_command(command: str) -> str:
    """Returns a command as it is published: without the folders of this machine."""
    command = re.sub(r"^\S*(python)\S*", r"\1", command)
    command = re.sub(r"\S*(examples/\w+\.py)", r"\1", command)
    command = re.sub(r" --root[ =]\S+", "", command)
    return re.sub(r"(--data_path[ =])\S+", r"\1DIR", command)


def read_json(path: Path) -> Settings:
    """Returns the object in a JSON file; an empty one where it is damaged or not there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file as a whole, so that a killed process leaves the one before.

    A list of numbers is on one line.
    """
    whole = path.with_name(f"{path.name}.new")
    text = json.dumps(content, indent=1, ensure_ascii=False)
    text = re.sub(r'\[\n([^][{}"]*)\n *\]', lambda found: f"[{' '.join(found[1].split())}]", text)
    whole.write_text(f"{text}\n", encoding="utf-8")
    os.replace(whole, path)
