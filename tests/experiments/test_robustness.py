"""Methods × b0: which entries there are, what the table says of them, and a run of some."""

import json
import sys
from pathlib import Path

import fine_tuning
import matplotlib.image
import numpy as np
import pytest
import text_classifier
from experiments import report, robustness, sweep
from experiments.command_line import program
from experiments.config import Config
from experiments.report import Column

BASE = Config(
    model="softmax",
    epochs=1,
    batch_size=100,
    milestones=(),
    momentum=0.0,
    weight_decay=0.0,
    recalibrate=False,
)
LOSS = Column("loss", "test_loss", form=".3f")


def make_parser():
    return robustness.make_parser("methods.py", "Methods.", BASE)


@program(make_parser)
def main(args, parser):
    return sweep.run(robustness.sweep_of(args, parser, BASE, LOSS, "Loss on the test images"))


def numbers(values):
    """A summary: a float is the mean of an entry, an int from how many seeds it has diverged."""
    entries, lines = {}, []
    for (method, b0), value in values.items():
        label = robustness.label_of(method, b0)
        if isinstance(value, int):
            lines += [f"{label} diverged, from seed {n} in epoch 1 (step 2)" for n in range(value)]
        else:
            entries[label] = {"measured": {"test_loss": {"final": {"mean": value, "std": 0.5}}}}
    return {"entries": entries, "diverged": lines, "seeds": [0, 1, 2]}


def cells(lines):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_entries_are_all_methods_with_all_b0():
    args = make_parser().parse_args(["--lr", "0.3", "--epochs", "2"])
    entries = robustness.entries_of(args, BASE)
    assert len({entry.label for entry in entries}) == len(entries) == 4 * 5
    assert entries[1].label == "AdaLoss, b0 = 0.1"
    assert {(e.config.optimizer, e.config.b0) for e in entries} == {
        (method, b0)
        for method in ("adaloss", "adagrad_norm", "sgd_constant", "sgd_decay_sqrt")
        for b0 in (0.01, 0.1, 1, 10, 100)
    }
    assert {(e.config.learning_rate, e.config.epochs, e.config.model) for e in entries} == {
        (0.3, 2, "softmax")
    }


def test_the_table_has_a_row_for_each_b0_and_the_spread():
    summary = numbers(
        {("A", 10): 1.0, ("A", 0.1): 4.5, ("A", 1): 2.0}
        | {("B", 10): 3.0, ("B", 0.1): 3, ("B", 1): 2, ("C", 1): 3}
    )
    _, _, *rows = cells(robustness.table_over_b0(summary, [LOSS]))
    assert rows == [
        ["0.1", "4.500 ± 0.500", "diverged", "–"],
        ["1", "2.000 ± 0.500", "diverged (2 of 3)", "diverged"],
        ["10", "1.000 ± 0.500", "3.000 ± 0.500", "–"],
        ["best − worst", "3.500", "≥ 0.000", "–"],
    ]


def test_a_diverged_entry_is_not_taken_for_another():
    """The label of b0 = 1 is how that of b0 = 10 begins."""
    summary = numbers({("A", 1): 3, ("A", 10): 2.5})
    summary["diverged"] += ["A, b0 = 100, seed 2: the loss is not finite before the first step"]
    _, _, *rows = cells(robustness.table_over_b0(summary, [LOSS]))
    assert rows[:2] == [["1", "diverged"], ["10", "2.500 ± 0.500"]]
    assert rows[2] == ["100", "diverged (1 of 3)"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--b0 1,1.0", "--b0: must be different numbers, got '1,1.0'"),
        ("--b0 0,1", "--b0: must be from 1e-15 to 1e15, got '0'"),
        ("--methods adaloss,sgd", "--methods: must be different names among adaloss, adagrad_norm"),
    ],
)
def test_wrong_flags(capsys, flags, message):
    with pytest.raises(SystemExit):
        main(flags.split())
    assert message in capsys.readouterr().err


def test_a_run(tmp_path, monkeypatch):
    """SGD diverges with a learning rate of 1e9; AdaLoss divides by the loss besides b0."""
    flags = ["--methods", "adaloss,sgd_constant", "--b0", "1,1e-10", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["methods.py"])
    assert main([*flags, "--root", str(tmp_path), "--name", "mine"]) == 1
    folder = tmp_path / "mine"
    summary = json.loads((folder / "results.json").read_text())
    assert list(summary["entries"]) == [
        "AdaLoss, b0 = 1",
        "AdaLoss, b0 = 1e-10",
        "SGD_Constant, b0 = 1",
    ]
    page = (folder / "table.md").read_text()
    tabulate = robustness.table_over_b0
    assert page == report.page(summary, [LOSS], ["methods.png"], compared=False, tabulate=tabulate)
    small, one, spread = cells(line for line in page.splitlines() if line.startswith("|"))[2:]
    final = {
        label: np.mean(entry["measured"]["test_loss"]["final"]["by_seed"])
        for label, entry in summary["entries"].items()
    }
    assert small[0::2] == ["1e-10", "diverged"]
    assert small[1].startswith(f"{final['AdaLoss, b0 = 1e-10']:.3f} ±")
    assert one[2].startswith(f"{final['SGD_Constant, b0 = 1']:.3f} ±")
    difference = abs(final["AdaLoss, b0 = 1"] - final["AdaLoss, b0 = 1e-10"])
    assert spread == ["best − worst", f"{difference:.3f}", "≥ 0.000"]
    assert matplotlib.image.imread(folder / "methods.png").std() > 0.05


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("fine_tuning_cnn", fine_tuning),
        ("fine_tuning_vit", fine_tuning),
        ("text_classifier", text_classifier),
    ],
)
def test_a_page_in_the_repository_is_what_its_numbers_say(name, program):
    folder = Path(fine_tuning.__file__).parent / "results/robustness" / name
    summary = json.loads((folder / "results.json").read_text())
    picture = f"{program.__name__}.png"
    page = report.page(
        summary,
        [program.COLUMN],
        [picture],
        compared=False,
        tabulate=robustness.table_over_b0,
    )
    assert (folder / "table.md").read_text() == page
    assert (folder / picture).stat().st_size < 150_000
    assert len(summary["seeds"]) >= 5
    # The table is shown on the page about all of them, too.
    table = robustness.table_over_b0(summary, [program.COLUMN])
    assert "\n".join(table) in (folder.parent / "README.md").read_text()
