"""A copy of a module that follows it slowly: what self-distillation learns from."""

import copy
from collections.abc import Iterator, Sequence
from typing import Generic, Self, TypeVar, final

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float

M = TypeVar("M", bound=nn.Module)


@final
class RunningCopy(nn.Module, Generic[M]):
    """A module's exponential moving average, without gradient and always in evaluation mode.

    It begins as the module is, is saved with whatever owns it, and is followed once an optimiser step, not once a
    micro-batch. Parts that are shared are copied as they are, and so are buffers.

    Args:
        source: The module that is followed.
        shared: Names of its parts that are copied, not averaged.

    Raises:
        ConfigError: The module has no such part.
    """

    def __init__(self, source: M, shared: Sequence[str] = ()) -> None:
        super().__init__()
        parts = {name for name, _ in source.named_modules()}
        for name in shared:
            if name not in parts:
                raise ConfigError(
                    f"target.shared names {name}, and the model has no such part",
                    f"its parts are: {', '.join(name for name, _ in source.named_children())}, and theirs",
                )
        self.shared = tuple(shared)
        self.module: M = copy.deepcopy(source).requires_grad_(requires_grad=False).eval()

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.module.eval()  # no dropout and no skipped layer, whatever the student does
        return self

    @torch.no_grad()
    def load(self, source: M) -> None:
        """Be as the source is."""
        for mine, theirs in self._pairs(source):
            mine.copy_(theirs)

    @torch.no_grad()
    def follow(self, source: M, momentum: float) -> None:
        """Mine <- momentum * mine + (1 - momentum) * theirs, in one fused call; no wait for the device.

        Args:
            source: The module that is followed.
            momentum: The share that is kept, in [0, 1].
        """
        own = dict(self.module.named_parameters())
        averaged: list[tuple[Tensor, Tensor]] = []
        copied = [(mine, theirs) for mine, theirs in zip(self.module.buffers(), source.buffers(), strict=True)]
        for name, theirs in source.named_parameters():
            is_shared = any(name == part or name.startswith(f"{part}.") for part in self.shared)
            (copied if is_shared else averaged).append((own[name], theirs))
        if averaged and momentum < 1:
            mine, other = zip(*averaged, strict=True)
            torch._foreach_lerp_(list(mine), list(other), 1 - momentum)
        if copied:
            mine, other = zip(*copied, strict=True)
            torch._foreach_copy_(list(mine), list(other))

    @torch.no_grad()
    def gap(self, source: M) -> Float[Tensor, ""]:
        """Length of the difference of all averaged weights over that of the source's: 0 where both are one."""
        own = dict(self.module.named_parameters())
        kept = [
            (own[name], theirs)
            for name, theirs in source.named_parameters()
            if not any(name == part or name.startswith(f"{part}.") for part in self.shared)
        ]
        mine, other = (list(tensors) for tensors in zip(*kept, strict=True))
        apart = nn.utils.get_total_norm([a - b for a, b in zip(mine, other, strict=True)])
        return apart / nn.utils.get_total_norm(other).clamp_min(torch.finfo(torch.float32).tiny)

    def _pairs(self, source: M) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.module.parameters(), source.parameters(), strict=True)
        yield from zip(self.module.buffers(), source.buffers(), strict=True)
