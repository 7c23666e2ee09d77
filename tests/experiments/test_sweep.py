"""What the programs that train one configuration have in common: each flag has an effect."""

import json
from dataclasses import fields, replace

import example_cifar
import main
import numpy as np
import orbax.checkpoint as ocp
import pytest
from experiments import data
from experiments.command_line import SETTINGS, single
from experiments.config import Config
from experiments.flags import Parser
from experiments.processes import add_processes

SMALL = "--dataset digits --network softmax --input_norm --tr_epochs 2 --milestones 1"
FLAGS = [*SMALL.split(), "--train_batch_size", "40", "--exp_name", "mine"]
FIELDS = {field.name for field in fields(Config)}

# A value of each flag that is not its default; None for a switch.
COMMON = {
    "dataset": "cifar100",
    "train_images": "300",
    "bf16": None,
    "epochs": "7",
    "batch_size": "16",
    "eval_every": "2",
    "learning_rate": "0.3",
    "momentum": "0.3",
    "weight_decay": "0.3",
}
OTHER = {
    main: {
        **COMMON,
        "model": "resnet",
        "input_norm": None,
        "milestones": "0.5",
        "decay": "0.3",
        "inner": "adam",
        "lookahead": "7_0.3",
        "slr": "7_0.3",
        "stage_betas": "0.3",
        "stage_alphas": "0.3",
        "stage_ks": "7",
    },
    example_cifar: {
        **COMMON,
        "model": "resnet",
        "optimizer": "sam",
        "rho": "0.3",
        "ascent_steps": "7",
        "slow_step_size": "0.3",
        "eta": "0.3",
    },
}
OPTIONS = {
    "seeds": "3",
    "seed": "5",
    "data_path": "somewhere",
    "root": "elsewhere",
    "exp_name": "other",
    "resume": None,
    "more_epochs": "2",
    "checkpoint": "there",
    "save_every": "3",
    "batch_norm": "recalibrated",
    "tensorboard": None,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweep_of(program, flags):
    parser = program.make_parser()
    args = parser.parse_args(flags)
    if program is main:
        return main.sweep_of(args, parser)
    return single(example_cifar.config(args), args, parser)


def flag_of(program, dest, value):
    """A flag with its value, by its destination."""
    actions = program.make_parser()._actions
    flag = next(action for action in actions if action.dest == dest).option_strings[0]
    return [flag] if value is None else [flag, value]


def named(program):
    return program.__name__


# On the command line


@pytest.mark.parametrize("program", OTHER, ids=named)
def test_all_flags_are_listed_here(program):
    processes = Parser()  # Their flags are tested in test_processes.py.
    add_processes(processes)
    dests = {action.dest for action in program.make_parser()._actions}
    dests -= {action.dest for action in processes._actions}
    assert dests == OTHER[program].keys() | OPTIONS.keys()
    assert set(SETTINGS) <= FIELDS


@pytest.mark.parametrize(
    ("program", "setting"),
    [(program, setting) for program in OTHER for setting in OTHER[program]],
    ids=lambda value: value if isinstance(value, str) else named(value),
)
def test_every_flag_of_a_setting_changes_the_configuration(program, setting):
    # The only minimizers that have η are those that adapt ρ to the weights.
    base_flags = ["--minimizer", "Lookbehind_ASAM"] if setting == "eta" else []
    given = flag_of(program, setting, OTHER[program][setting])
    base, config = (
        sweep_of(program, flags).entries[0].config for flags in (base_flags, base_flags + given)
    )
    changed = {name for name in FIELDS if getattr(config, name) != getattr(base, name)}
    assert changed
    if setting in FIELDS:
        assert setting in changed


@pytest.mark.parametrize("program", OTHER, ids=named)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_flag_of_an_option_changes_the_sweep(program, option):
    base, other = (
        {n: v for n, v in vars(sweep_of(program, flags)).items() if n not in ("report", "flag_of")}
        for flags in ([], flag_of(program, option, OPTIONS[option]))
    )
    assert base != other
    assert base["entries"] == other["entries"]


# In a run


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "timing": None} for line in lines]


def saved(folder):
    return {int(path.name) for path in folder.iterdir()}


def test_a_seed_is_the_same_wherever_the_seeds_begin(here):
    assert main.main([*FLAGS, "--SEED", "2", "--seeds", "2"]) == 0
    assert main.main([*FLAGS[:-1], "alone", "--SEED", "3"]) == 0
    two, alone = (records(here / "runs" / name) for name in ("mine", "alone"))
    assert [record["seed"] for record in two] == [2, 2, 2, 3, 3, 3]
    assert two[3:] == alone
    assert {record["train_loss"] for record in two[:3]}.isdisjoint(
        record["train_loss"] for record in alone
    )
    folders = {path.name for path in (here / "runs/mine/checkpoints").iterdir()}
    assert folders == {"seed_2", "seed_3"}


