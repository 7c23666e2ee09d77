"""What recipes are made of, and the numbers that were published."""

import csv
import shlex
from dataclasses import dataclass
from pathlib import Path

# The flags of `main.py` for each row of Table 3, beside those that a recipe gives to all rows.
# The first three are the released command lines.
STAGEWISE = {
    "SGD": "",
    "SLA": "--lookahead 5_0.8",
    "SLRLA": "--lookahead 5_0.8 --slr 5_0.2",
}
# Our choice, as the paper's settings of these are not known: the step size that Adam's authors
# recommend, in the same stages as the others; weight decay 5e-4 where it is in the gradient, and
# where it is beside it 1e-2, PyTorch's default for AdamW.
ADAPTIVE = {
    "Adam": "--optim Adam --lr 1e-3 --wd 5e-4",
    "AdaBound": "--optim AdaBound --lr 1e-3 --wd 5e-4",
    "RAdam": "--optim RAdam --lr 1e-3 --wd 5e-4",
    "AdamW": "--optim AdamW --lr 1e-3 --wd 1e-2",
    "AdaBelief": "--optim AdaBelief --lr 1e-3 --wd 1e-2",
}
# The rows in the order of the tables; the others are compared with the first.
OPTIMIZERS = (*STAGEWISE, *ADAPTIVE)

# Marks in Table 3, and what they say of a number. The slides have the references' numbers only;
# those that are rows of the table, too, are named here.
SOURCES = {
    "⋄": "reported in [1] of the paper's references, the paper on Lookahead",
    "*": "reported in [15], the paper on RAdam",
    "†": "reported in [49]",
    "‡": "reported in [50], the paper on AdaBelief",
}


@dataclass(frozen=True)
class Recipe:
    """A cell of the table: all that `main.py` is told for it.

    Attributes:
      dataset: its name, which is that of a column, too.
      network: its name.
      flags: for every optimizer.
      optimizers: flags of each optimizer, which stand after those and so override them.
    """

    dataset: str
    network: str
    flags: str
    optimizers: dict[str, str]

    def argv(self, optimizer: str) -> list[str]:
        """The command line of one optimizer, without the folders."""
        flags = f"{self.flags} {self.optimizers[optimizer]}"
        return ["--dataset", self.dataset, "--network", self.network, *shlex.split(flags)]


def published(cell: str) -> dict[str, str]:
    """Accuracy in % with its deviation and its mark, for each row; empty outside Table 3."""
    path = Path(__file__).parent / "table3.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return {row["optimizer"]: row[cell] for row in csv.DictReader(file) if cell in row}
