"""What a cycle of local training costs many workers: formulas, and a simulation to check them.

R workers take k steps each, and then average their pseudo-gradients over a ring (`diloco`). With
k = 1 the same formulas are those of data parallel training, which averages its gradients at
every step. The formulas assume what their docstrings say; `simulate` assumes less, and is slower.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

# Of an integral over the distribution of the largest of several numbers.
POINTS = 20_001
TAIL = 1e-12


@dataclass(frozen=True)
class Setting:
    """Workers, their speed, and the links between them.

    Attributes:
      workers: R.
      sync_period: k, the steps in a cycle.
      step_seconds: the mean time of a step, t.
      sent_bytes: the size of what is averaged, B: the params in the dtype in which they are sent.
      bits_per_second: the bandwidth of each worker's own link, b, in each direction.
      latency: seconds of a message from one worker to the next, beside its bytes, λ.
      arrays: how many arrays are averaged one after the other, a; 1 if they are sent together.
      spread: the standard deviation of the logarithm of a worker's speed, which it keeps; the
        median worker takes t.
      jitter: the standard deviation of the time of a step, relative to its mean. Steps are
        independent and have a gamma distribution.
      failure_seconds: the mean time between two failures of a worker, M; exponential.
      restart_seconds: how long a worker that has failed is away, d.
    """

    workers: int
    sync_period: int
    step_seconds: float
    sent_bytes: float
    bits_per_second: float
    latency: float = 0.0
    arrays: int = 1
    spread: float = 0.0
    jitter: float = 0.0
    failure_seconds: float = math.inf
    restart_seconds: float = 0.0


def ring_bytes(workers: int, size: float) -> float:
    """The bytes that each worker sends to average `size` bytes: 2(R − 1)/R · B.

    In a ring each of the R parts goes round once to be summed and once to be known to all. The
    two phases of a compressed mean, an all-to-all and an all-gather, send as much.
    """
    return 2 * (workers - 1) / workers * size


def messages(workers: int) -> int:
    """The messages of a ring that must wait for one another: 2(R − 1)."""
    return 2 * (workers - 1)


def exchange_seconds(of: Setting) -> float:
    """The time of one average, whose parts go round in halves, as Gloo sends them.

    While one half is late by λ the other is sent. With τ = 8 B/(a R b), the time that a part
    occupies a link, the R − 1 rounds of each phase take the larger of

        (R − 1) τ + λ                   where bytes decide, and
        (R − 1) (λ + τ/2) + τ/2         where latency does,

    and there are two phases for each of the a arrays.
    """
    rounds = messages(of.workers) // 2
    part = 8 * of.sent_bytes / (of.arrays * of.workers * of.bits_per_second)
    phase = max(
        rounds * part + of.latency,
        rounds * (of.latency + part / 2) + part / 2,
    )
    return 2 * of.arrays * phase


def cycle_seconds(of: Setting) -> float:
    """The time of a cycle of workers of equal speed that do not fail: k t + the exchange."""
    return of.sync_period * of.step_seconds + exchange_seconds(of)


def utilisation(of: Setting) -> float:
    """The share of a cycle in which workers of equal speed that do not fail compute."""
    return of.sync_period * of.step_seconds / cycle_seconds(of)


def least_period(of: Setting, share: float) -> int:
    """The least k at which workers of equal speed compute for at least this share of the time.

    From k t ≥ share · (k t + x) with the exchange x: k ≥ x/t · share/(1 − share).
    """
    exact = exchange_seconds(of) / of.step_seconds * share / (1 - share)
    return max(1, math.ceil(exact * (1 - 1e-12)))


def expected_largest(cdf: Callable[[np.ndarray], np.ndarray], workers: int, top: float) -> float:
    """The mean of the largest of R independent positive numbers: ∫ 1 − F(x)^R dx from 0.

    Args:
      cdf: their distribution function F.
      workers: R.
      top: where R (1 − F) is negligible.
    """
    x = np.linspace(0.0, top, POINTS)
    return float(np.trapezoid(1 - cdf(x) ** workers, x))


def slowest_by_spread(workers: int, spread: float) -> float:
    """The mean time of the slowest worker relative to the median one, whose speeds persist."""
    if spread == 0:
        return 1.0
    top = math.exp(-spread * special.ndtri(TAIL / workers))
    return expected_largest(
        lambda x: special.ndtr(np.log(np.maximum(x, TAIL)) / spread), workers, top
    )


def slowest_by_jitter(workers: int, jitter: float, sync_period: int) -> float:
    """The mean time of the slowest of R workers for k steps with jitter, relative to k t.

    The sum of k steps has a gamma distribution of shape k/jitter², so that its standard
    deviation relative to the mean is jitter/√k: long cycles even out what is chance.
    """
    if jitter == 0:
        return 1.0
    shape = sync_period / jitter**2
    top = special.gammainccinv(shape, TAIL / workers) / shape
    return expected_largest(lambda x: special.gammainc(shape, shape * x), workers, top)


def seconds_if_all_restart(of: Setting, cycle: float) -> float:
    """The mean time until a cycle has gone through, if a failure makes all workers repeat it.

    All R survive a cycle of length T with probability e^(−RT/M). Each failure costs the time
    since the last sync, and d; no worker fails while it is away. The mean is
    (M/R + d)(e^(RT/M) − 1).
    """
    if math.isinf(of.failure_seconds):
        return cycle
    between = of.failure_seconds / of.workers
    with np.errstate(over="ignore"):
        return float((between + of.restart_seconds) * np.expm1(cycle / between))


def share_if_others_go_on(of: Setting, cycle: float) -> float:
    """The share of workers that contribute to a sync, if one that fails costs its share only.

    A worker that fails in a cycle of length T, which has the probability p = 1 − e^(−T/M), is
    back after d and joins at the next sync. It misses n = ⌈(u + d)/T⌉ cycles, where u is how far
    in its cycle it failed. With d = m T + δ the mean of n is m + 1 + P(u > T − δ), and between two
    failures there are (1 − p)/p cycles that it completes; the share is that of these.
    """
    if math.isinf(of.failure_seconds):
        return 1.0
    fails = -math.expm1(-cycle / of.failure_seconds)
    whole, rest = divmod(of.restart_seconds, cycle)
    later = 1 + math.expm1(-(cycle - rest) / of.failure_seconds) / fails
    missed = whole + 1 + later
    completed = (1 - fails) / fails
    return completed / (completed + missed)


@dataclass(frozen=True)
class Outcome:
    """What a simulation has counted.

    Attributes:
      seconds: the time from start to end.
      utilisation: the time of the steps that entered a sync, at t each, relative to the time of
        all workers.
      share: the mean share of workers that contribute to a sync.
      failures: how many workers have failed.
    """

    seconds: float
    utilisation: float
    share: float
    failures: int


def simulate(
    of: Setting, cycles: int, rng: np.random.Generator, *, others_go_on: bool = False
) -> Outcome:
    """Runs cycles with workers of unequal speed that fail and come back.

    The slowest worker that is there decides when the exchange starts. A failure makes
    all of them repeat the cycle after the restart; with `others_go_on` only the steps of the
    failing worker are lost, and it joins at the first sync after its return. (If nobody is left,
    the next to return starts a cycle.)

    Args:
      of: the setting.
      cycles: how many cycles, each of which ends with a sync.
      rng: a generator, for speeds, step times and failures.
      others_go_on: whether a failure costs the failing worker's share only.

    Returns:
      What has been counted.
    """
    speed = np.exp(of.spread * rng.standard_normal(of.workers))
    back = np.zeros(of.workers)  # When each worker is there again.
    now, contributed, failures = 0.0, 0, 0
    for _ in range(cycles):
        while True:
            now = max(now, back.min())
            here = back <= now
            length = (speed * _compute(of, rng))[here].max() + exchange_seconds(of)
            lasts = np.where(here, rng.exponential(size=of.workers) * of.failure_seconds, math.inf)
            failing = lasts < length
            if others_go_on or not failing.any():
                break
            failures += 1
            now += lasts.min() + of.restart_seconds
        back = np.where(failing, now + lasts + of.restart_seconds, back)
        failures += int(failing.sum())
        contributed += int((here & ~failing).sum())
        now += length
    return Outcome(
        seconds=now,
        utilisation=contributed * of.sync_period * of.step_seconds / (of.workers * now),
        share=contributed / (of.workers * cycles),
        failures=failures,
    )


def _compute(of: Setting, rng: np.random.Generator) -> np.ndarray:
    """The time of each worker's k steps, before the worker's speed."""
    total = of.sync_period * of.step_seconds
    if of.jitter == 0:
        return np.full(of.workers, total)
    shape = of.sync_period / of.jitter**2
    return rng.gamma(shape, total / shape, of.workers)
