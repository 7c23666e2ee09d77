"""Workers that leave and join, real processes, against a loop over them in NumPy."""

import os
import re
import subprocess
import sys
from pathlib import Path

import elastic_workers
import jax
import leaving_workers
import numpy as np
import pytest
import references
from elastic_workers import BATCH_SIZE, CYCLES, HIDDEN, KILLED, STARTED, WORKERS
from sklearn.datasets import load_digits

EXAMPLES = Path(elastic_workers.__file__).parent
ALL = list(range(WORKERS))
# Ten in .ci/full, at random moments.
KILLS = int(os.environ.get("SLRLA_KILLS", "0"))
PROGRAM = """
import elastic_workers
import numpy as np

params, history = elastic_workers.main()
np.savez("found.npz", params=params, there=[[w in there for w in range(3)] for there, _ in history])
"""
# The lesson's own kill is left out. Another comes up to a tenth of a second after the second cycle.
AT_ANY_MOMENT = (
    """
import subprocess
import sys
import threading

import elastic_workers

others, start, work = [], subprocess.Popen, elastic_workers.work

def remembered(*args, **options):
    others.append(start(*args, **options))
    return others[-1]

def killed_meanwhile(worker, address, after_cycle):
    def meanwhile(cycle):
        if cycle == 1:
            threading.Timer(float(sys.argv[1]), others[1].kill).start()
        after_cycle(cycle)

    return work(worker, address, meanwhile)

subprocess.Popen, elastic_workers.work, elastic_workers.KILLED = remembered, killed_meanwhile, -1
"""
    + PROGRAM
)


# The digits without scikit-learn, which each process would need a second to import.
DIGITS = """
import numpy as np

def load_digits(return_X_y):
    return tuple(np.load("digits.npz").values())
"""


def run(folder, *command):
    """What the lesson prints, its params, and the workers of each cycle."""
    (folder / "sklearn").mkdir()
    (folder / "sklearn" / "datasets.py").write_text(DIGITS)
    np.savez(folder / "digits.npz", *load_digits(return_X_y=True))
    done = subprocess.run(
        [sys.executable, "-c", *command],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, [folder, EXAMPLES, EXAMPLES.parent])),
            "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0",
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    arrays = np.load(folder / "found.npz")
    return done.stdout, arrays["params"], [list(np.flatnonzero(row)) for row in arrays["there"]]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A run of the lesson."""
    return run(tmp_path_factory.mktemp("elastic"), PROGRAM)


def gradient(params, images, labels):
    """The gradient of the mean cross-entropy of a perceptron, by hand."""
    kernel, bias, kernel_2, bias_2 = np.split(params, np.cumsum([64 * HIDDEN, HIDDEN, HIDDEN * 10]))
    before = images @ kernel.reshape(64, HIDDEN) + bias
    hidden = np.maximum(before, 0)
    logits = hidden @ kernel_2.reshape(HIDDEN, 10) + bias_2
    away = np.exp(logits - logits.max(axis=1, keepdims=True))
    away /= away.sum(axis=1, keepdims=True)
    away[np.arange(BATCH_SIZE), labels] -= 1
    away /= BATCH_SIZE
    back = away @ kernel_2.reshape(HIDDEN, 10).T * (before > 0)
    parts = images.T @ back, back.sum(axis=0), hidden.T @ away, away.sum(axis=0)
    return np.concatenate([part.ravel() for part in parts])


def by_hand(history, seed=0):
    """The slow weights after these cycles. Who has left returns with a new inner state."""
    theta, b, inner = elastic_workers.beginning(seed)[0].astype(float), 0.0, {}
    for cycle, there in enumerate(history):
        inner = {w: inner.get(w, references.Momentum(0.9)) for w in there}
        fast = []
        for worker in there:
            v = theta
            for images, labels in zip(*elastic_workers.batches(worker, cycle, seed), strict=True):
                v = inner[worker].step(v, gradient(v, images.astype(float), labels), 0.05)
            fast.append(v)
        away = theta - np.mean(fast, axis=0)
        b = 0.9 * b + away
        theta = theta - 0.7 * (0.9 * b + away)
    return theta


def test_a_killed_worker_is_missed_until_another_takes_its_place(found):
    _, _, history = found
    first = history.index(ALL[:-1])
    # If it has already left the cycle at whose end it is killed, the next one is without it.
    assert first in (KILLED, KILLED + 1)
    assert history[: STARTED + 1] == [ALL] * first + [ALL[:-1]] * (STARTED + 1 - first)
    # By chance a new worker fails when it joins, and another comes a cycle later.
    assert history[-1] == ALL
    assert len(history) == CYCLES


def test_what_a_killed_worker_has_not_done_is_all_that_is_lost(found):
    _, params, history = found
    np.testing.assert_allclose(params, by_hand(history), rtol=1e-4, atol=1e-5)
    # The lost share makes a difference, and so do the inner states.
    assert np.abs(params - by_hand([ALL] * CYCLES)).max() > 1e-2


def test_a_simulation_follows_the_loop_over_workers():
    history = [[0, 1, 2], [1, 2], [0, 1, 2]]
    for n, params in enumerate(leaving_workers.simulate(history, [0, 5]), start=1):
        for row, seed in zip(params, [0, 5], strict=True):
            np.testing.assert_allclose(row, by_hand(history[:n], seed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_worker_killed_at_any_moment_is_all_that_is_lost(kill, tmp_path):
    seconds = np.random.default_rng(kill).uniform(0, 0.1)
    printed, params, history = run(tmp_path, AT_ANY_MOMENT, str(seconds))
    assert "workers [2] are lost" in printed
    np.testing.assert_allclose(params, by_hand(history), rtol=1e-4, atol=1e-5)


def test_it_says_who_was_lost_and_who_is_there(found):
    printed, _, history = found
    first = history.index(ALL[:-1])
    lines = [line for line in printed.splitlines() if line.startswith("cycle")]
    assert re.fullmatch(r"cycle 0: made by workers \[0, 1, 2\], \d+\.\d s", lines[0])
    assert lines[1] == f"cycle {first}: workers [2] are lost"
    assert lines[2].startswith(f"cycle {first}: made by workers [0, 1], ")
    assert ": made by workers [0, 1, 2], " in lines[3]
    accuracy = re.search(r"final test accuracy: ([\d.]+)%", printed)[1]
    assert float(accuracy) > 92


def test_another_life_has_another_device():
    devices = jax.devices()
    (first,), (second,) = (elastic_workers.mesh_of({0: life}).devices for life in (18, 19))
    assert first == devices[18 % len(devices)]
    assert second == devices[19 % len(devices)]


def test_the_batches_of_workers_are_their_own():
    images, labels = elastic_workers.batches(1, 5)
    assert images.shape == (elastic_workers.STEPS, BATCH_SIZE, 64)
    (own, _), _ = elastic_workers.load_data()
    rows = {row.tobytes() for row in own[1::WORKERS]}
    assert {row.tobytes() for row in images.reshape(-1, 64)} <= rows
    np.testing.assert_array_equal(elastic_workers.batches(1, 5)[1], labels)
    assert (elastic_workers.batches(1, 6)[1] != labels).any()
