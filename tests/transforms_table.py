"""The table of transforms that are tested by the contracts in `test_contracts_*.py`.

One row of `TABLE` subjects a transform to every contract. Choose its settings so that a few
steps (`STEPS`) cover several syncs and a change of stage.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slrla_jax import (
    Stage,
    adabound,
    adagrad_norm,
    adaloss,
    lookahead,
    lookbehind,
    multilayer_lookahead,
    primal_averaging,
    sam,
    slow_params,
    slrla,
    slrla_sgd,
    snoo,
    stagewise_prox,
    two_loop,
)

STEPS = 9
PARAMS = {
    "w": np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], np.float32),
    "b": np.array([1.0, -2.0], np.float32),
}


def same(x: Any) -> Any:
    return x


def sgd(learning_rate: Any = 0.1) -> optax.GradientTransformation:
    return optax.sgd(learning_rate, momentum=0.9)


def adam(learning_rate: Any = 0.1) -> optax.GradientTransformation:
    return optax.adam(learning_rate)


STAGES = [
    Stage(1, 0.1, beta=0.5, sync_period=2, slow_step_size=0.5),
    Stage(1, 0.2, beta=1.5, sync_period=3, slow_step_size=0.8),
    Stage(1, 0.05, beta=1.0, sync_period=2, slow_step_size=0.4),
]


def last_stages_step_size(slow_step_size: Any = 0.4) -> list[Stage]:
    return [*STAGES[:-1], Stage(1, 0.05, 1.0, 2, slow_step_size)]


def target(step: Any, leaf: Any) -> jax.Array:
    """The minimum of a step's loss for a leaf of the params, different at every step."""
    real = 2 * jnp.cos(step + jnp.arange(np.size(leaf)).reshape(np.shape(leaf)))
    is_complex = jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)
    return (1 + 1j) * real if is_complex else real


def quadratic(params: Any, step: Any) -> jax.Array:
    """The loss of a step, summed over the leaves."""
    leaves = jax.tree.leaves(params)
    return sum((jnp.sum(jnp.abs(p - target(step, p)) ** 2) for p in leaves), jnp.zeros(())) / 2


def gradients(params: Any, step: Any) -> Any:
    """The gradient of `quadratic`; for a complex leaf, in both of its parts."""
    return jax.tree.map(lambda p: (p - target(step, p)).astype(jnp.result_type(p)), params)


def no_extra(params: Any, step: Any) -> dict[str, Any]:
    return {}


def the_loss(params: Any, step: Any) -> dict[str, Any]:
    return {"value": quadratic(params, step)}


def gradients_elsewhere(params: Any, step: Any) -> dict[str, Any]:
    return {"grad_fn": lambda elsewhere, i: gradients(elsewhere, step)}


class Row(NamedTuple):
    """One transform of the table.

    Attributes:
      name: the unique name of the row.
      build: makes the transform, given a function that wraps its inner optimizer.
      inject: makes the transform, given a function that wraps its factory, which is
        `optax.inject_hyperparams` or the identity. Keyword arguments go to the factory.
      hyperparameter: a hyperparameter that `inject` accepts.
      value: a value of it other than its default.
      takes_schedule: whether that hyperparameter may be a schedule.
      has_inner: whether there is an inner optimizer to choose, which takes one step per
        gradient.
      has_slow: whether there are slow weights.
      averages: whether they are an average over all steps, without syncs, and the inner
        optimizer sees other weights than the params.
      extra: the extra arguments of `update`, given the params and the step.
      stages: the stages whose regulariser is part of the loss passed to the inner optimizer.
      splits: whether a complex param moves as its two parts would move separately.
    """

    name: str
    build: Callable[[Callable[[Any], Any]], optax.GradientTransformation]
    inject: Callable[..., optax.GradientTransformation]
    hyperparameter: str = "slow_step_size"
    value: float = 0.3
    takes_schedule: bool = True
    has_inner: bool = True
    has_slow: bool = True
    averages: bool = False
    extra: Callable[[Any, Any], dict[str, Any]] = no_extra
    stages: Sequence[Stage] = ()
    splits: bool = True


