"""Exact queueing results the engines are tested against; nothing here simulates or decides anything.

Plain functions with keyword arguments (rates ``_rps``, times ``_s``) that return frozen values. A closed
form is used where one exists, else a chain solved numerically, to 1e-11 or better at loads to 0.95; no
result rests on an approximation.

========================  ==========================================================================
:mod:`~sim.theory.markov`   M/M/1, M/M/c (Erlang C) and the Pollaczek-Khinchine mean of M/G/1
:mod:`~sim.theory.fixed`    M/D/1 and M/D/c: waiting-time distribution (Crommelin's chain, Franx's form)
:mod:`~sim.theory.greedy`   take-all batching, batch time ``alpha*b + tau0``, no largest batch (Inoue)
:mod:`~sim.theory.bounded`  take-all batching with a largest batch and any table of batch times
:mod:`~sim.theory.little`   Little's law read off arrival and departure times
:mod:`~sim.theory.cases`    the list of anchors an engine has to meet
========================  ==========================================================================
"""

from __future__ import annotations

from sim.theory.bounded import BoundedGreedyQueue, greedy_bounded
from sim.theory.cases import AnchorCase, Expected, anchor_cases
from sim.theory.fixed import FixedQueue, md1, mdc
from sim.theory.greedy import GreedyBounds, GreedyQueue, greedy, greedy_bounds
from sim.theory.little import LittlesLaw, littles_law
from sim.theory.markov import GeneralQueue, MarkovQueue, mg1, mm1, mmc

__all__ = [
    "AnchorCase",
    "BoundedGreedyQueue",
    "Expected",
    "FixedQueue",
    "GeneralQueue",
    "GreedyBounds",
    "GreedyQueue",
    "LittlesLaw",
    "MarkovQueue",
    "anchor_cases",
    "greedy",
    "greedy_bounded",
    "greedy_bounds",
    "littles_law",
    "md1",
    "mdc",
    "mg1",
    "mm1",
    "mmc",
]
