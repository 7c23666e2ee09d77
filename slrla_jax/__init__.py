"""Optimizers of the Lookahead family as optax transformations.

Plain params in, plain params out; the slow weights live in the optimizer's state.
"""

from slrla_jax._lookahead import LookaheadState, lookahead, multilayer_lookahead
from slrla_jax._slow_params import slow_params
from slrla_jax._slrla import Stage, slrla, slrla_sgd
from slrla_jax._stagewise import StagewiseProxState, stagewise_prox

__version__ = "0.1.0"

__all__ = [
    "LookaheadState",
    "Stage",
    "StagewiseProxState",
    "lookahead",
    "multilayer_lookahead",
    "slow_params",
    "slrla",
    "slrla_sgd",
    "stagewise_prox",
]
