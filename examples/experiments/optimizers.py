"""The optimizers of the examples, by name: each name means one algorithm everywhere.

    optimizer = OPTIMIZERS["slrla"]
    tx = optimizer.make(config, stages)

`INNER` has the optimizers that the others may stand around, as the paper's Table 3 has them
and each with its own kind of weight decay. To add an optimizer, write a function of the
configuration and the stages, and add a row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.config import Config, SettingError
from experiments.schedules import Stages
from slrla_jax import (
    Stage,
    adabound,
    decay_sqrt_schedule,
    lookahead,
    lookbehind,
    multilayer_lookahead,
    primal_averaging,
    scale_by_adagrad_norm,
    scale_by_adaloss,
    slow_params,
    slrla,
    slrla_sgd,
    snoo,
    stagewise_prox,
)

LearningRate = optax.ScalarOrSchedule
Make = Callable[[LearningRate], optax.GradientTransformation]

Inner = Callable[[LearningRate, Config], optax.GradientTransformation]

# Inner optimizers, from a learning rate and the configuration's momentum and weight decay.


def coupled(make: Callable[[LearningRate, float], optax.GradientTransformation]) -> Inner:
    """An optimizer with coupled (L2) weight decay: it is added to the gradient."""

    def inner(learning_rate: LearningRate, config: Config) -> optax.GradientTransformation:
        decay = optax.add_decayed_weights(config.weight_decay)
        return optax.chain(decay, make(learning_rate, config.momentum))

    return inner


def adamw(learning_rate: LearningRate, config: Config) -> optax.GradientTransformation:
    """Adam with decoupled weight decay."""
    return optax.adamw(learning_rate, b1=config.momentum, weight_decay=config.weight_decay)


def adabelief(learning_rate: LearningRate, config: Config) -> optax.GradientTransformation:
    """AdaBelief with decoupled weight decay, its authors' default."""
    return optax.chain(
        optax.scale_by_belief(b1=config.momentum),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def adabound_from_its_start(learning_rate: LearningRate, b1: float) -> optax.GradientTransformation:
    """AdaBound whose bounds belong to the learning rate that a run begins with."""
    base_lr = float(learning_rate(0)) if callable(learning_rate) else None
    if base_lr is not None and base_lr < learning_rate(1):
        raise SettingError("warmup", "AdaBound's bounds belong to the first learning rate; use 0")
    return adabound(learning_rate, b1=b1, base_lr=base_lr)


def divided(scale_by_b: Callable[[Config], optax.GradientTransformation]) -> Inner:
    """AdaLoss or one of its baselines: SGD whose gradient is first divided by some b.

    As in the code released with AdaLoss, b does not divide the weight decay.
    """

    def inner(learning_rate: LearningRate, config: Config) -> optax.GradientTransformation:
        return optax.chain(
            scale_by_b(config),
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(learning_rate, config.momentum or None),
        )

    return inner


def scale_by_decay_sqrt(config: Config) -> optax.GradientTransformation:
    """Divides by b of SGD_DecaySqrt."""
    return optax.scale_by_schedule(decay_sqrt_schedule(1.0, config.b0, config.loss_weight))


INNER: dict[str, Inner] = {
    "sgd": coupled(lambda rate, momentum: optax.sgd(rate, momentum or None)),
    "adam": coupled(lambda rate, b1: optax.adam(rate, b1=b1)),
    "adamw": adamw,
    "radam": coupled(lambda rate, b1: optax.radam(rate, b1=b1)),
    "adabelief": adabelief,
    "adabound": coupled(adabound_from_its_start),
    "adaloss": divided(lambda c: scale_by_adaloss(c.b0, c.loss_weight, c.loss_offset)),
    "adagrad_norm": divided(lambda c: scale_by_adagrad_norm(c.b0)),
    "sgd_constant": divided(lambda c: optax.scale(1 / c.b0)),
    "sgd_decay_sqrt": divided(scale_by_decay_sqrt),
}


def inner_of(config: Config) -> Make:
    """The configured inner optimizer, as a function of a learning rate."""
    return partial(INNER[config.inner], config=config)


# Around them.


def plain(name: str) -> Callable[[Config, Stages], optax.GradientTransformation]:
    """An inner optimizer by itself."""

    def make(config: Config, stages: Stages) -> optax.GradientTransformation:
        return INNER[name](stages.schedule, config)

    return make


def lookahead_around(
    inner: optax.GradientTransformation, config: Config
) -> optax.GradientTransformationExtraArgs:
    """Lookahead with the configured settings."""
    return lookahead(inner, config.sync_period, config.slow_step_size)


def layers_around(
    inner: optax.GradientTransformation, config: Config
) -> optax.GradientTransformationExtraArgs:
    """Lookahead around Lookahead: two layers with the same settings, or as many as are given."""
    return multilayer_lookahead(
        inner, config.each_layer("sync_period"), config.each_layer("slow_step_size")
    )


def make_lookahead(config: Config, stages: Stages) -> optax.GradientTransformation:
    """Lookahead around the inner optimizer, whatever the stages of the learning rate are."""
    return lookahead_around(inner_of(config)(stages.schedule), config)


def make_multilayer_lookahead(config: Config, stages: Stages) -> optax.GradientTransformation:
    """Lookahead in layers around the inner optimizer."""
    return layers_around(inner_of(config)(stages.schedule), config)


def make_snoo(config: Config, stages: Stages) -> optax.GradientTransformation:
    """SNOO around the inner optimizer."""
    return snoo(
        inner_of(config)(stages.schedule),
        config.sync_period,
        config.outer_learning_rate,
        config.outer_momentum,
    )


def make_primal_averaging(config: Config, stages: Stages) -> optax.GradientTransformation:
    """Primal averaging around the inner optimizer."""
    return primal_averaging(
        inner_of(config)(stages.schedule), config.train_interpolation, config.eval_interpolation
    )


def make_schedule_free(config: Config, stages: Stages) -> optax.GradientTransformation:
    """Schedule-free learning, whose interpolation takes the place of the momentum."""
    inner = inner_of(replace(config, momentum=0.0))(stages.schedule)
    return optax.contrib.schedule_free(inner, stages.schedule, b1=config.momentum)


class MovingAverageState(NamedTuple):
    """State of the inner optimizer, and the average of the params."""

    inner_state: optax.OptState
    average: optax.Params


def make_ema(config: Config, stages: Stages) -> optax.GradientTransformation:
    """The inner optimizer, and beside it an exponential moving average of the params.

    The average begins with the initial params.
    """
    inner = inner_of(config)(stages.schedule)
    decay = config.ema_decay

    def init(params: optax.Params) -> MovingAverageState:
        return MovingAverageState(inner.init(params), jax.tree.map(jnp.copy, params))

    def update(
        updates: optax.Updates, state: MovingAverageState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MovingAverageState]:
        updates, inner_state = inner.update(updates, state.inner_state, params)
        moved = optax.apply_updates(params, updates)
        average = optax.incremental_update(moved, state.average, 1 - decay)
        return updates, MovingAverageState(inner_state, average)

    return optax.GradientTransformation(init, update)


def make_slrla(config: Config, stages: Stages) -> optax.GradientTransformation:
    """SLRLA as the paper's Algorithm 3: each stage is held near where it began."""
    settings = zip(
        stages.lengths,
        learning_rates_within(stages),
        config.each_stage("beta"),
        config.each_stage("sync_period"),
        config.each_stage("slow_step_size"),
        strict=True,
    )
    return slrla(
        inner_of(config),
        [Stage(length // k, rate, beta, k, alpha) for length, rate, beta, k, alpha in settings],
    )


def learning_rates_within(stages: Stages) -> Sequence[LearningRate]:
    """The learning rate of each stage, a number or a schedule of the step within the stage."""
    if stages.are_constant:
        return stages.learning_rates
    starts = [0, *(end for _, end in stages.ends[:-1])]
    return [lambda count, start=start: stages.schedule(start + count) for start in starts]


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
      make: returns the transformation, from the configuration and the stages of the run.
      slow_params: reads the weights to evaluate from optimizer state and params; None if those
        are the params themselves.
      gradients: returns how many gradients a training step takes.
      longest_period: returns the most steps between two syncs; 0 if there are no syncs.
      settings: the fields of the configuration that it reads, besides those of every optimizer.
      kind: says in a word or two which of several optimizers of that name it is.
    """

    label: str
    make: Callable[[Config, Stages], optax.GradientTransformation]
    slow_params: Callable[[optax.OptState, optax.Params], optax.Params] | None = None
    gradients: Callable[[Config], int] = lambda config: 1
    longest_period: Callable[[Config], int] = lambda config: 0
    settings: tuple[str, ...] = ()
    kind: Callable[[Config], str] = lambda config: ""

    def label_of(self, config: Config) -> str:
        """Returns the label, with its kind where there are several."""
        return ", ".join(filter(None, (self.label, self.kind(config))))


def sam_row(label: str, rho: float, *, adaptive: bool) -> Optimizer:
    """SAM or ASAM, which take a second gradient up the slope."""
    settings = ("rho", "eta") if adaptive else ("rho",)
    make = make_lookbehind(adaptive, rho, several=False)
    return Optimizer(label, make, gradients=lambda config: 2, settings=settings)


def lookbehind_row(label: str, rho: float, *, adaptive: bool) -> Optimizer:
    """Lookbehind, which takes a gradient at the params and one after each ascent step."""
    settings = ("ascent_steps", "slow_step_size", "rho") + ("eta",) * adaptive
    return Optimizer(
        label,
        make_lookbehind(adaptive, rho),
        gradients=lambda config: config.ascent_steps + 1,
        settings=settings,
    )


PERIOD = ("sync_period", "slow_step_size")


def of_the_stages(config: Config) -> int:
    """The longest period of any stage."""
    return max(config.each_stage("sync_period"))


def syncing_row(
    label: str,
    make: Callable[[Config, Stages], optax.GradientTransformation],
    settings: tuple[str, ...] = PERIOD,
    longest_period: Callable[[Config], int] = of_the_stages,
    kind: Callable[[Config], str] = lambda config: "",
) -> Optimizer:
    """An optimizer with slow weights that are renewed at syncs."""
    return Optimizer(
        label, make, slow_params, longest_period=longest_period, settings=settings, kind=kind
    )


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer("SGD", plain("sgd")),
    "adam": Optimizer("Adam", plain("adam")),
    "adamw": Optimizer("AdamW", plain("adamw")),
    "radam": Optimizer("RAdam", plain("radam")),
    "adabelief": Optimizer("AdaBelief", plain("adabelief")),
    "adabound": Optimizer("AdaBound", plain("adabound")),
    "adaloss": Optimizer(
        "AdaLoss", plain("adaloss"), settings=("b0", "loss_weight", "loss_offset")
    ),
    "adagrad_norm": Optimizer("AdaGrad-Norm", plain("adagrad_norm"), settings=("b0",)),
    "sgd_constant": Optimizer("SGD_Constant", plain("sgd_constant"), settings=("b0",)),
    "sgd_decay_sqrt": Optimizer(
        "SGD_DecaySqrt", plain("sgd_decay_sqrt"), settings=("b0", "loss_weight")
    ),
    "lookahead": syncing_row("Lookahead", make_lookahead),
    "multilayer_lookahead": syncing_row(
        "Multilayer Lookahead",
        make_multilayer_lookahead,
        longest_period=lambda config: math.prod(config.each_layer("sync_period")),
        kind=lambda config: f"{len(config.each_layer('sync_period'))} layers",
    ),
    "snoo": syncing_row(
        "SNOO", make_snoo, ("sync_period", "outer_learning_rate", "outer_momentum")
    ),
    "primal_averaging": Optimizer(
        "Primal averaging",
        make_primal_averaging,
        slow_params,
        settings=("train_interpolation", "eval_interpolation"),
    ),
    "schedule_free": Optimizer(
        "Schedule-free", make_schedule_free, optax.contrib.schedule_free_eval_params
    ),
    "ema": Optimizer("EMA", make_ema, lambda state, params: state.average, settings=("ema_decay",)),
    "sla": syncing_row("SLA", make_sla),
    "slrla": syncing_row("SLRLA", make_slrla, (*PERIOD, "beta")),
    "slrla_released": syncing_row(
        "SLRLA (released form)", make_slrla_released, (*PERIOD, "beta", "anchor_period")
    ),
    "prox_released": Optimizer(
        "Released regulariser alone", make_prox_released, settings=("beta", "anchor_period")
    ),
    "sam": sam_row("SAM", 0.05, adaptive=False),
    "asam": sam_row("ASAM", 0.5, adaptive=True),
    "lookbehind_sam": lookbehind_row("Lookbehind-SAM", 0.05, adaptive=False),
    "lookbehind_asam": lookbehind_row("Lookbehind-ASAM", 0.5, adaptive=True),
}
