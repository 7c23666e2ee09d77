"""What the example programs are made of: data, models, optimizers, training and reports.

config.py       everything that a result depends on, in one object
data/ models/   data sets and networks, by name
optimizers.py   optimizers, by name
schedules.py    the stages of a run
steps.py        loss_fn, train_step, eval_step
train.py        the training loop
sweep.py        configurations × seeds → records, with a folder, checkpoints and progress
report.py       records → a table
pretrained.py   timm's weights for a network to begin with
configs/        recipes
robustness.py   methods × b0, as entries, table and picture
parts.py        studies whose runs are one compiled program
regimes/        the map of when a method helps: regimes × methods, tuned alike
studies/        sharpness, noise on the weights, tasks in sequence, many settings at once, games
theory/         the theorems on Lookahead: problems with known optima, runs, fits
"""

from importlib.util import find_spec

for _module in ("flax", "matplotlib", "numpy", "orbax", "PIL", "rich", "sklearn"):
    if find_spec(_module) is None:
        raise SystemExit(f"the examples need {_module}: pip install -e '.[examples]'")
