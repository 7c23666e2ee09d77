"""One cell of the map: a method in a regime, tuned on held-out data and then run from fresh seeds.

    regime = Regime("bilinear", "Bilinear game", "Games", measure, methods, rates, scores, steps)
    cell(regime, "lookahead", range(50))

To add a regime, write its `scores` and give it to a `Regime`; the first of its methods is the one
that the others are compared with.

Tuning tries every learning rate of the regime's grid with each of the method's own settings, from
the regime's tuning seeds. The best mean on held-out data is chosen, and is then measured on the
test data from the fresh seeds, which are the same for all methods. A run that diverges has the
measure's worst value, there and here.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

Setting = Mapping[str, Any]

# Fresh seeds begin at 0, and are far fewer.
TUNING_SEEDS = tuple(range(1_000_000, 1_000_010))


class Measure(NamedTuple):
    """What the runs of a regime are compared by.

    Attributes:
      label: its name with its unit.
      worst: the value that counts for a run that has diverged.
      lower_is_better: whether it is an error, a loss or a distance.
      form: how a value is written.
    """

    label: str
    worst: float
    lower_is_better: bool = True
    form: str = ".2f"

    def gain(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Returns by how much `after` is better than `before`."""
        return before - after if self.lower_is_better else after - before


class Method(NamedTuple):
    """A method, as a regime has it.

    Attributes:
      label: its name in the table.
      own: its own settings that are tried with every learning rate; equally many of each method.
    """

    label: str
    own: Sequence[Setting]


# From a method's name, settings to try (with `learning_rate` if there is a grid), seeds, and
# whether to measure on held-out data or on the test data: an array of shape (settings, seeds),
# whose values are not finite for the runs that have diverged.
Scores = Callable[[str, Sequence[Setting], Sequence[int], bool], np.ndarray]


@dataclass(frozen=True, eq=False)
class Regime:
    """A problem with the circumstances in which it is solved.

    Attributes:
      name: the key of its row, and of its parts in `results.json`.
      label: its name in the table.
      family: the table that its row is in, with others of the same methods.
      measure: what runs are compared by.
      methods: by their names; the first is the plain one.
      rates: the grid of learning rates, the same for all methods, in rising order; none where
        `scores` has one that is not tuned.
      scores: trains.
      gradients: how many gradients a run takes, the same for all methods.
      inherited: which settings all other methods take from what was chosen for the plain one.
      tuning_seeds: from which tuning trains, others than the fresh ones.
      note: what one has to know of the regime to read its row.
    """

    name: str
    label: str
    family: str
    measure: Measure
    methods: Mapping[str, Method]
    rates: Sequence[float]
    scores: Scores
    gradients: int
    inherited: Sequence[str] = ()
    tuning_seeds: Sequence[int] = TUNING_SEEDS
    note: str = field(default="", kw_only=True)

    @property
    def plain(self) -> str:
        """The name of the method that the others are compared with."""
        return next(iter(self.methods))

    @property
    def compared(self) -> list[str]:
        """The names of the others."""
        return list(self.methods)[1:]

    @cached_property
    def chosen_for_plain(self) -> "Tuning":
        """How the plain method was tuned; computed once."""
        return tune(self, self.plain)

    def candidates(self, method: str) -> list[Setting]:
        """Returns every setting of a method that is tried, the learning rate varying fastest."""
        taken = {}
        if method != self.plain:
            taken = {name: self.chosen_for_plain.chosen[name] for name in self.inherited}
        rates = [{"learning_rate": rate} for rate in self.rates] or [{}]
        return [
            {**taken, **own, **rate}
            for own, rate in itertools.product(self.methods[method].own, rates)
        ]


class Tuning(NamedTuple):
    """What tuning has found.

    Attributes:
      tried: the settings, in the order of `means`.
      means: of the measure over the tuning seeds, of shape (settings,).
      chosen: the best of them.
      at_edge: whether its learning rate is the smallest or the largest of the grid.
    """

    tried: Sequence[Setting]
    means: np.ndarray
    chosen: Setting
    at_edge: bool


def tune(regime: Regime, method: str) -> Tuning:
    """Tries all settings of a method, and chooses the first one with the best mean."""
    tried = regime.candidates(method)
    values = measured(regime, method, tried, regime.tuning_seeds, held_out=True)[0]
    means = values.mean(axis=1)
    best = int(np.argmin(means) if regime.measure.lower_is_better else np.argmax(means))
    ends = (*regime.rates[:1], *regime.rates[-1:])
    return Tuning(tried, means, tried[best], tried[best].get("learning_rate") in ends)


def measured(
    regime: Regime,
    method: str,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    *,
    held_out: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores, of shape (settings, seeds), and which of these runs have diverged."""
    scores = np.asarray(regime.scores(method, settings, seeds, held_out), np.float64)
    diverged = ~np.isfinite(scores)
    return np.where(diverged, regime.measure.worst, scores), diverged


def cell(regime: Regime, method: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Computes a cell; returns what `results.json` has of it.

    Returns:
      `row`, of the plain method only: what the tables say of the regime, the gradients of a run,
      and its grid; `method`, its label; `chosen`, the settings; `at_edge`, whether their learning
      rate is; `values`, of each fresh seed on the test data; `diverged`, the seeds from which the
      method does; `candidates`, how many settings were tried; and `tuning`, the best mean with
      each learning rate and with each of the own settings.
    """
    is_plain = method == regime.plain
    tuning = regime.chosen_for_plain if is_plain else tune(regime, method)
    values, diverged = measured(regime, method, [tuning.chosen], seeds, held_out=False)
    row = {
        "label": regime.label,
        "family": regime.family,
        "measure": regime.measure._asdict(),
        "note": regime.note,
        "gradients": regime.gradients,
        "learning_rates": list(regime.rates),
    }
    return {
        **({"row": row} if is_plain else {}),
        "method": regime.methods[method].label,
        "chosen": dict(tuning.chosen),
        "at_edge": tuning.at_edge,
        "values": rounded(values[0]),
        "diverged": [seed for seed, is_lost in zip(seeds, diverged[0], strict=True) if is_lost],
        "candidates": len(tuning.tried),
        "tuning": summary(regime, method, tuning),
    }


def summary(regime: Regime, method: str, tuning: Tuning) -> dict[str, Any]:
    """Returns the best mean with each learning rate, and with each of the own settings."""
    grid = tuning.means.reshape(len(regime.methods[method].own), -1)
    best = np.min if regime.measure.lower_is_better else np.max
    return {
        "by_learning_rate": rounded(best(grid, axis=0)),
        "by_own_setting": rounded(best(grid, axis=1)),
    }


def rounded(values: np.ndarray) -> list[float]:
    """Returns values with as many digits as are written of any."""
    return [round(float(value), 4) for value in values]
