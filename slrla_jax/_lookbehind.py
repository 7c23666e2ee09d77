"""SAM, ASAM and Lookbehind: descent with gradients taken at points of higher loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slrla_jax import _arguments as arguments
from slrla_jax import _moments as moments
from slrla_jax import _numerics as numerics
from slrla_jax._arguments import Scalar

Mask = Any | Callable[[optax.Params], Any]

ADAPTIVE = "adaptive"
COSINES = ("per_leaf", "global")


def lookbehind(
    inner: optax.GradientTransformation,
    ascent_steps: int = 2,
    rho: Scalar = 0.05,
    slow_step_size: Scalar | str = 0.5,
    *,
    adaptive_rho: bool = False,
    eta: Scalar = 0.01,
    weight_mask: Mask | None = None,
    ascent_mask: Mask | None = None,
    cosine: str = "per_leaf",
) -> optax.GradientTransformationExtraArgs:
    r"""Lookbehind: k ascent steps, k descent steps, and one step back.

    One training step, on one batch, starting from the slow weights θ:

    .. math::
        φ_0 &= v_0 = θ \\
        φ_i &= φ_{i-1} + ε(∇L(φ_{i-1})), \quad v_i = A(v_{i-1}, ∇L(φ_i)),
               \quad i = 1, …, k \\
        θ &← θ + α (v_k - θ)

    The gradient at φ_i serves both as descent gradient i and as ascent gradient i+1. A
    step therefore takes k+1 gradient evaluations: the caller's, at θ, and k calls of
    `grad_fn`. After the step the params are the slow weights, and no copy is stored.

    The ascent is that of SAM, or of ASAM with `adaptive_rho`:

    .. math::
        ε(g) = ρ \frac{g}{\|g\|}, \qquad ε(g) = ρ \frac{T² g}{\|T g\|},
        \quad T = |φ| + η_{asam} \text{ on weights, 1 elsewhere,}

    where the norm is taken over all leaves together. (Inside `shard_map` it covers only
    each device's shard, so use `jax.jit` for sharded params.) A zero gradient gives ε = 0.

    If part of the params is frozen, put the `optax.partition` that freezes it inside,
    around the descent optimizer, and select the trained params with `ascent_mask`. The
    ascent then leaves the frozen params unchanged, and they do not count towards the norm.
    With the partition outside, `grad_fn` would be called with the masked params missing.

    Args:
      inner: A, the descent optimizer. It takes k steps per training step, so multiply the
        boundaries of its schedules by k. If it needs the loss (`value=`), all k steps
        receive the loss at θ; for this reason it must not contain a line search if k > 1.
      ascent_steps: k ≥ 1, a plain number. (Under `optax.inject_hyperparams`, list it
        in `static_args`.)
      rho: ρ ≥ 0, the length of an ascent step. With bfloat16 params, part of a small ρ is
        rounded away; keep the params in float32 and cast them in the loss.
      slow_step_size: α in (0, 1]; or `"adaptive"` for
        α = (cos(v_1 − θ, v_k − θ) + 1) / 2, where the cosine is 0 if either difference is.
      adaptive_rho: whether to ascend as ASAM does rather than as SAM does.
      eta: η_asam ≥ 0, used with `adaptive_rho`.
      weight_mask: with `adaptive_rho`, which leaves are weights: a tree of booleans with
        the structure of the params or of a prefix of it, or a function from params to
        such a tree. None for all leaves of two or more dimensions.
      ascent_mask: which leaves the ascent moves, in the same form; None for all leaves.
        (Under `optax.inject_hyperparams`, list masks that are functions in `static_args`.)
      cosine: with the adaptive α, `"per_leaf"` for a separate α per leaf, or `"global"`
        for a single α computed over all leaves together.

    Returns:
      A transformation to call as `update(grads, state, params, grad_fn=grad_fn)`. Its
      state is the state of `inner`. `grads` is the gradient at `params`, from the pass that
      also gives the loss and the BatchNorm statistics; `grad_fn(params, i)` must return
      the gradient on the same batch at other params, for ascent steps i = 0, …, k − 1.
      With several devices, both must be averaged over all of them. Under
      `optax.MultiSteps`, `grad_fn` (and `value`) must cover the whole accumulated batch;
      call `update` of the `MultiSteps` object itself, because its
      `gradient_transformation()` drops extra arguments. `docs/lookbehind.md` shows all of
      this with code.

    Raises:
      ValueError: if an argument is out of range; and in `update`, if `params` or `grad_fn`
        is missing.

    Example:
      >>> import jax, jax.numpy as jnp, optax, slrla_jax
      >>> tx = slrla_jax.lookbehind(optax.sgd(0.1), ascent_steps=2, rho=0.05)
      >>> @jax.jit
      ... def train_step(params, state, batch):
      ...     grad_fn = lambda params, i: jax.grad(loss)(params, batch)
      ...     grads = jax.grad(loss)(params, batch)
      ...     updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
      ...     return optax.apply_updates(params, updates), state
      >>> loss = lambda params, batch: jnp.mean((batch @ params) ** 2)
      >>> params, batch = jnp.ones(2), jnp.eye(2)
      >>> params, state = train_step(params, tx.init(params), batch)
      >>> print(f"{params[0]:.3f} {params[1]:.3f}")
      0.895 0.895

    References:
      Mordido, Malviya, Baratin and Chandar, `Lookbehind-SAM: k steps back, 1 step
      forward <https://arxiv.org/abs/2307.16704>`_, 2024.
    """
    if isinstance(ascent_steps, jax.Array):
        raise ValueError(
            f"`ascent_steps` must be a plain number, got {ascent_steps!r}; under "
            "`optax.inject_hyperparams` list it in `static_args`."
        )
    arguments.check_length("ascent_steps", ascent_steps)
    arguments.check_bool("adaptive_rho", adaptive_rho)
    arguments.check_transformation("inner", inner)
    arguments.check_no_schedule(rho=rho, eta=eta)
    arguments.check_non_negative("rho", rho)
    arguments.check_non_negative("eta", eta)
    if isinstance(slow_step_size, str):
        arguments.check_choice("slow_step_size", slow_step_size, [ADAPTIVE])
    else:
        arguments.check_no_schedule(slow_step_size=slow_step_size)
        arguments.check_step_size("slow_step_size", slow_step_size)
    arguments.check_choice("cosine", cosine, COSINES)
    inner = arguments.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> optax.OptState:
        state = inner.init(params)
        if ascent_steps > 1 and moments.has_line_search(state):
            raise ValueError(
                "`inner` must have no line search when `ascent_steps` is more than 1, got "
                f"{ascent_steps}: all of its steps receive `value` and `grad` at θ."
            )
        return state

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[[optax.Params, int], optax.Updates] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        arguments.check_params("a sharpness-aware optimizer", params)
        if not callable(grad_fn):
            raise ValueError(
                "`grad_fn` must be passed to `update(grads, state, params, grad_fn=grad_fn)` "
                f"of a sharpness-aware optimizer, got {grad_fn!r}."
            )
        grads, behind, fast, first = updates, params, params, None
        for i in range(int(ascent_steps)):
            # φ ← φ + ε(∇L(φ)),  v ← A(v, ∇L(φ))
            climbing = _masked(ascent_mask, params, grads)
            scales = _scales(behind, climbing, eta, weight_mask) if adaptive_rho else None
            behind = numerics.add(behind, _ascent(climbing, scales, rho))
            grads = _gradient(grad_fn, behind, i, grads)
            updates, state = inner.update(grads, state, fast, **extra_args)
            fast = numerics.add(fast, updates)
            first = fast if first is None else first

        # θ ← θ + α (v − θ)
        moved = updates if ascent_steps == 1 else _difference(updates, fast, params)
        if isinstance(slow_step_size, str):
            alphas = _adaptive_step_sizes(_difference(updates, first, params), moved, cosine)
            has_stepped_back: Any = True
        else:
            alpha = arguments.as_number(slow_step_size)
            alphas = numerics.tree_map(lambda _: alpha, moved)
            has_stepped_back = jnp.asarray(alpha != 1)
        state = moments.forget_evaluations(has_stepped_back, state)
        return numerics.tree_map(_step_back, moved, alphas, updates), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def sam(
    inner: optax.GradientTransformation,
    rho: Scalar = 0.05,
    *,
    ascent_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Sharpness-aware minimisation: descent with the gradient taken one ascent step away.

    .. math::
        ε = ρ \frac{g}{\|g\|}, \qquad v ← A(v, ∇L(v + ε))

    This is `lookbehind` with one ascent step and α = 1, and its `update` is called in the
    same way.

    Args:
      inner: A, the descent optimizer.
      rho: ρ ≥ 0, the length of the ascent step.
      ascent_mask: which leaves the ascent moves; see `lookbehind`.

    Returns:
      A transformation to call as `update(grads, state, params, grad_fn=grad_fn)`; see
      `lookbehind`.

    Raises:
      ValueError: if `rho` is negative; and in `update`, if `params` or `grad_fn` is
        missing.

    Example:
      >>> import jax, jax.numpy as jnp, optax, slrla_jax
      >>> tx = slrla_jax.sam(optax.sgd(0.1), rho=0.5)
      >>> grad = jax.grad(lambda x: jnp.sum(x**2))
      >>> params = jnp.array([1.0])
      >>> state = tx.init(params)
      >>> updates, state = tx.update(
      ...     grad(params), state, params, grad_fn=lambda params, i: grad(params)
      ... )
      >>> print(updates)  # −0.1 · 2 · (1 + 0.5)
      [-0.3]

    References:
      Foret, Kleiner, Mobahi and Neyshabur, `Sharpness-Aware Minimization for Efficiently
      Improving Generalization <https://arxiv.org/abs/2010.01412>`_, 2021.
    """
    return lookbehind(inner, 1, rho, 1.0, ascent_mask=ascent_mask)


def asam(
    inner: optax.GradientTransformation,
    rho: Scalar = 0.5,
    eta: Scalar = 0.01,
    *,
    weight_mask: Mask | None = None,
    ascent_mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adaptive SAM: the ascent step is scaled by the magnitude of each weight.

    .. math::
        T = |v| + η \text{ on weights, 1 elsewhere}, \qquad
        ε = ρ \frac{T² g}{\|T g\|}, \qquad v ← A(v, ∇L(v + ε))

    This is `lookbehind` with one ascent step, α = 1 and `adaptive_rho`, and its `update`
    is called in the same way.

    Args:
      inner: A, the descent optimizer.
      rho: ρ ≥ 0, the length of the ascent step.
      eta: η ≥ 0, added to the magnitude of each weight.
      weight_mask: which leaves are weights; see `lookbehind`.
      ascent_mask: which leaves the ascent moves; see `lookbehind`.

    Returns:
      A transformation to call as `update(grads, state, params, grad_fn=grad_fn)`; see
      `lookbehind`.

    Raises:
      ValueError: if `rho` or `eta` is negative; and in `update`, if `params` or `grad_fn`
        is missing.

    Example:
      >>> import optax, slrla_jax
      >>> tx = slrla_jax.asam(optax.sgd(0.1, momentum=0.9), rho=0.5)

    References:
      Kwon, Kim, Park and Choi, `ASAM: Adaptive Sharpness-Aware Minimization for
      Scale-Invariant Learning of Deep Neural Networks
      <https://arxiv.org/abs/2102.11600>`_, 2021.
    """
    return lookbehind(
        inner,
        1,
        rho,
        1.0,
        adaptive_rho=True,
        eta=eta,
        weight_mask=weight_mask,
        ascent_mask=ascent_mask,
    )


def _broadcast(name: str, mask: Mask, params: optax.Params) -> Any:
    """Expands a mask to a tree of booleans with the structure of the params."""
    mask = mask(params) if callable(mask) else mask
    wanted = f"`{name}` must be a tree of booleans like the params, or a prefix of it"
    for flag in jax.tree.leaves(mask):
        if not isinstance(flag, (bool, np.bool_)):
            raise ValueError(
                f"{wanted}, got a leaf {flag!r}. (Under `optax.inject_hyperparams`, list a mask "
                "that is a function in `static_args`.)"
            )
    try:
        return jax.tree.map(lambda flag, part: jax.tree.map(lambda _: flag, part), mask, params)
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from None


def _masked(mask: Mask | None, params: optax.Params, grads: optax.Updates) -> optax.Updates:
    """The gradients of the leaves that the mask selects, and None for the others."""
    if mask is None:
        return grads
    flags = _broadcast("ascent_mask", mask, params)
    return numerics.tree_map(lambda g, flag: g if flag else None, grads, flags)


def _scales(
    params: optax.Params, grads: optax.Updates, eta: Scalar, mask: Mask | None
) -> optax.Params:
    """T: |v| + η on weights, 1 elsewhere."""
    if mask is None:
        is_weight = numerics.tree_map(lambda g: jnp.ndim(g) >= 2, grads)
    else:
        is_weight = _broadcast("weight_mask", mask, params)

    def scale(_: Any, p: jax.Array, is_weight: bool) -> Any:
        return jnp.abs(numerics.widen(p)) + arguments.as_number(eta) if is_weight else 1.0

    return numerics.tree_map(scale, grads, params, is_weight)


def _ascent(grads: optax.Updates, scales: optax.Params | None, rho: Scalar) -> optax.Updates:
    """ε = ρ T² g / ‖T g‖, or zero for a zero gradient."""
    if scales is None:
        scales = numerics.tree_map(lambda _: 1.0, grads)
    scaled = numerics.tree_map(lambda g, t: t * numerics.widen(g), grads, scales)
    norm = numerics.sqrt(numerics.sum_of_squares(scaled))
    factor = jnp.where(norm > 0, arguments.as_number(rho) / jnp.where(norm > 0, norm, 1.0), 0.0)
    return numerics.tree_map(
        lambda g, s, t: (factor * t * s).astype(jnp.result_type(g)), grads, scaled, scales
    )


def _gradient(
    grad_fn: Callable[[optax.Params, int], optax.Updates],
    behind: optax.Params,
    i: int,
    grads: optax.Updates,
) -> optax.Updates:
    """Calls `grad_fn(behind, i)` and checks that it returns a tree like `grads`."""
    hint = ""
    if any(map(_is_masked, jax.tree.leaves(behind, is_leaf=_is_masked))):
        hint = (
            " It was called with params that were partly masked by an optax.masked or "
            "optax.partition around this sharpness-aware optimizer. Put that inside instead, and "
            "select the trained params with `ascent_mask`: "
            "sam(optax.partition(…), ascent_mask=…)."
        )
    try:
        elsewhere = grad_fn(behind, i)
    except Exception as error:
        if hint:
            error.add_note(f"`grad_fn` raised this error.{hint}")
        raise
    structures: list[Any] = [jax.tree.structure(elsewhere), jax.tree.structure(grads)]
    if structures[0] != structures[1]:
        raise ValueError(
            "`grad_fn` must return a tree like the gradients passed to `update`, got "
            f"{structures[0]} instead of {structures[1]}.{hint}"
        )
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(elsewhere), jax.tree.leaves(grads), strict=True
    ):
        if jnp.shape(one) != jnp.shape(other):
            raise ValueError(
                "`grad_fn` must return a tree like the gradients passed to `update`, got "
                f"shape {jnp.shape(one)} instead of {jnp.shape(other)} for "
                f"params{jax.tree_util.keystr(path)}."
            )
    return elsewhere


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _difference(updates: optax.Updates, end: optax.Params, start: optax.Params) -> optax.Updates:
    """The change from start to end, for the leaves that have an update."""
    return numerics.tree_map(
        lambda _, x, y: numerics.widen(x) - numerics.widen(y), updates, end, start
    )


def _adaptive_step_sizes(first: optax.Updates, last: optax.Updates, cosine: str) -> optax.Updates:
    """Computes α = (cos(first, last) + 1) / 2 for each leaf."""

    def inner_products(x: optax.Updates, y: optax.Updates) -> optax.Updates:
        each = jax.tree.map(
            lambda a, b: jnp.sum(jnp.real(numerics.widen(a) * jnp.conj(numerics.widen(b)))), x, y
        )
        if cosine == "per_leaf":
            return each
        total = sum(jax.tree.leaves(each), start=jnp.zeros(()))
        return jax.tree.map(lambda _: total, each)

    def step_size(xy: jax.Array, xx: jax.Array, yy: jax.Array) -> jax.Array:
        # Two separate square roots: the product of the squared norms would underflow sooner.
        norms = numerics.sqrt(xx) * numerics.sqrt(yy)
        return (jnp.where(norms > 0, xy / jnp.where(norms > 0, norms, 1.0), 0.0) + 1) / 2

    return jax.tree.map(
        step_size,
        inner_products(first, last),
        inner_products(first, first),
        inner_products(last, last),
    )


def _step_back(moved: jax.Array, alpha: Any, update: jax.Array) -> jax.Array:
    """α (v − θ), or v − θ itself if α = 1."""
    return numerics.like(numerics.at_limit(alpha == 1, moved, alpha * moved), update)