TABLE = [
    Row(
        "lookahead-sgd",
        lambda around: lookahead(around(sgd()), 3, 0.5),
        lambda inject, **kwargs: inject(lookahead)(optax.sgd(0.1), **kwargs),
    ),
    Row(
        "lookahead-adam",
        lambda around: lookahead(around(adam()), 2, 0.5),
        lambda inject, **kwargs: inject(lookahead)(adam(), **kwargs),
    ),
    Row(
        "lookahead-reset-adam",
        lambda around: lookahead(around(adam()), 2, 0.5, sync_moments="reset"),
        lambda inject, **kwargs: inject(lookahead)(adam(), sync_moments="reset", **kwargs),
    ),
    Row(
        "lookahead-pullback-adam",
        lambda around: lookahead(around(adam()), 3, 0.5, sync_moments="pullback"),
        lambda inject, **kwargs: inject(lookahead)(adam(), sync_moments="pullback", **kwargs),
    ),
    Row(
        "lookahead-slow_dtype-sgd",
        lambda around: lookahead(around(sgd()), 2, 0.7, slow_dtype="float32"),
        lambda inject, **kwargs: inject(lookahead)(sgd(), slow_dtype="float32", **kwargs),
    ),
    Row(
        "multilayer_lookahead-adam",
        lambda around: multilayer_lookahead(around(adam()), (2, 2), (0.5, 0.6)),
        lambda inject, **kwargs: inject(
            lambda slow_step_size=0.8: multilayer_lookahead(adam(), (2, 3), (slow_step_size, 0.5))
        )(**kwargs),
    ),
    Row(
        "multilayer_lookahead-pullback-sgd",
        lambda around: multilayer_lookahead(
            around(sgd()), (2, 2), (0.5, 0.6), sync_moments="pullback"
        ),
        lambda inject, **kwargs: inject(
            lambda slow_step_size=0.8: multilayer_lookahead(
                sgd(), (2, 3), (0.5, slow_step_size), sync_moments="pullback"
            )
        )(**kwargs),
    ),
    Row(
        "primal_averaging-sgd",
        lambda around: primal_averaging(around(sgd()), 0.7, 0.6),
        lambda inject, **kwargs: inject(primal_averaging)(
            optax.sgd(0.1), **{"eval_interpolation": 0.6} | kwargs
        ),
        hyperparameter="eval_interpolation",
        averages=True,
    ),
    Row(
        "primal_averaging-adam",
        lambda around: primal_averaging(around(adam()), 0.5, 0.9),
        lambda inject, **kwargs: inject(primal_averaging)(
            adam(), **{"eval_interpolation": 0.9} | kwargs
        ),
        hyperparameter="train_interpolation",
        averages=True,
    ),
    Row(
        "two_loop-sgd",
        lambda around: two_loop(around(sgd()), optax.sgd(0.6, momentum=0.4), 3),
        lambda inject, **kwargs: inject(
            lambda slow_step_size=0.8: two_loop(sgd(), optax.sgd(slow_step_size), 3)
        )(**kwargs),
        takes_schedule=False,
    ),
    Row(
        "two_loop-reset-adam",
        lambda around: two_loop(around(adam()), optax.adam(0.3), 2, sync_moments="reset"),
        lambda inject, **kwargs: inject(
            lambda slow_step_size=0.8: two_loop(
                adam(), optax.adam(slow_step_size), 2, sync_moments="reset"
            )
        )(**kwargs),
        takes_schedule=False,
        splits=False,
    ),
    Row(
        "snoo-slow_dtype-adam",
        lambda around: snoo(around(adam()), 2, slow_dtype="float32"),
        lambda inject, **kwargs: inject(snoo)(adam(), 3, slow_dtype="float32", **kwargs),
        hyperparameter="learning_rate",
        takes_schedule=False,
    ),
    Row(
        "snoo-sgd",
        lambda around: snoo(around(sgd()), 3, 0.6, 0.5),
        lambda inject, **kwargs: inject(snoo)(sgd(), 3, **kwargs),
        hyperparameter="learning_rate",
        takes_schedule=False,
    ),
    Row(
        "stagewise_prox-sgd",
        lambda around: optax.chain(stagewise_prox(0.8, 3), around(sgd())),
        lambda inject, beta=0.1: optax.chain(inject(stagewise_prox)(beta, 5), sgd()),
        hyperparameter="beta",
        value=0.9,
        has_slow=False,
    ),
    Row(
        "slrla-sgd",
        lambda around: slrla(lambda lr: around(sgd(lr)), STAGES),
        lambda inject, **kwargs: inject(
            lambda slow_step_size=0.4: slrla(sgd, last_stages_step_size(slow_step_size))
        )(**kwargs),
        takes_schedule=False,
        value=0.9,
        stages=STAGES,
    ),
    Row(
        "slrla-reset-adam",
        lambda around: slrla(lambda lr: around(adam(lr)), STAGES, sync_moments="reset"),
        lambda inject, **kwargs: inject(
            lambda slow_step_size=0.4: slrla(
                adam, last_stages_step_size(slow_step_size), sync_moments="reset"
            )
        )(**kwargs),
        takes_schedule=False,
        value=0.9,
        stages=STAGES,
    ),
    Row(
        "slrla-decoupled-adam",
        lambda around: slrla(lambda lr: around(adam(lr)), STAGES, decoupled=True),
        lambda inject, **kwargs: inject(
            lambda slow_step_size=0.4: slrla(
                adam, last_stages_step_size(slow_step_size), decoupled=True
            )
        )(**kwargs),
        takes_schedule=False,
        value=0.9,
    ),
    Row(
        "slrla_sgd-shared",
        lambda around: slrla_sgd(0.1, 0.4, None, 2, 0.5, weight_decay=0.01),
        lambda inject, **kwargs: inject(slrla_sgd)(0.1, **kwargs),
        has_inner=False,
    ),
    Row(
        "slrla_sgd-own-anchor",
        lambda around: slrla_sgd(0.1, 0.4, 3, 2, 0.5),
        lambda inject, **kwargs: inject(slrla_sgd)(0.1, anchor_period=4, **kwargs),
        hyperparameter="beta",
        value=1.2,
        has_inner=False,
    ),
    Row(
        "lookbehind-sgd",
        lambda around: lookbehind(sgd(), 2, 0.1, 0.5, adaptive_rho=True),
        lambda inject, **kwargs: inject(
            lambda slow_step_size=0.5: lookbehind(sgd(), 2, 0.1, slow_step_size)
        )(**kwargs),
        takes_schedule=False,
        has_inner=False,
        has_slow=False,
        extra=gradients_elsewhere,
        splits=False,
    ),
    Row(
        "sam-adam",
        lambda around: sam(adam(), 0.3),
        lambda inject, **kwargs: inject(sam)(adam(), **kwargs),
        hyperparameter="rho",
        takes_schedule=False,
        has_inner=False,
        has_slow=False,
        extra=gradients_elsewhere,
        splits=False,
    ),
    Row(
        "adaloss",
        lambda around: adaloss(0.3, momentum=0.5),
        lambda inject, learning_rate=0.3: inject(adaloss)(learning_rate, momentum=0.5),
        hyperparameter="learning_rate",
        value=0.1,
        has_inner=False,
        has_slow=False,
        extra=the_loss,
    ),
    Row(
        "adagrad_norm",
        lambda around: adagrad_norm(0.3, momentum=0.6, weight_decay=0.01),
        lambda inject, learning_rate=0.3: inject(adagrad_norm)(learning_rate, momentum=0.6),
        hyperparameter="learning_rate",
        value=0.1,
        has_inner=False,
        has_slow=False,
    ),
    Row(
        "adabound",
        lambda around: adabound(0.2, gamma=0.1),
        # A schedule would also change the bounds.
        lambda inject, learning_rate=0.2: inject(adabound)(learning_rate, gamma=0.1),
        hyperparameter="learning_rate",
        value=0.1,
        takes_schedule=False,
        has_inner=False,
        has_slow=False,
        splits=False,
    ),
]


