"""Metrics that add up over batches, micro-batches and ranks, and are read once in a while.

A metric stays on its device as tensors; nothing is copied to the host until :meth:`Metric.read` is called on the sum of
many steps, so logging never makes the host wait in a step.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor
from typing_extensions import override


class Metric(ABC):
    """An additive statistic: a few tensors that are summed, and a rule that reads values from the sums."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors to be summed, in a fixed order."""

    @abstractmethod
    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Self:
        """The same metric around other sums."""

    @abstractmethod
    def read(self, name: str) -> Mapping[str, float]:
        """Values by full name. Call on the host, on summed tensors."""

    def __add__(self, other: Self) -> Self:
        """The metric of both together."""
        return self.with_tensors(tuple(a + b for a, b in zip(self.tensors(), other.tensors(), strict=True)))


@final
@dataclass(frozen=True, slots=True)
class Mean(Metric):
    """A mean, as total and count: scalars on one device, detached."""

    total: Tensor
    count: Tensor

    @override
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.total.detach().float(), self.count.detach().float())

    @override
    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Self:
        total, count = tensors
        return type(self)(total, count)

    @override
    def read(self, name: str) -> Mapping[str, float]:
        count = float(self.count)
        return {name: float(self.total) / count} if count else {}


@final
@dataclass(frozen=True, slots=True)
class CodeUse(Metric):
    """How often each code was used: counts of shape (V,) or (G, V).

    Read as ``NAME_perplexity`` (exp of the entropy in nats, averaged over groups), ``NAME_used`` (the fraction of codes
    that were used at all) and ``NAME_top`` (the share of each group's most frequent code, averaged as an accuracy over
    groups is: what always guessing these would score); of several groups also ``NAME_least_perplexity``.
    """

    counts: Tensor

    @override
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.counts.detach().float(),)

    @override
    def with_tensors(self, tensors: tuple[Tensor, ...]) -> Self:
        return type(self)(tensors[0])

    @override
    def read(self, name: str) -> Mapping[str, float]:
        counts = self.counts.detach().double().cpu().reshape(-1, self.counts.shape[-1])
        share = counts / counts.sum(-1, keepdim=True).clamp(min=1e-12)
        entropy = -(share * share.clamp(min=1e-12).log()).sum(-1)
        used = (counts > 0).double().mean()
        perplexity_G = entropy.exp()
        values = {"perplexity": perplexity_G.mean(), "used": used, "top": share.amax(-1).mean()}
        if len(counts) > 1:
            values["least_perplexity"] = perplexity_G.min()
        return {f"{name}_{what}": float(value) for what, value in values.items()}


def flatten(metrics: Mapping[str, Metric]) -> Tensor:
    """All sums in one vector of float64, in the order of names: one reduction serves all."""
    return torch.cat([t.double().reshape(-1) for name in sorted(metrics) for t in metrics[name].tensors()])


def unflatten(metrics: Mapping[str, Metric], vector: Tensor) -> dict[str, Metric]:
    """The metrics whose sums :func:`flatten` wrote into a vector (perhaps reduced over ranks since)."""
    result: dict[str, Metric] = {}
    start = 0
    for name in sorted(metrics):
        parts = []
        for tensor in metrics[name].tensors():
            parts.append(vector[start : start + tensor.numel()].reshape(tensor.shape))
            start += tensor.numel()
        result[name] = metrics[name].with_tensors(tuple(parts))
    return result
