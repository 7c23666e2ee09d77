"""Several processes, real ones: the trajectory of one, a single writer, and one line of error."""

import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import batchnorm_program
import jax
import launch
import main
import numpy as np
import pytest
from error_lines import error_line
from experiments import data, native_output, sweep, trained, writes
from experiments.config import Config
from experiments.data.stream import Stream
from forked import ENVIRONMENT, PATH, SECONDS, fork, on_forked
from published import encoded, write_prepared

EXAMPLES = Path(launch.__file__).parent
PROGRAM = batchnorm_program.__file__
# Four and ten in .ci/full.
PROCESSES = int(os.environ.get("SLRLA_PROCESSES", "2"))
KILLS = int(os.environ.get("SLRLA_KILLS", "2"))
# Four steps each, in which there is room for the kills.
EPOCHS = max(2, KILLS)
SHORT = (
    "--dataset digits --network tiny --input_norm --train_images 96 --train_batch_size 24 "
    "--milestones none --lookahead 3_0.8 --save_every 1 --exp_name mine"
)
SMALL = f"{SHORT} --tr_epochs {EPOCHS}"
LONG = f"{SHORT} --tr_epochs 4000 --eval_every 4000"
JOIN = "--coordinator localhost:1 --num_processes 2 --process_id"
# Seconds of silence after which the processes here give one up.
SILENCE = 20


def devices(count):
    """What gives a single process so many devices."""
    flags = f"{ENVIRONMENT['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
    return {"XLA_FLAGS": flags}


