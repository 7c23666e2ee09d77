"""How much an LSTM that is trained with AdaLoss and its baselines depends on b0.

    python examples/text_classifier.py

trains an LSTM to tell the language of a name, letter by letter, with each method and each b0, from
several seeds. The names are those of the package Faker, which the extra `names` installs. `--help`
says what can be changed.
"""

import signal
import sys
from argparse import Namespace
from dataclasses import replace

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from experiments import robustness, sweep
from experiments.command_line import program
from experiments.config import Config
from experiments.flags import Parser
from experiments.report import Column

BASE = Config(
    dataset="names",
    model="lstm",
    epochs=3,
    batch_size=64,
    milestones=(),
    learning_rate=10.0,
    momentum=0.0,
    weight_decay=0.0,
)
COLUMN = Column("test accuracy in %", "test_accuracy")
NOTE = "Accuracy in % on the test names"


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    return robustness.make_parser(
        "text_classifier.py",
        "Train an LSTM to tell the language of names, with AdaLoss and its baselines and with "
        "several values of b0.",
        BASE,
    )


@program(make_parser)
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    base = replace(BASE, eval_every=args.epochs)
    return sweep.run(robustness.sweep_of(args, parser, base, COLUMN, NOTE))


if __name__ == "__main__":
    sys.exit(main())
