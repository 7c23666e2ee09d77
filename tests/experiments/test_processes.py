"""Several processes, real ones: the trajectory of one, a single writer, and one line of error."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import batchnorm_program
import jax
import launch
import main
import numpy as np
import pytest
from error_lines import error_line
from experiments import data, sweep, trained
from experiments.config import Config
from experiments.data.stream import Stream
from experiments.models import NETWORKS

EXAMPLES = Path(launch.__file__).parent
PROGRAM = batchnorm_program.__file__
SMALL = (
    "--dataset digits --network tiny --input_norm --train_images 100 --train_batch_size 20 "
    "--milestones none --lookahead 3_0.8 --tr_epochs 2 --exp_name mine"
)
JOIN = "--coordinator localhost:1 --num_processes 2 --process_id"
SECONDS = 200
# Four in .ci/full.
PROCESSES = int(os.environ.get("SLRLA_PROCESSES", "2"))


def started(folder, *command, **variables):
    """What a program has printed, and its exit code; each of its processes has one device."""
    path = [str(EXAMPLES), str(EXAMPLES.parent), str(Path(PROGRAM).parent)]
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(path), **variables}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", **environment},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def on_several(folder, flags=SMALL, **variables):
    command = [EXAMPLES / "launch.py", "--processes", str(PROCESSES), PROGRAM, *flags.split()]
    return started(folder, *command, **variables)


def on_one(folder, monkeypatch, *, devices, flags=SMALL):
    """Runs the program in this process, on some of its devices; returns the exit code."""
    some = jax.devices()[:devices]
    with monkeypatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(jax, "devices", lambda: some)
        patched.setitem(NETWORKS, "tiny", batchnorm_program.Tiny)
        return main.main(flags.split())


def metrics(folder):
    lines = (folder / "runs/mine/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{n: v for n, v in r.items() if n not in ("optimizer", "timing")} for r in records]


def weights(folder):
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(NETWORKS, "tiny", batchnorm_program.Tiny)
        run = trained.load(folder / "runs/mine/checkpoints/seed_0")
    return jax.tree.leaves((run.params, run.stats))


def assert_equal_to_rounding(there, here):
    for one, other in zip(metrics(there), metrics(here), strict=True):
        assert one == pytest.approx(other, rel=2e-5)
    for one, other in zip(weights(there), weights(here), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A run of these processes, in a folder of its own, and what they have printed."""
    folder = tmp_path_factory.mktemp("several")
    return folder, on_several(folder)


def test_two_processes_are_one_with_two_devices(several, tmp_path, monkeypatch):
    there, done = several
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("epoch 2/2") == 1
    assert "Gloo" not in done.stdout
    (process,) = json.loads((there / "runs/mine/settings.json").read_text())["processes"]
    assert process["machine"]["processes"] == PROCESSES
    assert process["machine"]["devices"] == ["cpu"] * PROCESSES
    assert on_one(tmp_path, monkeypatch, devices=PROCESSES) == 0
    assert_equal_to_rounding(there, tmp_path)

    # One process with one device resumes what they have saved.
    parts = tmp_path / "parts"
    shutil.copytree(there, parts)
    for folder, devices in ((parts, 1), (tmp_path, PROCESSES)):
        more = f"{SMALL} --resume --extend_epochs 1"
        assert on_one(folder, monkeypatch, devices=devices, flags=more) == 0
    assert_equal_to_rounding(parts, tmp_path)


def test_all_processes_stop_after_the_same_step(tmp_path, monkeypatch):
    long = SMALL.replace("--tr_epochs 2", "--tr_epochs 4000 --eval_every 4000")
    stopped = on_several(tmp_path, long, STOP_AT="7")
    assert stopped.returncode == 143
    said = [line for line in stopped.stderr.splitlines() if "SIGTERM caught" not in line]
    assert len(said) == 1
    step = re.fullmatch(
        r"main.py: stopped after (\d+) of 20000 steps; --resume resumes from there", said[0]
    )
    (seed,) = (tmp_path / "runs/mine/checkpoints").rglob("seed_0")
    assert step[1] in {path.name for path in seed.iterdir()}


def test_what_is_wrong_on_all_is_said_once(several):
    there, _ = several
    before = metrics(there)
    again = on_several(there)
    assert again.returncode == 2
    assert (
        again.stderr
        == "main.py: error: --exp_name: there is a run in runs/mine; --resume resumes it\n"
    )
    assert again.stdout == ""
    assert metrics(there) == before


def test_a_coordinator_that_is_not_there(tmp_path):
    done = started(tmp_path, PROGRAM, *f"{SMALL} {JOIN} 1 --connect_within 0.5".split())
    assert done.returncode == 2
    assert done.stderr == (
        "batchnorm_program.py: error: --coordinator: nothing answers at localhost:1 within 0.5 "
        "seconds\n"
    )


