"""The contract of a token mixer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor, nn

from ossicle.core.shapes import Bool, Float, Int, Int64
from ossicle.ops.packing import pad_packed, unpad

Owner = TypeVar("Owner", bound="Mixer")


class Mixer(nn.Module, ABC):
    """Moves information between frames: (B, T, D) in, (B, T, D) out.

    A block adds the residual, the norm and the dropout; a mixer is the map alone. Every mixer takes the model width as
    its first argument, ``dim``; its other hyperparameters come from its YAML file.

    Attributes:
        reads_order: Whether frames that stand beside each other are taken for neighbours in time. Where it is False,
            frames in another order are mixed to the same, and some of a row may be left out; a :class:`Placed` mixer
            is told where those that are left stand.
        max_frames: Frames that it takes at most, or None for any number.
    """

    reads_order: bool = True
    max_frames: int | None = None

    @abstractmethod
    def forward(self, x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"] | None = None) -> Tensor:
        """Mix frames.

        Args:
            x_BTD: Frames, shape (B, T, D).
            valid_BT: True where a frame is real, or None where every frame is. Real frames take nothing from others.

        Returns:
            Mixed frames, shape (B, T, D); what stands at frames that are not real is undefined.
        """

    def packed(
        self, x_PD: Float[Tensor, "P D"], cu_seqlens: Int[Tensor, " edges"], max_frames: int
    ) -> Float[Tensor, "P D"]:
        """Mix utterances that lie end to end in one row; each takes nothing from the others.

        By padding, unless a mixer has a kernel for it.

        Args:
            x_PD: Frames of all utterances, shape (P, D).
            cu_seqlens: Where utterances start and end: 0 and the cumulative counts of frames, shape (B + 1,).
            max_frames: Frames of the longest utterance.
        """
        padded_BTD, valid_BT = pad_packed(x_PD, cu_seqlens, max_frames)
        return unpad(self(padded_BTD, valid_BT), cu_seqlens, len(x_PD))


class Lender(Mixer):
    """A mixer that lends tensors to later layers of its stack, or borrows them from an earlier one.

    What is lent travels through :func:`run_lending` as arguments and results, never from one forward pass to another: a
    lender that is skipped has lent nothing, and a call that is run again in the backward pass sees what it saw first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lends = False
        self.lent: tuple[Tensor, ...] = ()
        self.borrowed: tuple[Tensor, ...] = ()

    @property
    @abstractmethod
    def creditor(self) -> "Lender | None":
        """The mixer that this one borrows from, or None where it borrows nothing."""


def run_lending(
    call: Callable[[Tensor, Tensor | None], Tensor],
    mixer: Lender,
    x_BTD: Float[Tensor, "B T D"],
    valid_BT: Bool[Tensor, "B T"] | None,
    borrowed: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run what holds a lender, such as a block; where blocks are run again in the backward pass, this is what is.

    Args:
        call: The block, which calls the mixer once.
        mixer: The lender inside it.
        x_BTD: Frames.
        valid_BT: True where a frame is real, or None where every frame is.
        borrowed: What the mixer's creditor has lent; empty where it was skipped.

    Returns:
        What the call returns, and what the mixer lends.
    """
    mixer.lends, mixer.borrowed = True, borrowed
    try:
        return call(x_BTD, valid_BT), mixer.lent
    finally:
        mixer.lends, mixer.borrowed, mixer.lent = False, (), ()


class Placed(Mixer):
    """A mixer that depends on where frames stand, and so has to be told where some of a row were left out.

    Places travel through :func:`run_placed`; without them frames stand one after another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.place_BT: Tensor | None = None


def run_placed(
    call: Callable[[Tensor, Tensor | None], Tensor],
    mixer: Placed,
    x_BTD: Float[Tensor, "B T D"],
    valid_BT: Bool[Tensor, "B T"] | None,
    place_BT: Int64[Tensor, "B T"],
) -> Tensor:
    """Run what holds a placed mixer, such as a block, on frames that do not stand one after another.

    Args:
        call: The block, which calls the mixer once.
        mixer: The mixer inside it.
        x_BTD: Frames.
        valid_BT: True where a frame is real, or None where every frame is.
        place_BT: Where each frame stands in the row that it was taken from.
    """
    mixer.place_BT = place_BT
    try:
        return call(x_BTD, valid_BT)
    finally:
        mixer.place_BT = None


class MixerStack(ABC):
    """Mixers that differ from layer to layer, or know each other: what an encoder asks for all of them at once."""

    @abstractmethod
    def build(self, dims: Sequence[int]) -> list[Mixer]:
        """One mixer a layer, from the first to the last.

        Args:
            dims: Width of each layer.
        """


def owned_layers(dims: Sequence[int], make: Callable[[int, Owner | None], Owner]) -> list[Mixer]:
    """Layers that share weights of the first one.

    Args:
        dims: Width of each layer.
        make: A layer of a width, and the layer that owns what it shares; None for the owner itself.
    """
    layers: list[Owner] = []
    for dim in dims:
        layers.append(make(dim, layers[0] if layers else None))
    return list(layers)


MixerFactory = Callable[[int], Mixer] | MixerStack
"""``mixer(dim)`` for layers that are alike, or a stack."""


def build_mixers(factory: MixerFactory, dims: Sequence[int]) -> list[Mixer]:
    """One mixer a layer.

    Args:
        factory: Makes them.
        dims: Width of each layer.
    """
    if isinstance(factory, MixerStack):
        return factory.build(dims)
    return [factory(dim) for dim in dims]
