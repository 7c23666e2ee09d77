"""What is seen of a run: lines in a file or pipe, a bar on a terminal; and what is missing."""

import io
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from experiments import data, progress
from experiments.config import Config
from experiments.progress import Progress
from experiments.run import run_of
from rich.console import Console

import slrla_jax

ROOT = Path(slrla_jax.__file__).parent.parent


@pytest.fixture(scope="module")
def runs():
    config = Config(model="softmax", epochs=3, batch_size=100)
    dataset, device = data.load("digits"), jax.devices()[:1]
    return {label: run_of(config, dataset, label=label, on=device) for label in ("SGD", "SLA")}


def test_in_a_pipe_there_is_a_line_now_and_then(runs, monkeypatch):
    monkeypatch.setattr(progress, "NOW_AND_THEN", 0.0)
    screen = Console(file=io.StringIO(), width=80)
    with Progress(screen, runs, [0, 1]) as shown:
        on_step = shown.on_step(runs["SGD"], [0])
        on_step(1, 2.5)
        on_step(7, 1.25)
    first, second, third = screen.file.getvalue().splitlines()
    assert first == "SGD  seed 0  compiling"
    assert second == "SGD  seed 0  epoch 1/3  loss 2.5  step 1/18"
    assert third.startswith("SGD  seed 0  epoch 2/3  loss 1.25  ")
    assert third.endswith(" img/s  step 7/18")


def test_on_a_terminal_there_is_a_bar_that_ends_at_its_end(runs):
    screen = Console(file=io.StringIO(), width=80, force_terminal=True)
    with Progress(screen, runs, [0, 1]) as shown:
        shown.skip(runs["SGD"], [0])
        shown.on_step(runs["SGD"], [1])(18, 1.0)
        (task,) = shown._bar.tasks
        assert (task.completed, task.total) == (36, 72)
        shown.on_step(runs["SLA"], [0])(9, 1.0)
        assert task.completed == 45
        shown.on_step(runs["SLA"], [1])(18, 1.0)
        assert task.completed == task.total
    assert "SGD  seed 0  done before" in screen.file.getvalue()


def test_several_gradients_count_as_several(runs):
    config = Config(model="softmax", epochs=1, batch_size=100, optimizer="sam")
    run = run_of(config, data.load("digits"), on=jax.devices()[:1])
    with Progress(Console(file=io.StringIO()), {"SAM": run}, [0]) as shown:
        assert shown._bar.tasks[0].total == 12


@pytest.mark.parametrize("module", ["PIL", "rich", "orbax"])
def test_a_missing_package_is_one_line(module, tmp_path):
    code = (
        "import importlib.util as util, runpy, sys\n"
        "found = util.find_spec\n"
        f"util.find_spec = lambda name, *a: None if name == {module!r} else found(name, *a)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "examples" / "compare.py")],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'examples'}", "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"the examples need {module}: pip install -e '.[examples]'\n"


def test_a_run_that_never_syncs_is_refused():
    config = Config(model="softmax", epochs=1, optimizer="lookahead", sync_period=1000)
    with pytest.raises(ValueError, match="a run of 9 steps never syncs with a period of 1000"):
        run_of(config, data.load("digits"), on=jax.devices()[:1])
