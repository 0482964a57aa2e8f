"""The names of masking schedules. Imports no torch: `schedulers.masking_schedules` has the functions."""

import math
from typing import Any

from .validation import shown


NAMED = ("arccos", "cosine", "linear", "sigmoid")


def schedule_exponent(name: Any) -> float | None:
    """
    The exponent in the name of a masking schedule "pow<n>", such as "pow2" or "pow0.5". None for those in `NAMED`.

    Raises:
        ValueError: for any other name, and for an exponent that is not positive.
    """
    if isinstance(name, str) and name in NAMED:
        return None
    if isinstance(name, str) and name.startswith("pow"):
        try:
            exponent = float(name[3:])
        except ValueError:
            exponent = 0.0
        if 0 < exponent < math.inf:
            return exponent
    raise ValueError(f"`masking_schedule` must be one of {sorted(NAMED)} or 'pow<n>' with n > 0, got {shown(name)}.")
