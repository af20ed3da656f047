"""Targets that are read from disk: one k-means class a frame (HuBERT, arXiv 2106.07447, section II-A)."""

from typing import final

from torch import Tensor
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.shapes import Int64
from ossicle.target.base import DiscreteTarget


@final
class KMeansLabels(DiscreteTarget):
    """The labels that came with the batch; whose they are was checked when the data were opened.

    Args:
        num_classes: Classes (V) that the labels were made with.
        clock: The clock of the model's frames.
        feature_dim: Channels of the frontend's frames, which labels do not depend on.

    Raises:
        ConfigError: Fewer than two classes.
    """

    def __init__(self, num_classes: int, *, clock: FrameClock, feature_dim: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ConfigError(f"target.num_classes={num_classes} leaves nothing to predict", "give at least 2")
        self.num_classes = num_classes
        self.clock = clock
        self.feature_dim = feature_dim

    @override
    def forward(self, batch: Batch, clock: FrameClock) -> Int64[Tensor, "B T"]:
        """The batch's labels.

        Args:
            batch: Crops with labels.
            clock: The clock that the classes are wanted on.

        Returns:
            Class of every frame, int64, shape (B, T).

        Raises:
            ConfigError: The batch has no labels.
            DataError: The labels are not one a frame.
        """
        if batch.labels_BT is None:
            raise ConfigError(
                "the target is k-means labels and the data have none",
                "make them with ossicle label and give their directory as data.labels, or take a stage that makes them",
            )
        num_rows, num_samples = batch.waveform_BS.shape
        wanted = (num_rows, clock.num_frames(num_samples))
        if tuple(batch.labels_BT.shape) != wanted:
            raise DataError(
                f"the labels have shape {tuple(batch.labels_BT.shape)} where the model has frames {wanted}",
                "make the labels again on the model's clock: ossicle label",
            )
        return batch.labels_BT.long()
