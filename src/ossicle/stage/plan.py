"""Chains of runs: what is trained on which labels, one run after another.

A plan is plain data. The launch floor carries it out: for each run it makes the labels that the run needs, from MFCCs
or from a layer of the run before, and then trains.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from typing_extensions import override


@dataclass(frozen=True, slots=True)
class Run:
    """One training run of a chain.

    Args:
        name: Folder of the run inside the run directory; empty for the run directory itself.
        label_source: What is clustered into labels: ``mfcc``, ``layer`` (of the run before), or None where the target
            needs no labels or ``data.labels`` names them.
        layer: Which layer's output is clustered; 0 is the input to the first block.
        clusters: Number of clusters (V).
        max_steps: Optimiser steps, or None for the experiment's own number.
        warmup_steps: Those of them that warm up; None, or a schedule that counts no such steps, for the schedule's own.
    """

    name: str = ""
    label_source: str | None = None
    layer: int | None = None
    clusters: int | None = None
    max_steps: int | None = None
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse a recipe that contradicts itself.

        Raises:
            ValueError: The source is unknown, or lacks its layer or its number of clusters.
        """
        if self.label_source not in {None, "mfcc", "layer"}:
            raise ValueError(f"label_source is {self.label_source!r}; it is one of mfcc, layer or null")
        if self.label_source is not None and not self.clusters:
            raise ValueError(
                f"run {self.name!r} clusters {self.label_source} features but states no number of clusters"
            )
        if self.label_source == "layer" and self.layer is None:
            raise ValueError(f"run {self.name!r} clusters a layer's output but names no layer")


class Stages(ABC):
    """An ordered chain of runs."""

    @abstractmethod
    def runs(self) -> tuple[Run, ...]:
        """The runs, in the order in which they are carried out."""


@final
class Single(Stages):
    """One run, whose target needs no labels or reads those that ``data.labels`` names."""

    @override
    def runs(self) -> tuple[Run, ...]:
        return (Run(),)


@final
class Iterations(Stages):
    """HuBERT's iterations (arXiv 2106.07447, section III-A): cluster, train, cluster what was learned, train again.

    Args:
        iterations: The runs. The first clusters MFCCs; a later one clusters a layer of the run before it.

    Raises:
        ValueError: There is no run, two have one name, or the first asks for a layer of a run that does not exist.
    """

    def __init__(self, iterations: Sequence[Run]) -> None:
        self.iterations = tuple(iterations)
        if not self.iterations:
            raise ValueError("a chain of iterations needs at least one run")
        if self.iterations[0].label_source == "layer":
            raise ValueError("the first iteration has no run before it whose layer it could cluster")
        names = [run.name for run in self.iterations]
        if len(set(names)) != len(names):
            raise ValueError(f"iterations share a name: {names}")

    @override
    def runs(self) -> tuple[Run, ...]:
        return self.iterations
