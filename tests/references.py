"""The algorithms as plain nested loops in NumPy, for comparison with the package.

They are deliberately slow and obvious: all params are one float64 vector, every loop of a
paper is a loop here, and nothing is merged into a single update. `trace` runs an algorithm
and returns the weights after every optimizer step.

Learning rates, slow step sizes, periods and strengths are functions of s, the 0-based
number of the optimizer step; gradients are functions of the weights and of s.
"""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Schedule = Callable[[int], float]
Gradient = Callable[[np.ndarray, int], np.ndarray]
Step = Callable[[np.ndarray, int], np.ndarray]


# Paths


class Path:
    """Fast and slow weights after each of the first `steps` optimizer steps."""

    def __init__(self, steps: int):
        self.steps = steps
        self.fast: list[np.ndarray] = []
        self.slow: list[np.ndarray] = []

    def next_step(self) -> int:
        """The number of the step that begins now."""
        if len(self.fast) == self.steps:
            raise _EndOfPath
        return len(self.fast)

    def add(self, fast: np.ndarray, slow: np.ndarray) -> None:
        self.fast.append(fast)
        self.slow.append(slow)

    def sync(self, theta: np.ndarray) -> None:
        """Records that the last step was a sync, which ended at θ."""
        self.fast[-1] = self.slow[-1] = theta


class _EndOfPath(Exception):
    pass


def trace(steps: int, algorithm: Callable[[Path], object]) -> tuple[np.ndarray, np.ndarray]:
    """Fast and slow weights of an algorithm, stopped after `steps` optimizer steps."""
    path = Path(steps)
    with contextlib.suppress(_EndOfPath):
        algorithm(path)
    return np.array(path.fast), np.array(path.slow)


# Inner optimizers A


class SGD:
    """v − η g; the base class of the others, which have moments and another direction."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Restores the initial moments and bias-correction count."""
        self.moments: dict[str, np.ndarray | float] = {}
        self.count = 0

    def direction(self, g: np.ndarray) -> np.ndarray:
        return g

    def step(self, v: np.ndarray, g: np.ndarray, eta: float) -> np.ndarray:
        return v - eta * self.direction(g)

    def sync(self, sync_moments: str, start: dict[str, np.ndarray | float], alpha: float) -> None:
        """Changes the moments at a sync; `start` holds the moments before the cycle."""
        if sync_moments == "reset":
            self.reset()
        elif sync_moments == "pullback":
            self.moments = {
                name: start[name] + alpha * (m - start[name]) for name, m in self.moments.items()
            }
        else:
            assert sync_moments == "keep"


class Momentum(SGD):
    """m ← μ m + g, v ← v − η m."""

    def __init__(self, mu: float = 0.9):
        self.mu = mu
        super().__init__()

    def reset(self) -> None:
        self.moments = {"m": 0.0}

    def direction(self, g: np.ndarray) -> np.ndarray:
        m = self.mu * self.moments["m"] + g
        self.moments = {"m": m}
        return m


class Nesterov(Momentum):
    """b ← μ b + g, v ← v − η (μ b + g)."""

    def direction(self, g: np.ndarray) -> np.ndarray:
        return self.mu * super().direction(g) + g