def metrics(folder):
    lines = (folder / "runs/mine/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{n: v for n, v in r.items() if n not in ("optimizer", "timing")} for r in records]


def arrays(folder):
    return trained.arrays(folder / "runs/mine/checkpoints/seed_0")[1]


def assert_same_bits(some, others):
    assert some.keys() == others.keys()
    for name, array in some.items():
        assert array.tobytes() == others[name].tobytes(), name


def assert_equal_to_rounding(there, here):
    for one, other in zip(metrics(there), metrics(here), strict=True):
        assert one == pytest.approx(other, rel=2e-5)
    found = arrays(here)
    for name, array in arrays(there).items():
        np.testing.assert_allclose(array, found[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The folder of a run of these processes by the launcher, and what they have printed."""
    folder = tmp_path_factory.mktemp("several")
    path = os.pathsep.join([*PATH, os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, launch.__file__, f"--processes={PROCESSES}", PROGRAM, *SMALL.split()],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def copied(several, tmp_path):
    """Copies the folder of that run, under another name."""
    return lambda name: shutil.copytree(several[0], tmp_path / name)


def test_two_processes_are_one_with_two_devices(several, tmp_path):
    there, done = several
    assert done.stderr == ""
    assert done.stdout.count(f"epoch {EPOCHS}/{EPOCHS}") == 1
    assert "Gloo" not in done.stdout
    (process,) = json.loads((there / "runs/mine/settings.json").read_text())["processes"]
    assert process["machine"]["processes"] == PROCESSES
    assert process["machine"]["devices"] == ["cpu"] * PROCESSES
    ((code, *_),) = on_forked(tmp_path, SMALL, 1, **devices(PROCESSES))
    assert code == 0
    assert_equal_to_rounding(there, tmp_path)
    if PROCESSES == 2:  # A sum of two has no order.
        assert metrics(there) == metrics(tmp_path)
        assert_same_bits(arrays(there), arrays(tmp_path))


def test_other_processes_and_devices_resume(several, copied):
    """As they saved it, N processes are resumed by one, with N, 8 and 1 devices, and by others."""

    def resumed(name, *given, epochs=1, **variables):
        """Resumes with others; each of them must begin with the arrays that were saved."""
        saved = arrays(folders[name])
        more = f"{SMALL} --resume --extend_epochs {epochs}"
        for code, _, said in on_forked(folders[name], more, *given, RESTORED="1", **variables):
            assert code == 0, said
        for kept in folders[name].glob("restored_*.npz"):
            assert_same_bits(dict(np.load(kept)), saved)
            kept.unlink()

    names = ("alone", "eight devices", "other processes")
    folders = {name: copied(name) for name in names}
    others = 6 - PROCESSES  # Four for two, and two for four.
    resumed("alone", 1, **devices(PROCESSES))
    resumed("eight devices", 1, **devices(8))
    resumed("other processes", others)
    for name in names[1:]:
        assert_equal_to_rounding(folders["alone"], folders[name])
    for name in names[:2]:
        resumed(name, 1, epochs=2)
    assert_equal_to_rounding(folders["alone"], folders["eight devices"])


def test_killed_and_resumed_they_end_as_if_they_had_not_been(several, tmp_path):
    """SIGKILL to one of them at random moments; the others end soon, with at most a line."""
    there, _ = several
    rng = np.random.default_rng(0)
    kills, folder = 0, tmp_path / "0"
    while kills < KILLS or folder.exists():
        folder.mkdir(exist_ok=True)
        with fork(folder, f"{SMALL} --resume", PROCESSES, SILENCE=str(SILENCE)) as started:
            victim = started[rng.integers(PROCESSES)]
            killed = kills < KILLS and killed_at_work(victim.process, folder, rng)
            others = [forked for forked in started if not killed or forked is not victim]
            since = time.monotonic()
            ended = [forked.end() for forked in others]
            assert not killed or time.monotonic() - since < 3 * SILENCE
        if killed:
            kills += 1
            for code, _, said in ended:
                assert code in (1, -signal.SIGABRT), said
                line = rf".*: process \d of {PROCESSES} cannot go on: .*\n"
                assert re.fullmatch(line, said), said
        else:  # It has come to its end, and further kills need a run from the start.
            for code, _, said in ended:
                assert code == 0, said
            assert metrics(folder) == metrics(there)
            assert_same_bits(arrays(folder), arrays(there))
            folder = tmp_path / str(int(folder.name) + 1)


def killed_at_work(process, folder, rng):
    """Kills a process at a random moment after its first or second save; says if it was there."""
    wanted, before = rng.integers(1, 3), set(saves(folder))
    while process.is_alive() and len(set(saves(folder)) - before) < wanted:
        process.join(0.01)
    # The save may be half done.
    process.join(rng.uniform(0, 0.1))
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive and process.exitcode == -signal.SIGKILL


def saves(folder):
    """Checkpoints that are there or being written."""
    return [path.name for path in folder.glob("runs/mine/checkpoints/seed_0/[0-9]*")]


def test_all_processes_stop_after_the_same_step(tmp_path):
    """Ctrl-C to one of them, which is passed on as SIGTERM."""
    first, *others = on_forked(tmp_path, LONG, PROCESSES, STOP_AT="7")
    code, _, said = first
    assert code == 143
    step = re.fullmatch(
        r"main.py: stopped after (\d+) of 16000 steps; --resume resumes from there\n", said
    )
    assert step[1] in saves(tmp_path)
    assert others == [(143, "", "")] * (PROCESSES - 1)


def test_processes_share_what_tensorflow_datasets_has_prepared(tmp_path):
    """Each image is seen once an epoch, by one process; and they resume within an epoch."""
    rng = np.random.default_rng(0)
    images = [
        {"image": encoded(rng.integers(0, 256, (256, 256, 3), np.uint8)), "label": label}
        for label in range(4 * PROCESSES)
    ]
    examples = [{**image, "file_name": ""} for image in images]
    write_prepared(tmp_path / "data", "imagenet2012", {"train": examples, "validation": examples})
    flags = (
        f"--dataset imagenet --data_path {tmp_path / 'data'} --network tiny --tr_epochs 2 "
        f"--train_batch_size {2 * PROCESSES} --milestones none --save_every 1 --exp_name mine"
    )

    def trained_on():
        """The labels that each process has seen, in the order of the steps."""
        for code, _, said in on_forked(tmp_path, f"{flags} --resume", PROCESSES, SEEN="1"):
            assert code == 0, said
        texts = [path.read_text() for path in sorted(tmp_path.glob("seen_*.txt"))]
        return np.array([np.fromstring(text, int, sep=" ").reshape(-1, 2) for text in texts])

    labels = trained_on()
    assert labels.shape == (PROCESSES, 4, 2)
    for epoch in (labels[:, :2], labels[:, 2:]):
        assert sorted(epoch.flat) == list(range(4 * PROCESSES))
    whole, there = arrays(tmp_path), tmp_path / "runs/mine"
    records = metrics(tmp_path)
    # They lose the last step, and take it again.
    shutil.rmtree(there / "checkpoints/seed_0/4")
    log = there / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    np.testing.assert_array_equal(trained_on()[:, 4], labels[:, 3])
    assert_same_bits(arrays(tmp_path), whole)
    assert metrics(tmp_path) == records


def test_what_is_wrong_on_all_is_said_once(several):
    there, _ = several
    before = metrics(there)
    first, *others = on_forked(there, SMALL, PROCESSES)
    line = "main.py: error: --exp_name: there is a run in runs/mine; --resume resumes it\n"
    assert first == (2, "", line)
    assert others == [(1, "", "")] * (PROCESSES - 1)
    assert metrics(there) == before


def test_a_coordinator_that_is_not_there(tmp_path):
    ((code, _, said),) = on_forked(tmp_path, f"{SMALL} {JOIN} 1 --connect_within 0.5", 1)
    assert code == 2
    assert said.endswith("--coordinator: nothing answers at localhost:1 within 0.5 seconds\n")


@pytest.mark.parametrize(
    ("places", "lines"),
    [
        (
            [(0, 2), (1, 3)],
            ["error: --num_processes: must be 2 as in the first process, got 3 in process 1", None],
        ),
        (
            [(0, 3), (3, 4)],
            [
                "error: --num_processes: not all 3 have come to ADDRESS within 8 seconds",
                "process 3 of 4 cannot go on: --process_id: the coordinator has fewer processes, "
                "and none with the number 3",
            ],
        ),
        (
            [(1, 3), (1, 3), (0, 3)],
            [
                "process 1 of 3 cannot go on: --process_id: another process has the same number",
                "error: --num_processes: not all 3 have come to ADDRESS within 8 seconds",
                "error: --num_processes: not all 3 have come to ADDRESS within 8 seconds",
            ],
        ),
    ],
)
def test_processes_that_do_not_fit_say_a_line_each(places, lines, tmp_path):
    ended = on_forked(tmp_path, f"{SMALL} --connect_within 8", places)
    assert all(code in (1, 2, -signal.SIGABRT) for code, *_ in ended)
    said = [re.sub(r"localhost:\d+", "ADDRESS", line.partition(": ")[2]) for *_, line in ended]
    assert sorted(said) == sorted(f"{line}\n" if line else "" for line in lines)


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


def test_ctrl_c_reaches_all_that_the_launcher_has_started(tmp_path):
    """They are in its process group, as in a terminal, and end by themselves; it waits for them."""
    program = tmp_path / "program.py"
    program.write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(130))\n"
        "print('ready', file=sys.stderr, flush=True)\n"
        "print(sys.argv[-1], file=sys.stderr, flush=True)\n"
        "signal.pause()\n"
    )
    launcher = subprocess.Popen(
        [sys.executable, launch.__file__, "--processes", "2", str(program)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
        start_new_session=True,
    )
    ready = {launcher.stderr.readline() for _ in range(3)}
    assert "[1] --process_id=1\n" in ready
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.communicate(timeout=SECONDS) == (None, "")
    assert launcher.returncode == 130


def test_a_write_that_fails_is_noticed_in_the_log(monkeypatch):
    log, noticed = logging.getLogger("absl"), []
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    writes.on_failure(noticed.append)
    for package in ("orbax", "another"):
        error = OSError(27, "File too large")
        where = "absl", logging.ERROR, f"/{package}/checkpointer.py", 1
        log.handle(log.makeRecord(*where, "Failed to run", (), (OSError, error, None)))
    log.error("something else")
    (said,) = map(str, noticed)
    assert said == "a checkpoint cannot be written: [Errno 27] File too large"


LOG = "E1126 14:05:57.306962    4444 coordination_service_agent.cc:289] "
ABORT = (
    "F1126 14:05:57.306970    4444 client.h:80] Terminating process: {}\n\nRPC: /xla\n    @ 0x7f\n"
)


@pytest.mark.parametrize(
    ("page", "line"),
    [
        ("Unexpected task registered with task=5", "fewer processes, and none with the number 5"),
        ("UNAVAILABLE: Task 1 heartbeat timeout.", "another process is silent"),
        ("Failed to send RPC to coordination service.", "the first process is gone"),
        ("anything else", "JAX has lost another process"),
    ],
)
def test_an_abort_of_jax_is_a_line(page, line):
    printed = [
        "a warning\n",
        f"{LOG}Polled an error\n",
        "Additional GRPC error information\n",
        "=== Source Location Trace: === \n",
        "external/xla/xla/coordination_service.cc:956\n",
        "another warning\n",
        "E1126 14:05:57.306962    4444 cuda_executor.cc:12] not about processes\n",
        *ABORT.format(page).splitlines(keepends=True),
    ]
    *passed, last = native_output.lines(printed, "process 1 of 2")
    assert passed == [printed[0], printed[5], printed[6]]
    assert last.startswith("process 1 of 2 cannot go on: ")
    assert last.endswith(f"{line}\n")
    # What the process itself has said is enough, and without an abort there is nothing to say.
    own = "process 1 of 2 cannot go on: its disk is full\n"
    assert list(native_output.lines([own, *printed[-4:]], "")) == [own]
    assert list(native_output.lines(printed[:7], "")) == passed


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
