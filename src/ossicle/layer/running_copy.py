"""A copy of a module that follows it slowly: what self-distillation learns from."""

import copy
from collections.abc import Sequence
from typing import Generic, Protocol, Self, TypeVar, final, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.core.shapes import Float
from ossicle.layer.batch_norm import FrameBatchNorm
from ossicle.layer.spec_augment import SpecAugment

M = TypeVar("M", bound=nn.Module)

ALWAYS_STILL = (SpecAugment, FrameBatchNorm, nn.BatchNorm1d)
"""What is in evaluation mode in every copy: it hides no input, and its norms read running moments."""


@runtime_checkable
class DrawsSizes(Protocol):
    """A part that in training draws for every batch how much of it runs; a copy that teaches is always of one size."""

    draws_sizes: bool


@final
class RunningCopy(nn.Module, Generic[M]):
    """A module's exponential moving average, without gradient, and in evaluation mode unless it takes dropout.

    It begins as the module is, is saved with whatever owns it, and is followed once an optimiser step, not once a
    micro-batch. Parts that are shared are copied as they are, and so are buffers. With a momentum of 1 it stands still,
    all of it.

    Args:
        source: The module that is followed.
        shared: Names of its parts that are copied, not averaged.
        dropout: Whether dropout works and layers are skipped in the copy as in the module, while that is trained. It
            hides no input of its own even then, and its norms over a batch stay in evaluation mode.

    Raises:
        ConfigError: The module has no such part.
    """

    def __init__(self, source: M, shared: Sequence[str] = (), *, dropout: bool = False) -> None:
        super().__init__()
        self.dropout = dropout
        parts = {name for name, _ in source.named_modules()}
        for name in shared:
            if name not in parts:
                raise ConfigError(
                    f"target.shared names {name}, and the model has no such part",
                    f"its parts are: {', '.join(name for name, _ in source.named_children())}, and theirs",
                )
        self.module: M = copy.deepcopy(source).requires_grad_(requires_grad=False).eval()
        for part in self.module.modules():
            if isinstance(part, DrawsSizes):
                part.draws_sizes = False
        # of each parameter whether it is shared: names are not looked through in every step
        self._is_shared = tuple(
            any(name == part or name.startswith(f"{part}.") for part in shared)
            for name, _ in self.module.named_parameters()
        )
        self.train(self.training)

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.module.train(mode and self.dropout)
        for part in self.module.modules():
            if isinstance(part, ALWAYS_STILL):
                part.eval()
        return self

    @torch.no_grad()
    def load(self, source: M) -> None:
        """Be as the source is."""
        mine, theirs = ([*module.parameters(), *module.buffers()] for module in (self.module, source))
        torch._foreach_copy_(mine, theirs)

    @torch.no_grad()
    def follow(self, source: M, momentum: float) -> None:
        """Mine <- momentum * mine + (1 - momentum) * theirs, in one fused call; no wait for the device.

        At 1 shared parts and buffers stay too, as in DinoSR's public code.

        Args:
            source: The module that is followed.
            momentum: The share that is kept, in [0, 1].
        """
        if momentum == 1:
            return
        (mine, theirs), (my_shared, their_shared) = self._paired(source)
        if mine:
            torch._foreach_lerp_(mine, theirs, 1 - momentum)
        my_copies, their_copies = [*my_shared, *self.module.buffers()], [*their_shared, *source.buffers()]
        if my_copies:
            torch._foreach_copy_(my_copies, their_copies)

    @torch.no_grad()
    def gap(self, source: M) -> Float[Tensor, ""]:
        """Length of the difference of all averaged weights over that of the source's: 0 where both are one."""
        (mine, theirs), _ = self._paired(source)
        apart = nn.utils.get_total_norm([a - b for a, b in zip(mine, theirs, strict=True)])
        return apart / nn.utils.get_total_norm(theirs).clamp_min(torch.finfo(torch.float32).tiny)

    def _paired(self, source: M) -> tuple[tuple[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]:
        """Mine and the source's: those that are averaged, then those that are shared."""
        averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        shared: tuple[list[Tensor], list[Tensor]] = ([], [])
        pairs = zip(self.module.parameters(), source.parameters(), self._is_shared, strict=True)
        for mine, theirs, is_shared in pairs:
            for tensors, tensor in zip(shared if is_shared else averaged, (mine, theirs), strict=True):
                tensors.append(tensor)
        return averaged, shared
