"""No augmentation."""

from typing import final

from typing_extensions import override

from ossicle.augmentation.base import Augmentation
from ossicle.core.batch import Batch


@final
class Identity(Augmentation):
    """Leaves every batch as it is."""

    @override
    def __call__(self, batch: Batch, *, seed: int, purpose: str = "augmentation") -> Batch:
        return batch
