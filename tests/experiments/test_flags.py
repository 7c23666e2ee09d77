"""Every flag of every program changes what it asks for; `main.py` has a test of its own."""

from dataclasses import fields

import ablations
import compare
import example_cifar
import noisy_weights
import pytest
import reproduce
import sequential
import sharpness
from experiments import data, sweep
from experiments.config import Config

# For each flag's destination another value than the default; None for a flag without one.
RUN = {
    "seeds": "7",
    "data_path": "somewhere",
    "root": "elsewhere",
    "exp_name": "other",
    "resume": None,
}
CHECKPOINTS = {
    "seed": "5",
    "more_epochs": "2",
    "checkpoint": "there",
    "save_every": "3",
    "batch_norm": "recalibrated",
    "tensorboard": None,
}
TRAINING = {
    "dataset": "mnist",
    "train_images": "300",
    "model": "small_vgg",
    "epochs": "7",
    "batch_size": "16",
}
STUDY = {**RUN, **TRAINING, "optimizers": "sgd,adam", "equal": "gradients"}
OTHER = {
    ablations: {
        **RUN,
        "dataset": "mnist",
        "batch_size": "16",
        "samples": "200",
        "steps": "10",
        "methods": "SGD",
    },
    compare: {
        **RUN,
        **TRAINING,
        "optimizers": "slrla,sgd",
        "milestones": "0.5",
        "learning_rate": "0.3",
        "sync_period": "7",
        "slow_step_size": "0.3",
        "beta": "0.3",
    },
    example_cifar: {
        **RUN,
        **TRAINING,
        **CHECKPOINTS,
        "bf16": None,
        "eval_every": "2",
        "learning_rate": "0.3",
        "momentum": "0.3",
        "weight_decay": "0.3",
        "optimizer": "asam",
        "rho": "0.3",
        "ascent_steps": "7",
        "slow_step_size": "0.3",
        "eta": "0.3",
    },
    noisy_weights: {**STUDY, "sizes": "0,1", "draws": "3"},
    reproduce: {
        **{name: RUN[name] for name in ("seeds", "data_path", "root", "exp_name")},
        "optimizers": "SLA,SGD",
        "overrides": "learning_rate=0.3",
        "more_epochs": "2",
    },
    sequential: {**STUDY, "classes_per_task": "5"},
    sharpness: {**STUDY, "radius": "0.3", "examples": "100", "iterations": "3"},
}
# What a flag changes, where it is called otherwise.
CHANGED = {
    "optimizers": "labels",
    "exp_name": "name",
    "seed": "seeds",
    "checkpoint": "checkpoint_path",
    "batch_norm": "best_by",
    "overrides": "learning_rate",
}
# Flags after which nothing is run: there are tests of what they print.
PRINTED = {"help", "list", "dry_run", "recipes"}
# Flags that say on how many processes something is run; their tests are in test_processes.py.
PROCESSES = {"coordinator", "num_processes", "process_id", "distributed", "connect_within"}


@pytest.fixture
def asked_of(monkeypatch):
    """Returns a function: what a command line asks a program for, by name."""
    digits, asked = data.load("digits"), {}

    def run(of_sweep):
        names = {field.name for field in fields(Config)}
        asked.update({n: v for n, v in vars(of_sweep).items() if not callable(v)})
        asked.update(asked.pop("further"), labels=[e.label for e in asked.pop("entries")])
        for name in names:
            asked[name] = [getattr(entry.config, name) for entry in of_sweep.entries]
        return 0

    def dataset_of(config, data_path):
        asked.update(dataset=config.dataset, data_path=data_path)
        return digits

    def run_parts(args, parser, name, settings, parts, page, draw):
        asked.update(root=args.root, name=args.exp_name, resume=args.resume, samples=args.samples)
        asked.update(settings, methods=[title.split(",")[0] for title in parts])
        return 0

    monkeypatch.setattr(sweep, "run", run)
    monkeypatch.setattr(ablations, "dataset_of", dataset_of)
    monkeypatch.setattr(ablations, "run", run_parts)

    def asked_by(program, *line):
        asked.clear()
        if program is reproduce:  # Its main function sets a folder of compiled programs.
            parser = program.make_parser()
            args = parser.parse_args(["digits_softmax", *line])
            run(program.sweep_of("digits_softmax", args, parser))
        else:
            assert program.main(line) == 0
        return dict(asked)

    return asked_by


def actions_of(program):
    return {a.dest: a for a in program.make_parser()._actions if a.dest not in PRINTED | PROCESSES}


@pytest.mark.parametrize("program", OTHER, ids=lambda program: program.__name__)
def test_all_flags_are_listed_here(program):
    assert actions_of(program).keys() == OTHER[program].keys()


@pytest.mark.parametrize(
    ("program", "dest"),
    [(program, dest) for program, others in OTHER.items() for dest in others],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_flag_changes_what_is_asked_for(program, dest, asked_of):
    value = OTHER[program][dest]
    # ASAM within Lookbehind has all the settings that a minimizer may have.
    all_have = ["--minimizer", "lookbehind_asam"] if dest == "eta" else []
    line = [actions_of(program)[dest].option_strings[0], *([] if value is None else [value])]
    before, after = asked_of(program, *all_have), asked_of(program, *all_have, *line)
    name = CHANGED.get(dest, dest)
    assert before[name] != after[name]
    if name in {field.name for field in fields(Config)} and program is not ablations:
        assert all(a != b for a, b in zip(before[name], after[name], strict=True))
    if dest in RUN.keys() | CHECKPOINTS.keys():
        assert {n for n in before if before[n] != after[n]} == {name}
