"""The stages of a run that may be too short for those that it has by default."""

from collections.abc import Callable, Sequence


def that_fit(
    milestones: Sequence[float], lengths: Callable[[Sequence[float]], Sequence[int]]
) -> tuple[float, ...]:
    """The milestones that a run is long enough for, perhaps none.

    One is left out if it would be reached at once, or together with another, or only at the end.

    Args:
      milestones: where the next stage would begin, in this order.
      lengths: of the stages between milestones; a ValueError where one of them would be empty.
    """
    kept: tuple[float, ...] = ()
    for milestone in milestones:
        try:
            lengths((*kept, milestone))
        except ValueError:
            continue
        kept = (*kept, milestone)
    return kept
