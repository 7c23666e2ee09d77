"""SAM, ASAM and Lookbehind: descent with gradients from where the loss is worse."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from slrla_jax import _arguments as arguments
from slrla_jax import _trees as trees
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
    mask: Mask | None = None,
    cosine: str = "per_leaf",
) -> optax.GradientTransformationExtraArgs:
    r"""Lookbehind: k steps of ascent behind, k of descent, and one step back.

    One training step, on one batch, from the slow weights θ:

    .. math::
        φ_0 &= v_0 = θ \\
        φ_i &= φ_{i-1} + ε(∇L(φ_{i-1})), \quad v_i = A(v_{i-1}, ∇L(φ_i)),
               \quad i = 1, …, k \\
        θ &← θ + α (v_k - θ)

    The gradient at φ_i serves as descent gradient i and as ascent gradient i+1. So
    k+1 gradients make the step: the caller's, at θ, and k calls of `grad_fn`. After
    the step the params are the slow weights, and no copy is kept.

    The ascent is that of SAM, or of ASAM with `adaptive_rho`:

    .. math::
        ε(g) = ρ \frac{g}{\|g\|}, \qquad ε(g) = ρ \frac{T² g}{\|T g\|},
        \quad T = |φ| + η_{asam} \text{ on weights, 1 elsewhere,}

    with the norm over all leaves together. A zero gradient gives ε = 0.

    Args:
      inner: A, the optimizer of the descent. It makes k steps a training step: the
        boundaries of schedules inside are to be multiplied by k.
      ascent_steps: k ≥ 1, a plain number. (Under `optax.inject_hyperparams` name it
        in `static_args`.)
      rho: ρ ≥ 0, the length of an ascent step.
      slow_step_size: α in (0, 1]; or `"adaptive"` for
        α = (cos(v_1 − θ, v_k − θ) + 1) / 2, where a zero difference counts as cosine 0.
      adaptive_rho: whether the ascent is ASAM's.
      eta: η_asam ≥ 0, with `adaptive_rho`.
      mask: with `adaptive_rho`, which leaves are weights: a tree of booleans like the
        params, or a function from params to that. None for the leaves of two or more
        dimensions.
      cosine: with the adaptive α, `"per_leaf"` for an α of each leaf's own, `"global"`
        for one of all leaves together.

    Returns:
      A transformation to call as `update(grads, state, params, grad_fn=grad_fn)`. Its
      state is that of `inner`. `grads` is the gradient at `params`, from the pass that
      also gives the loss and the statistics of batch normalisation;
      `grad_fn(params, i)` is the gradient of the same batch elsewhere, for ascent steps
      i = 0, …, k − 1. Over several devices both must be averages over all of them.
      Under `optax.MultiSteps`, `grad_fn` (and `value`) must cover the whole accumulated
      batch, and the wrapper be called itself: its `gradient_transformation()` drops extra
      arguments. All of this with code is in `docs/lookbehind.md`.

    Raises:
      ValueError: for an argument outside these bounds; and in `update` without
        `params` or `grad_fn`.

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
    arguments.check_length("ascent_steps", ascent_steps)
    for name, value in (("rho", rho), ("eta", eta)):
        arguments.check_no_schedule(name, value)
        arguments.check_beta(name, value)
    if isinstance(slow_step_size, str):
        arguments.check_choice("slow_step_size", slow_step_size, [ADAPTIVE])
    else:
        arguments.check_no_schedule("slow_step_size", slow_step_size)
        arguments.check_step_size("slow_step_size", slow_step_size)
    arguments.check_choice("cosine", cosine, COSINES)
    inner = optax.with_extra_args_support(inner)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        grad_fn: Callable[[optax.Params, int], optax.Updates] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        arguments.check_params("a sharpness-aware optimizer", params)
        if grad_fn is None:
            raise ValueError(
                "`grad_fn` must be passed to `update(grads, state, params, grad_fn=grad_fn)` "
                "of a sharpness-aware optimizer, got None."
            )
        grads, behind, fast, first = updates, params, params, None
        for i in range(int(ascent_steps)):
            scales = _scales(behind, eta, mask) if adaptive_rho else None
            behind = optax.apply_updates(behind, _ascent(grads, scales, rho))
            grads = grad_fn(behind, i)
            updates, state = inner.update(grads, state, fast, **extra_args)
            fast = optax.apply_updates(fast, updates)
            first = fast if first is None else first

        way = updates if ascent_steps == 1 else trees.difference(fast, params)
        alpha = slow_step_size
        if isinstance(alpha, str):
            alphas = _adaptive_step_sizes(trees.difference(first, params), way, cosine)
        else:
            alphas = jax.tree.map(lambda _: alpha, way)
        return jax.tree.map(_step_back, way, alphas, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def sam(
    inner: optax.GradientTransformation, rho: Scalar = 0.05
) -> optax.GradientTransformationExtraArgs:
    r"""Sharpness-aware minimisation: the gradient from a step of ascent away.

    .. math::
        ε = ρ \frac{g}{\|g\|}, \qquad v ← A(v, ∇L(v + ε))

    It is `lookbehind` with one ascent step and α = 1, and is called as that is.

    Args:
      inner: A, the optimizer of the descent.
      rho: ρ ≥ 0, the length of the ascent step.

    Returns:
      A transformation to call as `update(grads, state, params, grad_fn=grad_fn)`; see
      `lookbehind`.

    Raises:
      ValueError: for a negative `rho`; and in `update` without `params` or `grad_fn`.

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
    return lookbehind(inner, 1, rho, 1.0)


def asam(
    inner: optax.GradientTransformation,
    rho: Scalar = 0.5,
    eta: Scalar = 0.01,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adaptive SAM: the ascent measured in units of each weight's own size.

    .. math::
        T = |v| + η \text{ on weights, 1 elsewhere}, \qquad
        ε = ρ \frac{T² g}{\|T g\|}, \qquad v ← A(v, ∇L(v + ε))

    It is `lookbehind` with one ascent step, α = 1 and `adaptive_rho`, and is called as
    that is.

    Args:
      inner: A, the optimizer of the descent.
      rho: ρ ≥ 0, the length of the ascent step.
      eta: η ≥ 0, the size that a zero weight counts for.
      mask: which leaves are weights; see `lookbehind`.

    Returns:
      A transformation to call as `update(grads, state, params, grad_fn=grad_fn)`; see
      `lookbehind`.

    Raises:
      ValueError: for a negative `rho` or `eta`; and in `update` without `params` or
        `grad_fn`.

    Example:
      >>> import optax, slrla_jax
      >>> tx = slrla_jax.asam(optax.sgd(0.1, momentum=0.9), rho=0.5)

    References:
      Kwon, Kim, Park and Choi, `ASAM: Adaptive Sharpness-Aware Minimization for
      Scale-Invariant Learning of Deep Neural Networks
      <https://arxiv.org/abs/2102.11600>`_, 2021.
    """
    return lookbehind(inner, 1, rho, 1.0, adaptive_rho=True, eta=eta, mask=mask)


def _scales(params: optax.Params, eta: Scalar, mask: Mask | None) -> optax.Params:
    """T: |v| + η on weights, 1 elsewhere."""
    if mask is None:
        mask = jax.tree.map(lambda p: jnp.ndim(p) >= 2, params)
    elif callable(mask):
        mask = mask(params)
    return jax.tree.map(
        lambda is_weight, p: jnp.abs(trees.working(p)) + eta if is_weight else 1.0, mask, params
    )


def _ascent(grads: optax.Updates, scales: optax.Params | None, rho: Scalar) -> optax.Updates:
    """ε: ρ T² g / ‖T g‖, or zero for a zero gradient."""
    if scales is None:
        scales = jax.tree.map(lambda _: 1.0, grads)
    scaled = jax.tree.map(lambda g, t: t * trees.working(g), grads, scales)
    norm = jnp.sqrt(trees.sum_of_squares(scaled))
    factor = jnp.where(norm > 0, rho / jnp.where(norm > 0, norm, 1.0), 0.0)
    return jax.tree.map(
        lambda s, t, g: (factor * t * s).astype(jnp.result_type(g)), scaled, scales, grads
    )


def _adaptive_step_sizes(first: optax.Updates, last: optax.Updates, cosine: str) -> optax.Updates:
    """α = (cos(first, last) + 1) / 2 for each leaf."""

    def inner_products(x: optax.Updates, y: optax.Updates) -> optax.Updates:
        each = jax.tree.map(
            lambda a, b: jnp.sum(jnp.real(trees.working(a) * jnp.conj(trees.working(b)))), x, y
        )
        if cosine == "per_leaf":
            return each
        total = sum(jax.tree.leaves(each), start=jnp.zeros(()))
        return jax.tree.map(lambda _: total, each)

    def step_size(xy: jax.Array, xx: jax.Array, yy: jax.Array) -> jax.Array:
        # Each norm by itself: their squares' product would underflow sooner.
        norms = jnp.sqrt(xx) * jnp.sqrt(yy)
        return (jnp.where(norms > 0, xy / jnp.where(norms > 0, norms, 1.0), 0.0) + 1) / 2

    return jax.tree.map(
        step_size,
        inner_products(first, last),
        inner_products(first, first),
        inner_products(last, last),
    )


def _step_back(way: jax.Array, alpha: Any, update: jax.Array) -> jax.Array:
    return jnp.where(alpha != 1, alpha * way, way).astype(jnp.result_type(update))
