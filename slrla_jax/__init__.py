"""Optimizers of the Lookahead family as optax transformations.

Every transformation takes and returns plain params; the slow weights live in the optimizer state.
"""

from slrla_jax._adabound import AdaBoundState, adabound
from slrla_jax._adaloss import (
    ScaleByAdaGradNormState,
    ScaleByAdaLossState,
    adagrad_norm,
    adaloss,
    decay_sqrt_schedule,
    scale_by_adagrad_norm,
    scale_by_adaloss,
)
from slrla_jax._lookahead import LookaheadState, lookahead
from slrla_jax._lookbehind import asam, lookbehind, sam
from slrla_jax._moments import declare_moments
from slrla_jax._multilayer import multilayer_lookahead
from slrla_jax._primal_averaging import PrimalAveragingState, primal_averaging
from slrla_jax._slow_params import slow_params
from slrla_jax._slrla import Stage, slrla, slrla_sgd
from slrla_jax._stagewise import StagewiseProxState, stagewise_prox
from slrla_jax._theory_stages import theory_stages
from slrla_jax._two_loop import TwoLoopState, diloco, snoo, two_loop

__version__ = "0.1.0"

__all__ = [
    "AdaBoundState",
    "LookaheadState",
    "PrimalAveragingState",
    "ScaleByAdaGradNormState",
    "ScaleByAdaLossState",
    "Stage",
    "StagewiseProxState",
    "TwoLoopState",
    "adabound",
    "adagrad_norm",
    "adaloss",
    "asam",
    "decay_sqrt_schedule",
    "declare_moments",
    "diloco",
    "lookahead",
    "lookbehind",
    "multilayer_lookahead",
    "primal_averaging",
    "sam",
    "scale_by_adagrad_norm",
    "scale_by_adaloss",
    "slow_params",
    "slrla",
    "slrla_sgd",
    "snoo",
    "stagewise_prox",
    "theory_stages",
    "two_loop",
]
