"""The optimizers of the examples, by name: each name means one algorithm everywhere.

    optimizer = OPTIMIZERS["slrla"]
    tx = optimizer.make(config, stages)

`INNER` has the optimizers that the others may stand around, as the paper's Table 3 has them
and each with its own kind of weight decay. To add an optimizer, add a function of the
configuration and the stages, and a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import optax

from experiments.config import Config
from experiments.schedules import Stages
from slrla_jax import (
    Stage,
    adabound,
    adagrad_norm,
    adaloss,
    lookahead,
    lookbehind,
    multilayer_lookahead,
    slow_params,
    slrla,
    slrla_sgd,
    stagewise_prox,
)

LearningRate = optax.ScalarOrSchedule
Make = Callable[[LearningRate], optax.GradientTransformation]

# Inner optimizers, from learning rate, momentum (of SGD; b1 of the others) and weight decay.


def coupled(make: Callable[[LearningRate, float], optax.GradientTransformation]) -> Any:
    """An optimizer that sees its weight decay as a part of the gradient (L2)."""

    def inner(
        learning_rate: LearningRate, momentum: float, weight_decay: float
    ) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(weight_decay)
        return optax.chain(decay, make(learning_rate, momentum))

    return inner


def adamw(
    learning_rate: LearningRate, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay."""
    return optax.adamw(learning_rate, b1=momentum, weight_decay=weight_decay)


