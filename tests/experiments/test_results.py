"""The results in the repository: their tables are what the programs make of their numbers."""

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
from experiments.regimes import table
from experiments.report import TRAINING, page
from experiments.robustness import table_over_b0

RESULTS = Path(gan.__file__).parent / "results"
over_b0 = partial(page, columns=[fine_tuning.COLUMN], compared=False, tabulate=table_over_b0)
PAGES = {
    "adaloss/convergence": linear_convergence.page,
    "adaloss/policy_gradient": policy_gradient.page,
    "adaloss/policy_gradient_gap": policy_gradient.page,
    "games/bilinear": bilinear_game.page,
    "games/gan": partial(
        page, columns=gan.COLUMNS, pictures=["gan.png", "images.png"], compared=False
    ),
    "leaving_workers": leaving_workers.page,
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


def test_the_page_of_workers_that_leave_has_their_numbers():
    folder = RESULTS / "leaving_workers"
    table = (folder / "table.md").read_text()
    quoted = re.findall(r"[\d.]+ ± [\d.]+", (folder / "README.md").read_text())
    assert len(quoted) > 20
    assert [pair for pair in quoted if pair not in table] == []
