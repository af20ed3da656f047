"""Labels on disk: one int16 class a frame, one file a shard, with a card that says whose they are."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.files import atomic_write, read_json, write_json
from ossicle.data.index import DatasetIndex

MAX_CLASSES = 2**15
_CARD = "card.json"
_OFFSETS = "offsets.npy"
_MEND = "ossicle label"


@dataclass(frozen=True, slots=True)
class LabelCard:
    """What a set of labels is.

    Args:
        clock: Which samples each label was made from.
        num_classes: Classes (K); labels are in [0, K).
        source: The features that were clustered: whatever names them exactly.
        split: Split of the dataset.
        content_hash: The split's content that was labelled.
        num_utterances: Utterances in the split.
        num_frames: Labels in all files together.
        inertia: Mean squared distance of a frame to its centroid.
        entropy_nats: Entropy of the classes over all frames.
        perplexity: exp of the entropy: how many classes are in effect used.
        dead_classes: Classes that no frame has.
        seconds: How long labelling took.
        details: How the labels were made beyond this.
    """

    clock: FrameClock
    num_classes: int
    source: Mapping[str, object]
    split: str
    content_hash: str
    num_utterances: int
    num_frames: int
    inertia: float
    entropy_nats: float
    perplexity: float
    dead_classes: int
    seconds: float
    details: Mapping[str, object]


class LabelSet:
    """Labels of every utterance of a split, cut out by sample positions. Made by :meth:`load`; pickles as its path.

    Attributes:
        path: The directory.
        card: What the labels are.
    """

    def __init__(self, path: Path, card: LabelCard, places: NDArray[np.int64]) -> None:
        self.path = path
        self.card = card
        self._places = places
        self._shards: dict[int, NDArray[np.int16]] = {}

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Open a finished set of labels.

        Raises:
            DataError: The directory holds no finished labels, or they are damaged.
        """
        path = Path(path)
        try:
            values = read_json(path / _CARD)
            card = LabelCard(clock=FrameClock(**values.pop("clock")), **values)
            places = np.load(path / _OFFSETS, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise DataError(
                f"{path} holds no finished labels: there is no {Path(error.filename).name}", _MEND
            ) from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"the labels in {path} are damaged: {error}", f"delete {path}, then {_MEND}") from error
        if places.shape != (card.num_utterances, 3):
            raise DataError(f"{path / _OFFSETS} is not of {card.num_utterances} utterances", f"delete it, then {_MEND}")
        return cls(path, card, places)

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        """Pickle as the path."""
        return type(self).load, (self.path,)

    def check(self, index: DatasetIndex, clock: FrameClock, num_classes: int | None = None) -> None:
        """Refuse labels that were made for something else.

        Args:
            index: The split to be trained on.
            clock: The model's clock.
            num_classes: Classes that the objective predicts, where it is known.

        Raises:
            DataError: The labels are of other data.
            ConfigError: The labels' clock or number of classes is another.
        """
        if self.card.content_hash != index.content_hash:
            raise DataError(
                f"the labels in {self.path} are of other data than {index.path}, split {index.split!r}",
                f"make them for this split: {_MEND}",
            )
        if not (self.card.clock.agrees_with(clock) and _missing_frames(self.card.clock, clock) <= 1):
            raise ConfigError(
                f"a label of {self.path} covers {_told(self.card.clock)}, a frame of the model {_told(clock)}",
                "make labels on the model's clock, or take a frontend and encoder with the labels' clock",
            )
        if num_classes is not None and num_classes != self.card.num_classes:
            raise ConfigError(
                f"the labels in {self.path} have {self.card.num_classes} classes and the target {num_classes}",
                f"set target.num_classes={self.card.num_classes}",
            )

    def utterance(self, row: int) -> NDArray[np.int16]:
        """Every label of an utterance, by its row of the index; empty where it could not be read."""
        shard, start, frames = (int(value) for value in self._places[row])
        return self._shard(shard)[start : start + frames]

    def crop(self, row: int, start_samples: int, num_frames: int, model_clock: FrameClock) -> NDArray[np.int64]:
        """The labels of the model's frames in a crop.

        Frame t of clocks that agree means the same moment, so frame t of a crop that starts m strides into its
        utterance takes label m + t. Where a label's field reaches further than a frame's, the utterance's last frame
        may have no label of its own and takes the one before.

        Args:
            row: Row of the index.
            start_samples: First sample of the crop in its utterance, a multiple of the labels' stride.
            num_frames: Frames of the crop on the model's clock.
            model_clock: The model's clock, which agrees with the labels'.

        Raises:
            DataError: The utterance has no labels there.
            ConfigError: The crop starts between labels, or the clocks do not agree.
        """
        first, between = divmod(start_samples, self.card.clock.stride_samples)
        if between or not self.card.clock.agrees_with(model_clock):
            raise ConfigError(
                f"a crop from sample {start_samples} on, of frames of {_told(model_clock)}, falls between the labels of"
                f" {self.path}, of {_told(self.card.clock)}",
                "crop at multiples of the labels' stride",
            )
        labels_T = self.utterance(row)
        if not 0 <= first < first + num_frames <= len(labels_T) + 1 or len(labels_T) == 0:
            raise DataError(
                f"row {row} has {len(labels_T)} labels in {self.path}; {first} to {first + num_frames - 1} are needed",
                f"make the labels again: {_MEND}",
            )
        wanted_T = np.minimum(np.arange(first, first + num_frames), len(labels_T) - 1)
        return labels_T[wanted_T].astype(np.int64)

    def _shard(self, shard: int) -> NDArray[np.int16]:
        if shard not in self._shards:
            path = self.path / shard_file(shard)
            try:
                self._shards[shard] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise DataError(f"{path} cannot be read: {error}", f"delete {self.path}, then {_MEND}") from error
        return self._shards[shard]


