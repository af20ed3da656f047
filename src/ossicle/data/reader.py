"""From a planned batch to a batch of crops: what a worker process does."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.core.seeds import numpy_generator
from ossicle.data.audio import decode
from ossicle.data.buckets import Shapes
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet
from ossicle.data.plan import BatchSpec
from ossicle.data.quarantine import Quarantine
from ossicle.data.utterances import name_of

_NEIGHBOURS = 64  # rows of the index that are tried where every row of a batch is bad


class BatchReader:
    """Reads planned batches; a batch is a pure function of its spec, the data and the seed.

    Crops start at multiples of the model's stride, so that labels stay aligned to the frame. An utterance that cannot
    be read is quarantined and its place taken by the next good one of the batch.

    Args:
        index: The split.
        shapes: Crop lengths and batch rows.
        seed: Seeds where crops start.
        model_clock: The model's clock: the stride of crop starts and the number of labels a crop.
        labels: Labels of every frame, or None where the target needs none.
        quarantine: Takes what cannot be read.

    Raises:
        DataError: The labels are of other data.
        ConfigError: The labels' clock is not the model's.
    """

    def __init__(
        self,
        index: DatasetIndex,
        shapes: Shapes,
        *,
        seed: int,
        model_clock: FrameClock,
        quarantine: Quarantine,
        labels: LabelSet | None = None,
    ) -> None:
        if labels is not None:
            labels.check(index, model_clock)
        self.index = index
        self.shapes = shapes
        self.seed = seed
        self.model_clock = model_clock
        self.quarantine = quarantine
        self.labels = labels

    def read(self, spec: BatchSpec) -> Batch:
        """Read a batch.

        Raises:
            DataError: Nothing in the batch or near it can be read, or too much has been quarantined.
        """
        length = self.shapes.lengths[spec.bucket]
        draws_B = numpy_generator(self.seed, "crop", spec.position).random(len(spec.ids))
        waveform_BS = np.empty((len(spec.ids), length), dtype=np.float32)
        ids_B = np.empty(len(spec.ids), dtype=np.int64)
        starts_B = np.empty(len(spec.ids), dtype=np.int64)
        bad: set[int] = set()
        for slot, draw in enumerate(draws_B):
            for row in self._candidates(spec.ids, slot, length):
                start = self._start(row, length, float(draw))
                wave_S = None if row in bad else self._decode(row, start, length)
                if wave_S is not None:
                    waveform_BS[slot], ids_B[slot], starts_B[slot] = wave_S, row, start
                    break
                bad.add(row)
            else:
                raise DataError(
                    f"no utterance of batch {spec.position} can be read, nor {_NEIGHBOURS} beside it",
                    f"prepare {self.index.path} again",
                )
        return Batch(
            waveform_BS=torch.from_numpy(waveform_BS),
            position=spec.position,
            ids_B=torch.from_numpy(ids_B),
            starts_B=torch.from_numpy(starts_B),
            labels_BT=self._labels(ids_B, starts_B, length),
        )

    def _labels(self, ids_B: NDArray[np.int64], starts_B: NDArray[np.int64], length: int) -> torch.Tensor | None:
        if self.labels is None:
            return None
        frames = self.model_clock.num_frames(length)
        crops = [
            self.labels.crop(row, start, frames, self.model_clock)
            for row, start in zip(ids_B.tolist(), starts_B.tolist(), strict=True)
        ]
        return torch.from_numpy(np.stack(crops))

    def _start(self, row: int, length: int, draw: float) -> int:
        stride = self.model_clock.stride_samples
        choices = (int(self.index.rows[row]["samples"]) - length) // stride + 1
        return int(draw * choices) * stride

    def _decode(self, row: int, start: int, length: int) -> NDArray[np.float32] | None:
        try:
            wave_S = decode(self.index.read_audio(row), start, length)
        except DataError as error:
            self.quarantine.add(name_of(self.index, row), error.problem)
            return None
        self.quarantine.ok()
        return wave_S

    def _candidates(self, ids_B: NDArray[np.int64], slot: int, length: int) -> Iterator[int]:
        """The slot's own utterance, the batch's others from there on, then long enough neighbours in the index."""
        yield from np.roll(ids_B, -slot).tolist()
        rows = (int(ids_B[slot]) + 1 + np.arange(min(_NEIGHBOURS, self.index.num_utterances - 1))) % len(
            self.index.rows
        )
        yield from rows[self.index.rows["samples"][rows] >= length].tolist()
