"""Compares AdamW with averaging, Lookahead, SNOO and primal averaging on a small language model.

    python examples/language_model.py

trains a transformer to predict the characters of Python's reference, with each optimizer, from the
same initial weights and on the same batches, from several seeds. The settings of each were tuned
before, all on the same grid, on the Jargon File; `--tune` tunes them on the text that is given:

    python examples/language_model.py --dataset text --data_path DIR --tune

The same command resumes what was interrupted. `--help` says what can be changed.
"""

import signal
import sys
from argparse import Namespace

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from experiments import tuning
from experiments.command_line import program
from experiments.configs.language_model import PROBLEM
from experiments.flags import Parser


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    return tuning.make_parser(
        "language_model.py",
        "Compare AdamW with averages of its weights, schedule-free learning, Lookahead, SNOO and "
        "primal averaging around it: the same initial weights, batches and number of gradients.",
        PROBLEM,
    )


@program(make_parser, again="the same command")
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    return tuning.run(args, parser, PROBLEM)


if __name__ == "__main__":
    sys.exit(main())
