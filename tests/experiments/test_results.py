"""The results in the repository: their tables are what the programs make of their numbers."""

import importlib
import json
import re
from functools import partial
from pathlib import Path

import bilinear_game
import fine_tuning
import gan
import leaving_workers
import linear_convergence
import policy_gradient
import pytest
import theory
from experiments.local.study import ACCURACY, LOSS
from experiments.local.table import rows
from experiments.regimes import table
from experiments.report import TRAINING, page
from experiments.robustness import table_over_b0

RESULTS = Path(gan.__file__).parent / "results"
over_b0 = partial(page, columns=[fine_tuning.COLUMN], compared=False, tabulate=table_over_b0)
local_training = partial(page, pictures=["bytes.png"], compared=False, tabulate=rows)
of_images = partial(local_training, columns=[ACCURACY, LOSS])
of_text = partial(local_training, columns=[LOSS, ACCURACY])
PAGES = {
    "adaloss/convergence": linear_convergence.page,
    "adaloss/policy_gradient": policy_gradient.page,
    "adaloss/policy_gradient_gap": policy_gradient.page,
    "games/bilinear": bilinear_game.page,
    "games/gan": partial(
        page, columns=gan.COLUMNS, pictures=["gan.png", "images.png"], compared=False
    ),
    "leaving_workers": leaving_workers.page,
    "local_training/compressed_images": of_images,
    "local_training/compressed_text": of_text,
    "local_training/federated": of_images,
    "local_training/images": of_images,
    "local_training/text": of_text,
    "robustness/fine_tuning_cnn/pretraining": partial(page, columns=TRAINING),
    "robustness/fine_tuning_vit/pretraining": partial(page, columns=TRAINING),
    "robustness/fine_tuning_cnn": partial(over_b0, pictures=["fine_tuning.png"]),
    "robustness/fine_tuning_vit": partial(over_b0, pictures=["fine_tuning.png"]),
    "when": table.page,
    "robustness/text_classifier": partial(over_b0, pictures=["text_classifier.png"]),
    "theory": theory.page,
}


OVER_B0 = [name for name in PAGES if re.fullmatch(r"robustness/\w+", name)]


@pytest.mark.parametrize("name", PAGES)
def test_a_table_is_that_of_its_numbers(name):
    folder = RESULTS / name
    text = (folder / "table.md").read_text()
    assert text == PAGES[name](json.loads((folder / "results.json").read_text()))
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", text):
        assert 10_000 < (folder / picture).stat().st_size < 300_000


@pytest.mark.parametrize("name", OVER_B0)
def test_the_page_over_b0_has_their_numbers(name):
    rows = [x for x in (RESULTS / name / "table.md").read_text().splitlines() if x[:1] == "|"]
    assert "\n".join(rows) in (RESULTS / "robustness/README.md").read_text()


def test_the_pages_of_the_theorems_have_their_numbers():
    rows = (RESULTS / "theory/table.md").read_text().splitlines()
    for text in (RESULTS / "theory/README.md", RESULTS.parent.parent / "docs/theory.md"):
        quoted = [line for line in text.read_text().splitlines() if re.match(r"\| [^-w]", line)]
        assert quoted
        assert [line for line in quoted if line not in rows] == []


def test_the_page_on_processes_has_the_faults(monkeypatch):
    benchmarks = RESULTS.parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    faults = importlib.import_module("faults")
    results = json.loads((benchmarks / "results/faults.json").read_text())
    assert faults.report(results) in (RESULTS.parent / "many_processes.md").read_text()


def test_the_page_of_workers_that_leave_has_their_numbers():
    folder = RESULTS / "leaving_workers"
    table = (folder / "table.md").read_text()
    quoted = re.findall(r"[\d.]+ ± [\d.]+", (folder / "README.md").read_text())
    assert len(quoted) > 20
    assert [pair for pair in quoted if pair not in table] == []


def test_the_page_of_local_training_has_its_numbers():
    folder = RESULTS / "local_training"
    tables = [path.read_text().splitlines() for path in folder.glob("*/table.md")]
    text = (folder / "README.md").read_text().splitlines()
    quoted = [line for line in text if re.match(r"\| (local|data parallel) ", line)]
    assert len(quoted) > 30
    assert [line for line in quoted if not any(line in lines for lines in tables)] == []


@pytest.mark.parametrize("name", ["images_2", "images_4", "text_2", "text_4"])
def test_workers_that_are_processes_come_to_what_they_do_on_one_device(name):
    """From the first seed of the tables, with the learning rate that is in these."""
    folder = RESULTS / "local_training"
    there = json.loads((folder / f"processes/{name}/results.json").read_text())
    here = json.loads((folder / name.partition("_")[0] / "results.json").read_text())
    assert there["machine"]["processes"] == int(name[-1])
    (label,) = (label for label in there["entries"] if "data parallel" not in label)
    entry, same = there["entries"][label], here["entries"][label]
    assert entry["config"] == same["config"]
    for measure, tolerance in (("test_loss", 1e-3), ("test_accuracy", 0.1), ("megabytes", 0)):
        mine, theirs = (each["measured"][measure]["final"]["by_seed"][0] for each in (entry, same))
        assert mine == pytest.approx(theirs, abs=tolerance)
