"""Several augmentations, one after another."""

from collections.abc import Mapping
from typing import Protocol, final, runtime_checkable

import torch
from typing_extensions import override

from ossicle.augmentation.base import Augmentation
from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock


@runtime_checkable
class AugmentationFactory(Protocol):
    """Builds an augmentation once the model's clock is known."""

    def __call__(self, *, clock: FrameClock) -> Augmentation:
        """An augmentation for labels on this clock."""
        ...


@final
class Chain(Augmentation):
    """Parts in the order in which they are named, each with its own probability for each row.

    A part draws by its name: leaving one out does not change what the others draw.

    Args:
        clock: The clock of the model's frames.
        parts: ``part(clock=)`` makes an Augmentation, by name.
    """

    def __init__(self, clock: FrameClock, *, parts: Mapping[str, AugmentationFactory]) -> None:
        super().__init__(clock)
        self.parts = {name: part(clock=clock) for name, part in parts.items()}

    @override
    def load(self, device: torch.device) -> None:
        for part in self.parts.values():
            part.load(device)

    @override
    def __call__(self, batch: Batch, *, seed: int, purpose: str = "augmentation") -> Batch:
        for name, part in self.parts.items():
            batch = part(batch, seed=seed, purpose=f"{purpose}/{name}")
        return batch