def test_checkpoints_within_an_epoch_and_in_another_folder(here):
    """An epoch has 15 steps; the newest two checkpoints are kept, and that of the best epoch."""
    assert main.main(FLAGS) == 0
    assert saved(here / "runs/mine/checkpoints/seed_0") == {15, 30}
    flags = [*FLAGS[:-1], "other", "--save_every", "7", "--checkpoint", "there"]
    assert main.main(flags) == 0
    assert {28, 30} <= saved(here / "there/seed_0") <= {15, 28, 30}
    assert not (here / "runs/other/checkpoints").exists()
    assert records(here / "runs/other") == records(here / "runs/mine")


def test_evaluations_may_be_rarer(here):
    assert main.main([*FLAGS, "--eval_every", "2"]) == 0
    assert ["test_accuracy" in r for r in records(here / "runs/mine")] == [True, False, True]


@pytest.mark.parametrize(("statistics", "best"), [("running", 1), ("recalibrated", 2)])
def test_the_best_epoch_is_chosen_by_the_statistics_that_are_asked_for(
    here, monkeypatch, statistics, best
):
    accuracies = iter([(0.1, 0.1), (0.9, 0.2), (0.3, 0.8), (0.2, 0.3), (0.4, 0.4), (0.5, 0.5)])

    def evaluate(*args):
        names = ("test_accuracy", "recalibrated_test_accuracy")
        return dict(zip(names, np.float32([next(accuracies)]).T, strict=True))

    monkeypatch.setattr("experiments.train.evaluate", evaluate)
    assert main.main([*FLAGS, "--tr_epochs", "5", "--batch_norm", statistics]) == 0
    assert saved(here / "runs/mine/checkpoints/seed_0") == {15 * best, 60, 75}
    results = json.loads((here / "runs/mine/results.json").read_text())
    assert results["entries"]["SGD"]["measured"]["best_epoch"] == [best]


# What goes wrong


def test_a_run_that_diverges_is_one_line(here, capsys):
    assert main.main([*FLAGS, "--lr", "1e20"]) == 1
    captured = capsys.readouterr()
    # It is said at once, and again at the end.
    (line,) = {line for line in captured.out.splitlines() if "diverged" in line}
    assert line.startswith("SGD diverged, from seed 0 in epoch 1 (step ")
    assert line.endswith("; the last good checkpoint: 0")
    assert captured.err == ""
    files = {path.name for path in (here / "runs/mine").iterdir()}
    assert files == {"checkpoints", "metrics.jsonl", "settings.json"}
    assert [record["epoch"] for record in records(here / "runs/mine")] == [0]


def test_images_that_are_all_the_same_are_a_matter_of_the_data(here, capsys, monkeypatch):
    digits = data.load("digits")
    black = np.zeros_like(digits.train_images)
    constant = replace(digits, train_images=black, mean=digits.mean * 0, std=digits.std * 0)
    monkeypatch.setattr(data, "load", lambda name, folder: constant)
    assert main.main(FLAGS) == 1
    captured = capsys.readouterr()
    said = "SGD, seed 0: the loss is not finite before the first step; see the data"
    assert said in captured.out.splitlines()
    assert "diverged" not in captured.out
    assert captured.err == ""


def test_checkpoints_elsewhere_of_another_run_are_refused_and_nothing_is_left(here, capsys):
    assert main.main([*FLAGS, "--checkpoint", "there"]) == 0
    capsys.readouterr()
    other = [*FLAGS[:-1], "other", "--checkpoint", "there", "--lr", "0.3"]
    assert main.main(other) == 1
    captured = capsys.readouterr()
    said = f"{here / 'there/seed_0/30'} is of another run: --lr is 0.1 there and 0.3 here"
    assert (captured.err, captured.out) == (f"main.py: {said}\n", "")
    assert {path.name for path in (here / "runs").iterdir()} == {"mine"}


def test_what_a_killed_process_has_not_finished_is_removed(here):
    unfinished = here / f"runs/mine/checkpoints/seed_0/7{ocp.utils.TMP_DIR_SUFFIX}"
    (unfinished / "state").mkdir(parents=True)
    assert main.main([*FLAGS, "--resume"]) == 0
    assert saved(here / "runs/mine/checkpoints/seed_0") == {15, 30}
