"""Thinning of long series that keeps their shape.

A series is cut into pieces, and of each piece the smallest and the largest number are kept, so that
a spike of one step stays visible in a figure of a million.
"""

from collections.abc import Sequence

import numpy as np


def extremes(numbers: Sequence[float], max_points: int) -> list[int]:
    """Return the places of at most `most` numbers, the first and the last among them.

    Args:
        numbers: The series.
        max_points: How many may stay, at least 4; a shorter series is left as it is.
    """
    count = len(numbers)
    if count <= max_points:
        return list(range(count))
    series = np.asarray(numbers, dtype=float)
    places = {0, count - 1}
    for piece in np.array_split(np.arange(1, count - 1), (max_points - 2) // 2):
        inside = series[piece]
        places |= {int(piece[inside.argmin()]), int(piece[inside.argmax()])}
    return sorted(places)