class LabelWriter:
    """Writes labels shard by shard; what is finished survives a killed process.

    Args:
        path: The directory that becomes a :class:`LabelSet`.
        index: The split to be labelled.
    """

    def __init__(self, path: Path, index: DatasetIndex) -> None:
        self.path = path
        self._shard_N = np.asarray(index.rows["shard"])
        self.num_shards = len(index.shard_paths)

    def rows_of(self, shard: int) -> NDArray[np.int64]:
        """Rows of the index in a shard, ascending: the order of its labels."""
        return np.flatnonzero(self._shard_N == shard)

    def has_shard(self, shard: int) -> bool:
        """Whether a shard's labels are written."""
        return self._note_path(shard).is_file() and (self.path / shard_file(shard)).is_file()

    def write_shard(self, shard: int, labels: Sequence[NDArray[np.integer]], inertia_sum: float = 0.0) -> None:
        """Write the labels of a shard's utterances.

        Args:
            shard: Number of the shard.
            labels: Labels of each utterance, in [0, K), in the order of :meth:`rows_of`.
            inertia_sum: Their frames' squared distances to the centroids, summed.
        """
        _save(self.path / shard_file(shard), np.concatenate([np.empty(0, np.int16), *labels]).astype(np.int16))
        # last, for it says that the shard is done
        write_json(self._note_path(shard), {"lengths": [len(part) for part in labels], "inertia_sum": inertia_sum})

    def read_total(self, shard: int) -> float:
        """The inertia that :meth:`write_shard` was given."""
        return float(read_json(self._note_path(shard))["inertia_sum"])

    def read_shard(self, shard: int) -> NDArray[np.int16]:
        """The labels of a written shard, end to end."""
        return np.load(self.path / shard_file(shard), mmap_mode="r", allow_pickle=False)

    def finish(self, card: LabelCard) -> None:
        """Write the table of places and the card; from then on the directory is a set of labels."""
        places = np.zeros((len(self._shard_N), 3), dtype=np.int64)
        for shard in range(self.num_shards):
            lengths = np.asarray(read_json(self._note_path(shard))["lengths"], dtype=np.int64)
            rows = self.rows_of(shard)
            places[rows] = np.stack([np.full(len(rows), shard), np.cumsum(lengths) - lengths, lengths], axis=1)
        _save(self.path / _OFFSETS, places)
        write_json(self.path / _CARD, asdict(card))
        for shard in range(self.num_shards):
            self._note_path(shard).unlink(missing_ok=True)

    def _note_path(self, shard: int) -> Path:
        return self.path / f"shard-{shard:06d}.json"


def is_finished(path: Path) -> bool:
    """Whether a directory holds a finished set of labels."""
    return os.path.lexists(path / _CARD)


def shard_file(shard: int) -> str:
    """Name of the file with a shard's labels."""
    return f"shard-{shard:06d}.npy"


def _save(path: Path, values: NDArray[np.generic]) -> None:
    with atomic_write(path) as file:
        np.save(file, values, allow_pickle=False)


def _missing_frames(labels: FrameClock, model: FrameClock) -> int:
    """Most frames that the model may have beyond an utterance's labels, over every length."""
    further = labels.num_samples(1) - model.num_samples(1)
    return -(-further // labels.stride_samples)


def _told(clock: FrameClock) -> str:
    return (
        f"{clock.kernel_samples} samples every {clock.stride_samples} from {clock.offset_samples} on"
        f" at {clock.rate_hz} Hz"
    )