class Adam(SGD):
    """Adam with optax's defaults."""

    def __init__(self, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
        self.b1, self.b2, self.eps = b1, b2, eps
        super().__init__()

    def reset(self) -> None:
        self.moments = {"m": 0.0, "v": 0.0}
        self.count = 0

    def direction(self, g: np.ndarray) -> np.ndarray:
        m = self.b1 * self.moments["m"] + (1 - self.b1) * g
        v = self.b2 * self.moments["v"] + (1 - self.b2) * g**2
        self.moments = {"m": m, "v": v}
        self.count += 1
        m_hat = m / (1 - self.b1**self.count)
        v_hat = v / (1 - self.b2**self.count)
        return m_hat / (np.sqrt(v_hat) + self.eps)


# Algorithms


def sgd(path: Path, gradient: Gradient, eta: Schedule, v: np.ndarray, A: SGD) -> None:
    """Algorithm 1: the inner optimizer alone."""
    while True:
        s = path.next_step()
        v = A.step(v, gradient(v, s), eta(s))
        path.add(v, v)


def lookahead(
    path: Path,
    gradient: Gradient,
    eta: Schedule,
    alpha: Schedule,
    k: Schedule,
    theta: np.ndarray,
    A: SGD,
    sync_moments: str = "keep",
) -> None:
    """Algorithm 2, with endlessly many cycles."""
    _cycles(
        path,
        lambda v, s: A.step(v, gradient(v, s), eta(s)),
        alpha,
        k,
        theta,
        A,
        sync_moments,
        itertools.count(),
    )


def _cycles(
    path: Path,
    step: Step,
    alpha: Schedule,
    k: Schedule,
    theta: np.ndarray,
    A: SGD,
    sync_moments: str,
    cycles: itertools.count | range,
) -> np.ndarray:
    """The outer loop of Algorithm 2, for any step of the fast weights."""
    for _ in cycles:
        start = A.moments
        v = theta
        for tau in itertools.count(1):
            s = path.next_step()
            v = step(v, s)
            path.add(v, theta)
            if tau >= k(s):
                break
        theta = (1 - alpha(s)) * theta + alpha(s) * v
        path.sync(theta)
        A.sync(sync_moments, start, alpha(s))
    return theta


@dataclass
class Stage:
    """T_q, η_q (a function of the step within the stage), β_q, k_q and α_q."""

    T: int
    eta: Schedule
    beta: float
    k: int
    alpha: float


def slrla(
    path: Path,
    gradient: Gradient,
    stages: Sequence[Stage],
    theta: np.ndarray,
    A: SGD,
    sync_moments: str = "keep",
    decoupled: bool = False,
) -> None:
    """Algorithm 3, with an endless last stage."""
    first = 0
    for q, stage in enumerate(stages):

        def step(
            v: np.ndarray, s: int, stage: Stage = stage, anchor: np.ndarray = theta, first=first
        ) -> np.ndarray:
            pull = stage.beta * (v - anchor)
            return _regularised_step(A, v, gradient(v, s), pull, stage.eta(s - first), decoupled)

        theta = _cycles(
            path,
            step,
            lambda s, stage=stage: stage.alpha,
            lambda s, stage=stage: stage.k,
            theta,
            A,
            sync_moments,
            range(stage.T) if q + 1 < len(stages) else itertools.count(),
        )
        first += stage.T * stage.k


def _regularised_step(
    A: SGD, v: np.ndarray, g: np.ndarray, pull: np.ndarray, eta: float, decoupled: bool
) -> np.ndarray:
    """A step of A on the regularised loss; if decoupled, on the loss, with the pull added."""
    if decoupled:
        return A.step(v, g, eta) - eta * pull
    return A.step(v, g + pull, eta)


def released_slrla(
    path: Path,
    gradient: Gradient,
    eta: Schedule,
    beta: Schedule,
    S: int,
    k: int,
    alpha: Schedule,
    theta: np.ndarray,
    A: SGD,
    weight_decay: float = 0.0,
    sync_moments: str = "keep",
) -> None:
    """SLRLA as released: one loop over steps, and an anchor refreshed every S steps."""
    v, start = theta, A.moments
    while True:
        s = path.next_step()
        if s % S == 0:
            anchor = v
        g = gradient(v, s) + beta(s) * (v - anchor) + weight_decay * v
        v = A.step(v, g, eta(s))
        path.add(v, theta)
        if (s + 1) % k == 0:
            theta = v = theta + alpha(s) * (v - theta)
            path.sync(theta)
            A.sync(sync_moments, start, alpha(s))
            start = A.moments


def stagewise_prox(
    path: Path,
    gradient: Gradient,
    eta: Schedule,
    beta: Schedule,
    lengths: Sequence[int],
    v: np.ndarray,
    A: SGD,
    decoupled: bool = False,
) -> None:
    """Algorithm 1 on F_1, …, F_Q in turn, with an endless last stage."""
    for q, length in enumerate(lengths):
        anchor = v
        for _ in range(length) if q + 1 < len(lengths) else itertools.count():
            s = path.next_step()
            v = _regularised_step(A, v, gradient(v, s), beta(s) * (v - anchor), eta(s), decoupled)
            path.add(v, v)


def multilayer_lookahead(
    path: Path,
    gradient: Gradient,
    eta: Schedule,
    alphas: Sequence[Schedule],
    ks: Sequence[Schedule],
    theta: np.ndarray,
    A: SGD,
    sync_moments: str = "keep",
) -> None:
    """Multilayer Lookahead: a step of layer n is k_n steps of layer n − 1."""

    def step_of_layer(n: int, theta: np.ndarray) -> np.ndarray:
        if n == 0:
            s = path.next_step()
            v = A.step(theta, gradient(theta, s), eta(s))
            path.add(v, outermost)
            return v
        start = A.moments
        v = theta
        for taken in itertools.count(1):
            v = step_of_layer(n - 1, v)
            s = len(path.fast) - 1
            if taken >= ks[n - 1](s):
                break
        alpha = alphas[n - 1](s)
        theta = theta + alpha * (v - theta)
        A.sync(sync_moments, start, alpha)
        path.fast[-1] = theta
        return theta

    while True:
        outermost = theta
        theta = step_of_layer(len(ks), theta)
        path.sync(theta)


def nested_lookaheads_with_independent_periods(
    path: Path,
    gradient: Gradient,
    eta: Schedule,
    alphas: Sequence[float],
    periods: Sequence[int],
    theta: np.ndarray,
    A: SGD,
    sync_moments: str = "keep",
) -> None:
    """Nested lookaheads, innermost first, each of which counts optimizer steps.

    If the periods are not multiples of one another, an outer lookahead may sync in the middle
    of a cycle of an inner one, which then continues with the slow weights it already has.
    """
    v, starts = theta, [(theta, A.moments)] * len(periods)
    while True:
        s = path.next_step()
        for n, k in enumerate(periods):
            if s % k == 0:
                starts[n] = v, A.moments
        v = A.step(v, gradient(v, s), eta(s))
        path.add(v, starts[-1][0])
        for alpha, k, (slow, moments) in zip(alphas, periods, starts, strict=True):
            if (s + 1) % k == 0:
                v = slow + alpha * (v - slow)
                A.sync(sync_moments, moments, alpha)
        path.fast[-1] = v
        if (s + 1) % periods[-1] == 0:
            path.sync(v)


def primal_averaging(
    path: Path,
    gradient: Gradient,
    eta: Schedule,
    train_interpolation: Schedule,
    eval_interpolation: Schedule,
    theta: np.ndarray,
    A: SGD,
) -> None:
    """The three sequences as they are defined; x are the slow weights, y the fast ones."""
    x = y = z = theta
    while True:
        s = path.next_step()
        z = A.step(z, gradient(y, s), eta(s))
        x = eval_interpolation(s) * x + (1 - eval_interpolation(s)) * z
        y = train_interpolation(s) * x + (1 - train_interpolation(s)) * z
        path.add(y, x)


# The outer step as an optimizer


def two_loop(
    path: Path,
    gradient: Gradient,
    eta: Schedule,
    k: Schedule,
    theta: np.ndarray,
    A: SGD,
    B: SGD,
    outer_eta: Schedule,
    sync_moments: str = "keep",
) -> None:
    """Any optimizer B makes the slow step; its learning rate is a function of the cycle."""
    for cycle in itertools.count():
        v = theta
        for tau in itertools.count(1):
            s = path.next_step()
            v = A.step(v, gradient(v, s), eta(s))
            path.add(v, theta)
            if tau >= k(s):
                break
        theta = B.step(theta, theta - v, outer_eta(cycle))
        path.sync(theta)
        A.sync(sync_moments, {}, 0.0)


def diloco(
    gradient: Callable[[np.ndarray, int, int], np.ndarray],
    eta: float,
    k: int,
    theta: np.ndarray,
    replicas: Sequence[SGD],
    outer_eta: float,
    mu: float,
    steps: int,
    beta: float = 0.0,
    S: int = 1,
    mean: Callable[[list[np.ndarray]], np.ndarray] = lambda away: sum(away) / len(away),
) -> tuple[np.ndarray, np.ndarray]:
    """Fast weights of every replica, (steps, replicas, size), and slow weights, (steps, size).

    The gradients of replica r are `gradient(v, s, r)`. Each replica is pulled to an anchor of
    its own, which is refreshed every S steps.
    """
    fast, slow = [], []
    v, b = [theta for _ in replicas], 0.0
    for s in range(steps):
        if s % S == 0:
            anchors = v
        v = [
            A.step(v_r, gradient(v_r, s, r) + beta * (v_r - anchors[r]), eta)
            for r, (A, v_r) in enumerate(zip(replicas, v, strict=True))
        ]
        if (s + 1) % k == 0:
            away = mean([theta - v_r for v_r in v])
            b = mu * b + away
            theta = theta - outer_eta * (mu * b + away)
            v = [theta for _ in replicas]
        fast.append(np.array(v))
        slow.append(theta)
    return np.array(fast), np.array(slow)


class CompressedMean:
    """The mean of what replicas send each other, with rounding Q and error feedback.

    `chunks` lists for every leaf of the params the places of its chunks in the vector. Chunk c is
    sent to replica c, which sends its mean to all.
    """

    def __init__(
        self, chunks: Sequence[Sequence[np.ndarray]], Q: Callable[[np.ndarray], np.ndarray]
    ):
        self.chunks, self.Q = chunks, Q
        self.residuals: list[np.ndarray] | None = None

    def __call__(self, s: list[np.ndarray]) -> np.ndarray:
        R = len(s)
        e = self.residuals or [np.zeros_like(s_r) for s_r in s]
        m = [s[r] + e[r] for r in range(R)]
        mean, left = np.zeros_like(s[0]), [np.zeros_like(s_r) for s_r in s]
        for leaf in self.chunks:
            for c, chunk in enumerate(leaf):
                received = [m[r][chunk] if r == c else self.Q(m[r][chunk]) for r in range(R)]
                a = sum(received) / R
                mean[chunk] = self.Q(a)
                for r in range(R):
                    left[r][chunk] = m[r][chunk] - received[r]
                left[c][chunk] = R * (a - mean[chunk])
        self.residuals = left
        return mean


def rounded_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """To eight significant bits."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2**8) / 2**8, exponent)


def rounded_to_int8(x: np.ndarray) -> np.ndarray:
    """To whole multiples of 1/127 of the largest."""
    unit = np.abs(x).max(initial=0) / 127
    return np.round(x / unit) * unit if unit else x
