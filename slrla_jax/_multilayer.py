"""Multilayer Lookahead: Lookahead around Lookahead."""

from collections.abc import Sequence
from typing import Any

import optax
from jax.typing import DTypeLike

from slrla_jax import _arguments as arguments
from slrla_jax import _memory as memory
from slrla_jax._arguments import ScalarOrSchedule
from slrla_jax._lookahead import check_settings, lookahead_layer


def multilayer_lookahead(
    inner: optax.GradientTransformation,
    sync_periods: Sequence[ScalarOrSchedule] | None = (5, 5),
    slow_step_sizes: Sequence[ScalarOrSchedule] = (0.8, 0.8),
    *,
    sync_moments: str = "keep",
    slow_dtype: DTypeLike | None = None,
    memory_kind: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Lookahead around Lookahead, to any depth.

    Layer 0 is the inner optimizer. One step of layer n consists of k_n steps of layer n−1
    followed by the step back of layer n,

    .. math::
        θ^{(n)} ← θ^{(n)} + α_n (θ^{(n-1)} - θ^{(n)}), \quad θ^{(n-1)} ← θ^{(n)},

    so with constant periods layer n syncs every :math:`k_1 k_2 ⋯ k_n` optimizer
    steps. When several layers sync at the same step, they do so from the inside out, and
    the inner layers continue from the new weights of the outermost. L layers store L slow
    copies. Two layers can also be written by hand, as
    `lookahead(lookahead(inner, k_1, α_1), k_1 * k_2, α_2)`.

    Manual syncs work as in `lookahead`, except that `sync` is the number of layers that sync
    at this step, innermost first: 0 (or False) for none, up to L for all.

    Args:
      inner: the inner optimizer; see `lookahead`.
      sync_periods: k_1, …, k_L, innermost layer first, each in steps of the layer below;
        each is a number, a traced array, or a schedule of the 0-based optimizer step.
        None for manual syncs only.
      slow_step_sizes: α_1, …, α_L, in the same form.
      sync_moments: what the syncs of every layer do to the moments of `inner`; see
        `lookahead`.
      slow_dtype: the dtype of the slow copies; see `lookahead`.
      memory_kind: where the slow copies are kept; see `lookahead`. A step reads and writes
        those of the layers that sync.

    Returns:
      A transformation with `update(updates, state, params, *, sync=None, **extra_args)`.
      Its state is the outermost layer's `LookaheadState`, with the layers below nested in
      its `inner_state`.

    Raises:
      ValueError: as `lookahead` does, if a list is empty, if the lists differ in length, and
        in `update`, if `sync` is not a number of layers.

    Example:
      >>> import jax.numpy as jnp, optax, slrla_jax
      >>> tx = slrla_jax.multilayer_lookahead(optax.sgd(1.0), (2, 2), (0.5, 0.5))
      >>> params, gradient = jnp.array(0.0), jnp.array(1.0)
      >>> state = tx.init(params)
      >>> for _ in range(4):
      ...     updates, state = tx.update(gradient, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(params, slrla_jax.slow_params(state, params))
      -1.0 0.0
      -1.0 0.0
      -2.0 0.0
      -1.0 -1.0

    References:
      Pushkin and Barba, `Multilayer Lookahead: a Nested Version of Lookahead
      <https://arxiv.org/abs/2110.14254>`_, 2021.
    """
    sync_periods = arguments.as_known(sync_periods)
    slow_step_sizes = arguments.as_known(slow_step_sizes)
    if sync_periods is not None:
        arguments.check_nonempty("sync_periods", sync_periods)
        for n, k in enumerate(sync_periods):
            arguments.check_period(f"sync_periods[{n}]", k)
    arguments.check_nonempty("slow_step_sizes", slow_step_sizes)
    periods: Any = [None] * len(slow_step_sizes) if sync_periods is None else sync_periods
    arguments.check_same_length(sync_periods=periods, slow_step_sizes=slow_step_sizes)

    memory.check_kind("memory_kind", memory_kind, sync_periods)

    tx = inner
    layers = len(slow_step_sizes)
    for n, (k, alpha) in enumerate(zip(periods, slow_step_sizes, strict=True)):
        settings = (k, alpha, sync_moments, slow_dtype)
        check_settings(inner, *settings, entry=f"s[{n}]")
        tx = lookahead_layer(tx, *settings, memory_kind, layer=n + 1, layers=layers)
    return tx
