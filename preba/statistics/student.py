"""Quantiles of Student's t distribution without SciPy; nothing else."""

from __future__ import annotations

import functools
import math

from preba.errors import ScenarioError


@functools.cache  # the same few are asked for in every run
def student_t_quantile(p: float, dof: int) -> float:
    """Quantile of Student's t distribution.

    Parameters
    ----------
    p : float
        Probability, 0 < p < 1.
    dof : int
        Degrees of freedom, >= 1.

    Returns
    -------
    float
        Exact to rounding: bisection on the closed form of the distribution for integer degrees of freedom.

    Notes
    -----
    **Source**: M. Abramowitz, I. A. Stegun, *Handbook of Mathematical Functions* (1964), 26.7.3 and 26.7.4.
    """
    if not 0.0 < p < 1.0 or dof < 1:
        raise ScenarioError(f"p, dof: must lie in (0, 1) and be >= 1, got {p!r}, {dof!r}")
    if p < 0.5:
        return -student_t_quantile(1.0 - p, dof)
    inside = 2.0 * p - 1.0
    # Bisect the angle, not t: the closed form is a polynomial in its sine and cosine.
    low, high = 0.0, 0.5 * math.pi
    for _ in range(100):
        angle = 0.5 * (low + high)
        if _t_inside(angle, dof) < inside:
            low = angle
        else:
            high = angle
    return math.sqrt(dof) * math.tan(0.5 * (low + high))


def _t_inside(angle: float, dof: int) -> float:
    """P(|T| < sqrt(dof) tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if dof % 2 else 1.0
    total = term if dof > 1 else 0.0
    for k in range(3 if dof % 2 else 2, dof - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if dof % 2:
        return 2.0 / math.pi * (angle + sine * total)
    return sine * total