def test_an_environment_that_jax_does_not_recognise(monkeypatch, capsys):
    def initialize(*given, **options):
        assert (given, options["cluster_detection_method"]) == ((None, None, None), None)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    said = error_line(main.main, "--dataset digits --distributed", capsys)
    assert "--distributed: finds no SLURM, Open MPI, Kubernetes or TPU pod here" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (f"{JOIN} 2", "--process_id: must be below the 2 processes, got 2"),
        (f"{JOIN} -1", "--process_id: must be a whole number from 0, got '-1'"),
        ("--process_id 0", "--coordinator: must be given with the other two, or --distributed"),
        ("--coordinator there", "--coordinator: must be HOST:PORT, got 'there'"),
    ],
)
def test_flags_that_name_no_processes(flags, said, capsys):
    assert said in error_line(main.main, f"--dataset digits {flags}", capsys)


def test_a_port_in_use(capsys):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        flags = f"--coordinator localhost:{port} --num_processes 2 --process_id 0"
        said = error_line(main.main, f"--dataset digits {flags}", capsys)
    assert f"--coordinator: cannot have port {port} here: Address already in use" in said


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("sys.exit(0)", 0, []),
        ("print('wrong', file=sys.stderr); sys.exit(2)", 2, ["wrong"]),
        (
            "me and os.kill(os.getpid(), 9); time.sleep(60)",
            137,
            ["process 1 was killed by SIGKILL"],
        ),
        (
            "me and sys.exit(3); time.sleep(60)",
            3,
            ["process 1 exited with 3; the others are ended"],
        ),
        ("me and print('alone', file=sys.stderr)", 0, ["[1] alone"]),
    ],
)
def test_the_launcher_ends_all(code, exit_code, said, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(launch, "GRACE", 0.0)
    program = tmp_path / "program.py"
    program.write_text(f"import os, sys, time\nme = int(sys.argv[-1][-1])\n{code}\n")
    assert launch.main(["--processes", "2", str(program)]) == exit_code
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(said)
    assert all(part in line for part, line in zip(said, lines, strict=True))


def test_processes_share_batches(monkeypatch):
    digits = data.load("digits")
    whole = digits.train_batches(3, 20, 4)
    parts = [digits.train_batches(3, 5, 4, process, 4) for process in range(4)]
    for _ in range(40):
        np.testing.assert_array_equal(next(whole), np.concatenate([next(part) for part in parts]))


@pytest.mark.parametrize("size", [1, 9, 2000, 2001, 4100])
def test_processes_share_the_images_that_are_evaluated(size):
    digits = data.load("digits")
    parts = [list(digits.eval_batches("test", size, 4, process, 2)) for process in range(2)]
    assert len(parts[0]) == len(parts[1])
    seen = np.concatenate([i[counted] for part in parts for i, counted in part])
    np.testing.assert_array_equal(np.sort(seen), np.arange(size))


@pytest.mark.parametrize("size", [3, 8, 401])
def test_processes_have_equally_many_batches_of_a_stream(size, monkeypatch):
    def test_batches(self, batch_size, process_index, process_count):
        own = np.arange(size)[process_index::process_count]
        for start in range(0, len(own), batch_size):
            labels = own[start : start + batch_size].astype("i4")
            yield np.zeros((len(labels), 1, 1, 3), "u1"), labels

    monkeypatch.setattr(Stream, "test_batches", test_batches)
    monkeypatch.setattr(Stream, "image_shape", (1, 1, 3))
    stream = Stream(name="", classes=2, mean=0, std=1, train=(), test=range(size), workers=0)
    parts = [list(stream.eval_batches("test", size, 4, process, 4)) for process in range(4)]
    assert len({len(part) for part in parts}) == 1
    seen = np.concatenate([labels[counted] for part in parts for (_, labels), counted in part])
    np.testing.assert_array_equal(np.sort(seen), np.arange(size))


def test_one_device_of_each_process(monkeypatch):
    class Device:
        def __init__(self, process_index, number):
            self.process_index, self.id = process_index, number

    asked = []
    found = [Device(process, number) for number in range(3) for process in (1, 0)]
    monkeypatch.setattr(jax, "devices", lambda: found)
    flags = sweep.Sweep(
        entries=[sweep.Entry("it", Config(dataset="digits"))],
        seeds=[0],
        report=None,
        one_device=True,
        run_of=lambda config, dataset, *, on, **options: asked.extend(on),
    )
    sweep.build(flags)
    assert [(device.process_index, device.id) for device in asked] == [(0, 0), (1, 0)]
