"""The stages of SLRLA that its convergence theorem prescribes."""

import numpy as np

from slrla_jax import _arguments as arguments
from slrla_jax._slrla import Stage

# By what fraction a stage may be too short: rounding errors in G² / (2 λ ε_0) cost no cycle.
ROUNDING = 1e-9


def theory_stages(
    num_steps: int,
    strong_convexity: float,
    gradient_bound: float,
    slow_step_size: float = 0.8,
    sync_period: int = 5,
    initial_error: float | None = None,
) -> list[Stage]:
    r"""The stages of `slrla` for which its theorem holds, from λ, G, α and a budget of steps.

    Every stage halves the error, with half the learning rate and twice the steps of the one
    before. In stage s = 1, …, Q of N_s = k T_s steps

    .. math::
        ε_s = ε_0 / 2^s, \quad β_s = λ / 6, \quad η_s = \frac{ε_s}{3 G^2}, \quad
        η_s N_s ≥ \frac{6}{λ α},

    which are 36 G² / (λ α ε_Q) gradients in all, up to whole cycles. N_1 is rounded up to
    whole cycles and then doubled from stage to stage; Q is the number of stages that fit into
    `num_steps`, and the last one also gets the steps that are left.

    **What it promises.** If F is λ-strongly convex, then E[F] at the average of the last stage's
    iterates exceeds the minimum by at most ε_0 / 2^Q, provided that every stage begins at the
    average of the one before. `slrla` instead goes on from its slow weights, for which the
    theorem says nothing; in practice they keep the promise too. docs/theory.md derives all of this.

    **How to choose.** By default ε_0 = G² / (2λ), the largest error that λ and G allow. Then
    η_1 = 1 / (12λ) and N_1 = 72 / α, whatever G is. On an ill-conditioned problem that learning
    rate is too large: an L-smooth loss needs η < 2 / L. So pass the error at the start,
    ε_0 = F(θ_0) − min F; for a loss that is nowhere negative, F(θ_0) is an upper bound. And
    let G bound the gradients, noise included, wherever the error is at most ε_0: where F is
    quadratic, such a G² is at least 2 L ε_0, so that η_1 = ε_0 / (6 G²) ≤ 1 / (12 L).

    Args:
      num_steps: the optimizer steps of all stages together; whole cycles of `sync_period`.
      strong_convexity: λ > 0, as of an L2 penalty ½ λ‖θ‖². For a convex F without it, μ of the
        Polyak–Łojasiewicz condition ½ ‖∇F‖² ≥ μ (F − min F).
      gradient_bound: G > 0; E‖g‖² ≤ G² for the stochastic gradients g of F, in which the
        regulariser is not included.
      slow_step_size: α in (0, 1].
      sync_period: k ≥ 1.
      initial_error: ε_0, at least F(θ_0) − min F and at most G² / (2λ); None for G² / (2λ).

    Returns:
      The stages, for `slrla(optax.sgd, …)`: the inner optimizer of the theorem is plain SGD.

    Raises:
      ValueError: if an argument is out of range, if `num_steps` is not a multiple of
        `sync_period`, or if it is too small for the first stage.

    Example:
      >>> import optax, slrla_jax
      >>> stages = slrla_jax.theory_stages(700, strong_convexity=0.1, gradient_bound=2.0)
      >>> [(stage.length, round(stage.learning_rate, 3)) for stage in stages]
      [(90, 0.833), (180, 0.417), (430, 0.208)]
      >>> tx = slrla_jax.slrla(optax.sgd, stages)
      >>> 2.0**2 / (2 * 0.1) / 2 ** len(stages)  # ε_0 / 2^Q
      2.5

    References:
      Zhou, Yan, Yuan, Feng and Yan, `Towards Understanding Why Lookahead Generalizes
      Better Than SGD and Beyond
      <https://papers.nips.cc/paper/2021/hash/e53a0a2978c28872a4505bdb51db06dc-Abstract.html>`_,
      2021, and its supplement.
    """
    arguments.check_length("num_steps", num_steps)
    arguments.check_length("sync_period", sync_period)
    arguments.check_no_schedule(
        strong_convexity=strong_convexity,
        gradient_bound=gradient_bound,
        slow_step_size=slow_step_size,
        initial_error=initial_error,
    )
    arguments.check_positive("strong_convexity", strong_convexity)
    arguments.check_positive("gradient_bound", gradient_bound)
    arguments.check_step_size("slow_step_size", slow_step_size)
    strong_convexity = float(strong_convexity)
    allowance = _largest_to_initial(initial_error, strong_convexity, float(gradient_bound))

    # N_1 = 72 / α and η_1 = 1 / (12 λ) for the largest ε_0; those for a smaller one in proportion.
    first = _whole_cycles(72 * allowance / float(slow_step_size), sync_period)
    _check_budget(num_steps, first, sync_period)
    rate = 1 / (12 * strong_convexity * allowance)

    budget, first = int(num_steps) // int(sync_period), int(first)
    number = (budget // first + 1).bit_length() - 1  # The largest Q for which (2^Q − 1) T_1 fits.
    cycles = [first * 2**s for s in range(number)]
    cycles[-1] += budget - sum(cycles)
    return [
        Stage(length, rate / 2**s, strong_convexity / 6, sync_period, slow_step_size)
        for s, length in enumerate(cycles)
    ]


def _largest_to_initial(error: float | None, strong_convexity: float, bound: float) -> float:
    """Returns G² / (2 λ ε_0) ≥ 1: by how much ε_0 is smaller than the largest possible error."""
    if error is None:
        return 1.0
    arguments.check_positive("initial_error", error)
    largest = bound * bound / (2 * strong_convexity)
    if error > largest:
        raise ValueError(
            "`initial_error` must be at most gradient_bound² / (2 strong_convexity) = "
            f"{largest:g}, which no error exceeds, got {error!r}."
        )
    return largest / float(error)


def _whole_cycles(steps: float, sync_period: int) -> float:
    """Returns the number of cycles that have at least so many steps."""
    return float(np.ceil(steps * (1 - ROUNDING) / sync_period))


def _check_budget(num_steps: int, first: float, sync_period: int) -> None:
    """Raises unless the steps are whole cycles, and enough for a first stage of so many cycles."""
    below = num_steps - num_steps % sync_period
    if num_steps != below:
        raise ValueError(
            f"`num_steps` must be a multiple of `sync_period` = {sync_period}, such as "
            f"{below + sync_period}, got {num_steps!r}."
        )
    if num_steps < first * sync_period:
        raise ValueError(
            f"`num_steps` must be at least {first * sync_period:.0f}, the length of the first "
            f"stage, got {num_steps!r}."
        )