@functools.cache
def quick_compilation() -> dict[str, Any]:
    """Options that make `jax.jit` compile faster but the program run more slowly.

    Includes only the options that the installed version knows.
    """
    options = {
        "xla_backend_optimization_level": 0,
        "xla_cpu_parallel_codegen_split_count": 1,
        "xla_cpu_use_fusion_emitters": False,
    }

    def known(option: str) -> bool:
        try:
            jax.jit(jnp.sin, compiler_options={option: options[option]})(0.0)
        except jax.errors.JaxRuntimeError:
            return False
        return True

    if "compiler_options" not in inspect.signature(jax.jit).parameters:
        return {}
    return {"compiler_options": {name: x for name, x in options.items() if known(name)}}


def quick_jit(f: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` for the hundreds of tests that run a few steps on eight numbers."""
    return jax.jit(f, **quick_compilation(), **options)


class Run(NamedTuple):
    """A training run: stacked params and slow weights after every step, and the last state."""

    params: Any
    slow: Any
    state: Any


def run(
    tx: optax.GradientTransformation,
    params: Any = None,
    steps: int = STEPS,
    *,
    grads: Callable[[Any, Any], Any] = gradients,
    state: Any = None,
    extra: Callable[[Any, Any], dict[str, Any]] = no_extra,
    observe: Callable[[Any, Any], Any] = slow_params,
) -> Run:
    """Trains with `jax.lax.scan`, from `tx.init` if no state is given."""
    tx = optax.with_extra_args_support(tx)

    def step(carry, i):
        params, state = carry
        updates, state = tx.update(grads(params, i), state, params, **extra(params, i))
        params = optax.apply_updates(params, updates)
        return (params, state), (params, observe(state, params))

    @quick_jit
    def train(params, state):
        state = tx.init(params) if state is None else state
        (_, state), (path, seen) = jax.lax.scan(step, (params, state), jnp.arange(steps))
        return Run(path, seen, state)

    return train(device_params() if params is None else params, state)


def device_params() -> Any:
    return jax.tree.map(jnp.array, PARAMS)


def evaluated(row: Row) -> Callable[[Any, Any], Any]:
    """The function that reads a row's slow weights, or the params if it has none."""
    return slow_params if row.has_slow else lambda state, params: params


def run_row(row: Row, tx: optax.GradientTransformation, *args: Any, **kwargs: Any) -> Run:
    """Like `run`, with the extra arguments and the slow weights of a row."""
    return run(tx, *args, **({"observe": evaluated(row), "extra": row.extra} | kwargs))


@functools.cache
def _plain(name: str, leaves: tuple[str, ...]) -> Run:
    row = next(row for row in TABLE if row.name == name)
    return run_row(row, row.build(same), {leaf: device_params()[leaf] for leaf in leaves})


def plain(row: Row, leaves: Sequence[str] = ("w", "b")) -> Run:
    """The run of a row's transform without wrappers, on some leaves of `PARAMS`."""
    return _plain(row.name, tuple(leaves))


def assert_close(actual: Any, desired: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Asserts equal structures, shapes and dtypes, and values equal up to rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(desired)
    for (path, a), d in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(desired), strict=True
    ):
        name = jax.tree_util.keystr(path)
        a, d = jnp.asarray(a), jnp.asarray(d)
        assert a.dtype == d.dtype, name
        assert a.shape == d.shape, name
        if jnp.issubdtype(a.dtype, jnp.floating):
            a, d = a.astype(jnp.float32), d.astype(jnp.float32)
        np.testing.assert_allclose(a, d, rtol=rtol, atol=atol, err_msg=name)


def assert_same_run(actual: Run, desired: Run, **tolerance: float) -> None:
    assert_close(actual.params, desired.params, **tolerance)
    assert_close(actual.slow, desired.slow, **tolerance)


def differ(a: Any, b: Any) -> bool:
    """Whether two trees differ by more than rounding."""
    return any(
        np.max(np.abs(np.asarray(x) - np.asarray(y))) > 1e-3
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def at_steps(run: Run, steps: Any) -> Run:
    """The params and slow weights of a run after selected 0-based steps."""
    steps = np.asarray(steps)
    return Run(
        jax.tree.map(lambda x: x[steps], run.params),
        jax.tree.map(lambda x: x[steps], run.slow),
        run.state,
    )
