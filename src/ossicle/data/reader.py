"""From a planned batch to a batch of crops: what a worker process does."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.core.seeds import numpy_generator
from ossicle.data.buckets import Shapes
from ossicle.data.combined import CombinedIndex, CombinedLabels, check_labels, name_in, samples_of
from ossicle.data.crops import Crop, WholeFile, encoded_crop
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet
from ossicle.data.plan import BatchSpec
from ossicle.data.quarantine import Quarantine

_NEIGHBOURS = 64  # rows of the index that are tried where every row of a batch is bad


class BatchReader:
    """Reads planned batches; a batch is a pure function of its spec, the data and the seed.

    Crops start at multiples of the model's stride, so that labels stay aligned to the frame. An utterance that cannot
    be read is quarantined and its place taken by the next good one of the batch.

    Args:
        index: The split, or several as one.
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
        index: DatasetIndex | CombinedIndex,
        shapes: Shapes,
        *,
        seed: int,
        model_clock: FrameClock,
        quarantine: Quarantine,
        labels: LabelSet | CombinedLabels | None = None,
    ) -> None:
        if labels is not None:
            check_labels(labels, index, model_clock)
        self.index = index
        self.shapes = shapes
        self.seed = seed
        self.model_clock = model_clock
        self.quarantine = quarantine
        self.labels = labels
        self._samples_N = samples_of(index)

    def read(self, spec: BatchSpec) -> Batch:
        """Read a batch.

        Raises:
            DataError: Nothing in the batch or near it can be read, or too much has been quarantined.
        """
        length = self.shapes.lengths[spec.bucket]
        draws_B = numpy_generator(self.seed, "crop", spec.position).random(len(spec.ids))
        waveform_BS = np.empty((len(spec.ids), length), dtype=np.float32)
        ids_B = np.array(spec.ids, dtype=np.int64)
        starts_B = self._starts(ids_B, length, draws_B, spec.pieces)
        bad: set[int] = set()
        for slot, out_S in enumerate(waveform_BS):
            if self._try(int(ids_B[slot]), int(starts_B[slot]), out_S, bad):
                continue
            for row in self._others(spec.ids, slot, length):
                start = int(self._starts(np.array([row]), length, draws_B[slot : slot + 1])[0])
                if self._try(row, start, out_S, bad):
                    ids_B[slot], starts_B[slot] = row, start
                    break
            else:
                raise DataError(
                    f"no utterance of batch {spec.position} can be read, nor {_NEIGHBOURS} beside it",
                    f"prepare {self.index.path} again",
                )
        return self._collate(spec, waveform_BS, ids_B, starts_B)

    def _collate(
        self, spec: BatchSpec, waveform_BS: NDArray[np.float32], ids_B: NDArray[np.int64], starts_B: NDArray[np.int64]
    ) -> Batch:
        return Batch(
            waveform_BS=torch.from_numpy(waveform_BS),
            position=spec.position,
            ids_B=torch.from_numpy(ids_B),
            starts_B=torch.from_numpy(starts_B),
            labels_BT=self._labels(ids_B, starts_B, waveform_BS.shape[1]),
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

    def _starts(
        self,
        ids_B: NDArray[np.int64],
        length: int,
        draws_B: NDArray[np.float64],
        pieces_B: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """Where crops begin, at multiples of the stride: anywhere in the utterance, or in its piece where it is cut."""
        stride = self.model_clock.stride_samples
        samples_B = self._samples_N[ids_B].astype(np.int64)
        first_B, end_B = np.zeros_like(samples_B), samples_B
        if pieces_B is not None:
            first_B, end_B = self.shapes.spans(samples_B, pieces_B)
            first_B = first_B // stride  # neighbours may share less than a stride
        choices_B = (end_B - length) // stride - first_B + 1
        return (first_B + (draws_B * choices_B).astype(np.int64)) * stride

    def _try(self, row: int, start: int, out_S: NDArray[np.float32], bad: set[int]) -> bool:
        """Read a crop; quarantine its utterance where that fails."""
        if row in bad:
            return False
        try:
            self._read_crop(row, start, out_S)
        except DataError as error:
            bad.add(row)
            self.quarantine.add(name_in(self.index, row), error.problem)
            return False
        self.quarantine.ok()
        return True

    def _read_crop(self, row: int, start: int, out_S: NDArray[np.float32]) -> None:
        try:
            self._decode(self._cut(row, start, len(out_S)), out_S)
        except DataError:
            # the whole utterance says what is wrong with it, and may be good where only its frames' places are odd
            self._decode(WholeFile(self._fetch(row, 0, self.index.audio_bytes(row)), start), out_S)

    def _cut(self, row: int, start: int, length: int) -> Crop:
        return encoded_crop(partial(self._fetch, row), self.index.audio_bytes(row), start, length)

    def _fetch(self, row: int, first: int, size: int) -> bytes:
        if size == self.index.audio_bytes(row):
            return self.index.read_audio(row)  # whole, it may be held against its digest
        return self.index.read_audio_part(row, first, size)

    def _decode(self, crop: Crop, out_S: NDArray[np.float32]) -> None:
        crop.decode_into(out_S)

    def _others(self, ids_B: NDArray[np.int64], slot: int, length: int) -> Iterator[int]:
        """The batch's other utterances from a slot on, then long enough neighbours in the index."""
        yield from np.roll(ids_B, -slot)[1:].tolist()
        rows = (int(ids_B[slot]) + 1 + np.arange(min(_NEIGHBOURS, self.index.num_utterances - 1))) % len(
            self.index.rows
        )
        yield from rows[self.index.rows["samples"][rows] >= length].tolist()
