"""The recipe of Lookbehind's released code, and the optimizers that are compared under it.

Paper:    Mordido et al., "Lookbehind-SAM: k steps back, 1 step forward", ICML 2024.
Command:  python examples/example_cifar.py --data_path DIR, and sharpness.py, noisy_weights.py and
          sequential.py on the digits.
Time:     on CIFAR not run here; on the digits see `results/lookbehind/README.md`.
Accuracy: likewise.
"""

from dataclasses import replace

from experiments.config import Config

# A tenth of the learning rate after each quarter of the run.
BASE = Config(
    milestones=(0.25, 0.5, 0.75),
    stages_in="steps",
    decay=0.1,
    weight_decay=5e-4,
    slow_step_size="adaptive",
)
CIFAR = replace(BASE, dataset="cifar10", model="ResNet-34", epochs=200, batch_size=128)
# By what CIFAR-10's channels are divided in the released code; the SLRLA paper's has others.
CIFAR10_STD = (0.2471, 0.2435, 0.2616)

# Those that the digits are not learnt with at a learning rate of 0.1 have another one.
_CHANGES = {
    "sgd": {},
    "lookahead": {"slow_step_size": 0.8},
    "multilayer_lookahead": {"slow_step_size": 0.8},
    "slrla_released": {"slow_step_size": 0.8, "beta": 0.4},
    "sam": {},
    "asam": {},
    "lookbehind_sam": {},
    "lookbehind_asam": {},
    "adaloss": {"learning_rate": 0.5},
    "adagrad_norm": {"learning_rate": 0.5},
    "adam": {"learning_rate": 1e-2},
    "adabound": {"learning_rate": 1e-2},
}
CONFIGS = {name: replace(BASE, optimizer=name, **changes) for name, changes in _CHANGES.items()}