def adabelief(
    learning_rate: LearningRate, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    """AdaBelief with decoupled weight decay, its authors' default."""
    return optax.chain(
        optax.scale_by_belief(b1=momentum),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def adabound_from_its_start(learning_rate: LearningRate, b1: float) -> optax.GradientTransformation:
    """AdaBound whose bounds belong to the learning rate that a run begins with."""
    base_lr = float(learning_rate(0)) if callable(learning_rate) else None
    return adabound(learning_rate, b1=b1, base_lr=base_lr)


INNER: Mapping[str, Callable[[LearningRate, float, float], optax.GradientTransformation]] = {
    "sgd": coupled(lambda rate, momentum: optax.sgd(rate, momentum or None)),
    "adam": coupled(lambda rate, b1: optax.adam(rate, b1=b1)),
    "adamw": adamw,
    "radam": coupled(lambda rate, b1: optax.radam(rate, b1=b1)),
    "adabelief": adabelief,
    "adabound": coupled(adabound_from_its_start),
    "adaloss": lambda rate, momentum, decay: adaloss(
        rate, momentum=momentum or None, weight_decay=decay
    ),
    "adagrad_norm": lambda rate, momentum, decay: adagrad_norm(
        rate, momentum=momentum or None, weight_decay=decay
    ),
}


def inner_of(config: Config) -> Make:
    """The configured inner optimizer, as a function of a learning rate."""
    return partial(INNER[config.inner], momentum=config.momentum, weight_decay=config.weight_decay)


# Around them.


def plain(name: str) -> Callable[[Config, Stages], optax.GradientTransformation]:
    """An inner optimizer by itself."""

    def make(config: Config, stages: Stages) -> optax.GradientTransformation:
        return INNER[name](stages.schedule, config.momentum, config.weight_decay)

    return make


def make_lookahead(config: Config, stages: Stages) -> optax.GradientTransformation:
    """Lookahead around the inner optimizer, whatever the stages of the learning rate are."""
    return lookahead(inner_of(config)(stages.schedule), config.sync_period, config.slow_step_size)


def make_multilayer_lookahead(config: Config, stages: Stages) -> optax.GradientTransformation:
    """Two layers of Lookahead with the same settings."""
    return multilayer_lookahead(
        inner_of(config)(stages.schedule), (config.sync_period,) * 2, (config.slow_step_size,) * 2
    )


def make_slrla(config: Config, stages: Stages) -> optax.GradientTransformation:
    """SLRLA as the paper's Algorithm 3: each stage is held near where it began."""
    settings = zip(
        stages.lengths,
        stages.learning_rates,
        config.each_stage("beta"),
        config.each_stage("sync_period"),
        config.each_stage("slow_step_size"),
        strict=True,
    )
    return slrla(
        inner_of(config),
        [Stage(length // k, rate, beta, k, alpha) for length, rate, beta, k, alpha in settings],
    )


def make_sla(config: Config, stages: Stages) -> optax.GradientTransformation:
    """Stagewise Lookahead: SLRLA without its regulariser."""
    return make_slrla(replace(config, beta=0.0), stages)


def make_slrla_released(config: Config, stages: Stages) -> optax.GradientTransformation:
    """SLRLA in the form of the released code: an anchor every S steps, whatever the stages are."""
    k, alpha, period = config.sync_period, config.slow_step_size, config.anchor_period
    if config.inner == "sgd":
        return slrla_sgd(
            stages.schedule,
            config.beta,
            period,
            k,
            alpha,
            config.momentum or None,
            config.weight_decay,
        )
    inner = lookahead(inner_of(config)(stages.schedule), k, alpha)
    return optax.chain(stagewise_prox(config.beta, period or k), inner)


def make_prox_released(config: Config, stages: Stages) -> optax.GradientTransformation:
    """The regulariser of the released code without Lookahead."""
    prox = stagewise_prox(config.beta, config.anchor_period or config.sync_period)
    return optax.chain(prox, inner_of(config)(stages.schedule))


def make_lookbehind(
    adaptive_rho: bool, rho: float, several: bool = True
) -> Callable[[Config, Stages], optax.GradientTransformation]:
    """Lookbehind, or (with one ascent step and no step back) SAM, with the paper's ρ.

    The inner optimizer makes a step for each ascent step, all with the learning rate of the
    training step.
    """

    def make(config: Config, stages: Stages) -> optax.GradientTransformation:
        steps = config.ascent_steps if several else 1
        schedule = stages.schedule
        return lookbehind(
            inner_of(config)(lambda count: schedule(count // steps)),
            steps,
            rho if config.rho is None else config.rho,
            config.slow_step_size if several else 1.0,
            adaptive_rho=adaptive_rho,
            eta=config.eta,
            weight_mask=all_but_biases,
        )

    return make


def all_but_biases(params: optax.Params) -> optax.Params:
    """What ASAM's steps are adaptive in, in the released code: scales of norms are, too."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "bias", params)


@dataclass(frozen=True)
class Optimizer:
    """A row of the registry.

    Attributes:
      label: its name in tables and plots.
      make: the transformation, from the configuration and the stages of the run.
      slow_params: reads the weights to evaluate from optimizer state and params; None if those
        are the params themselves.
      gradients: how many a training step takes.
    """

    label: str
    make: Callable[[Config, Stages], optax.GradientTransformation]
    slow_params: Callable[[optax.OptState, optax.Params], optax.Params] | None = None
    gradients: Callable[[Config], int] = lambda config: 1


def two(config: Config) -> int:
    """The gradients of SAM: at the params, and one step up the slope."""
    return 2


def one_more_than_steps(config: Config) -> int:
    """The gradients of Lookbehind: at the params, and after each ascent step."""
    return config.ascent_steps + 1


OPTIMIZERS: Mapping[str, Optimizer] = {
    "sgd": Optimizer("SGD", plain("sgd")),
    "adam": Optimizer("Adam", plain("adam")),
    "adamw": Optimizer("AdamW", plain("adamw")),
    "radam": Optimizer("RAdam", plain("radam")),
    "adabelief": Optimizer("AdaBelief", plain("adabelief")),
    "adabound": Optimizer("AdaBound", plain("adabound")),
    "adaloss": Optimizer("AdaLoss", plain("adaloss")),
    "adagrad_norm": Optimizer("AdaGrad-Norm", plain("adagrad_norm")),
    "lookahead": Optimizer("Lookahead", make_lookahead, slow_params),
    "multilayer_lookahead": Optimizer(
        "Multilayer Lookahead", make_multilayer_lookahead, slow_params
    ),
    "sla": Optimizer("SLA", make_sla, slow_params),
    "slrla": Optimizer("SLRLA", make_slrla, slow_params),
    "slrla_released": Optimizer("SLRLA (released form)", make_slrla_released, slow_params),
    "prox_released": Optimizer("Released regulariser alone", make_prox_released),
    "sam": Optimizer("SAM", make_lookbehind(False, 0.05, several=False), None, two),
    "asam": Optimizer("ASAM", make_lookbehind(True, 0.5, several=False), None, two),
    "lookbehind_sam": Optimizer(
        "Lookbehind-SAM", make_lookbehind(False, 0.05), None, one_more_than_steps
    ),
    "lookbehind_asam": Optimizer(
        "Lookbehind-ASAM", make_lookbehind(True, 0.5), None, one_more_than_steps
    ),
}


def find(name: str, known: Mapping[str, Any] = OPTIMIZERS) -> str:
    """A name as the registry has it; upper and lower case, "-" and "_" make no difference.

    Raises:
      ValueError: if there is no such optimizer.
    """
    names = {_letters(key): key for key in known}
    if _letters(name) not in names:
        raise ValueError(f"must be one of {', '.join(known)}, got {name!r}")
    return names[_letters(name)]


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
