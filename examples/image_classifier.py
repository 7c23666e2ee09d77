"""Compares SGD with averaging, Lookahead in layers, SNOO and primal averaging on small images.

    python examples/image_classifier.py --dataset fashion_mnist --data_path DIR

trains a residual network with each optimizer, from the same initial weights and on the same
batches, from several seeds. The settings of each were tuned before, all on the same grid, on 4,000
images of Fashion-MNIST; `--tune` tunes them again. Without data it takes scikit-learn's digits. The
same command resumes what was interrupted. `--help` says what can be changed.
"""

import signal
import sys
from argparse import Namespace

if __name__ == "__main__":  # Ctrl-C while the following imports take their seconds is no error.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from experiments import tuning
from experiments.command_line import program
from experiments.configs.image_classifier import PROBLEM
from experiments.flags import Parser


def make_parser() -> Parser:
    """Returns the parser of the command line."""
    return tuning.make_parser(
        "image_classifier.py",
        "Compare SGD with averages of its weights, schedule-free learning, Lookahead in one to "
        "three layers, SNOO and primal averaging around it: the same initial weights, batches and "
        "number of gradients.",
        PROBLEM,
    )


@program(make_parser, again="the same command")
def main(args: Namespace, parser: Parser) -> int:
    """Runs the command line; returns the exit code."""
    return tuning.run(args, parser, PROBLEM)


if __name__ == "__main__":
    sys.exit(main())
