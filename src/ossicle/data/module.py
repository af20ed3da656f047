"""Training data for Lightning: shards on disk to an endless loader that knows where it stands."""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.core.files import hash_json
from ossicle.core.world import World
from ossicle.data.buckets import Shapes, choose_shapes
from ossicle.data.cache import ShardCache
from ossicle.data.combined import CombinedIndex, CombinedLabels, check_labels
from ossicle.data.index import DatasetIndex
from ossicle.data.labels import LabelSet
from ossicle.data.loader import PlannedLoader, planned_loader
from ossicle.data.plan import Plan, PlannedSequence
from ossicle.data.quarantine import Quarantine
from ossicle.data.reader import BatchReader
from ossicle.data.store import Storage
from ossicle.data.transfer import BatchModule

_AHEAD = 1024  # batches that a loader may give before one is trained on

Trained = Callable[[int, NDArray[np.int64], NDArray[np.int64]], None]
"""Is told of a batch that was trained on: its position, and its utterances' rows and crops' starts, shape (B,)."""


class Heard:
    """How much of each source and language this process has trained on: counted on the host, before a batch leaves it.

    Args:
        names: Source and language of each component.
        index: The utterances.
        wanted: The share that each component is to have, or none where none is.

    Attributes:
        samples: Samples of each component, int64.
    """

    def __init__(
        self, names: Sequence[tuple[str, str]], index: DatasetIndex | CombinedIndex, wanted: Sequence[float] = ()
    ) -> None:
        self.names = tuple(names)
        self.wanted = tuple(wanted)
        self.samples = np.zeros(len(names), dtype=np.int64)
        rows = index.rows if isinstance(index, CombinedIndex) else np.asarray(index.rows)
        self._language_N = rows["language"]
        parts = index.sources if isinstance(index, CombinedIndex) else {"": index}
        self._offsets = np.cumsum([0, *(part.num_utterances for part in parts.values())])
        numbers = {name: number for number, name in enumerate(self.names)}
        # what holds nothing long enough is no component and never heard; neighbours of bad utterances may be of it
        self._numbers = [
            np.asarray([numbers.get((source, language), 0) for language in part.languages] or [0], dtype=np.int64)
            for source, part in parts.items()
        ]

    def add(self, ids_B: NDArray[np.int64], samples: int) -> None:
        """Count a batch of crops of that many samples each, by their rows."""
        language_B = self._language_N[ids_B]
        part_B = np.searchsorted(self._offsets, ids_B, side="right") - 1
        for part, language in zip(part_B.tolist(), language_B.tolist(), strict=True):
            self.samples[self._numbers[part][language]] += samples


class PlannedModule(BatchModule):
    """Planned batches, resumable at any batch on any number of ranks.

    The position is counted by the system, which calls :meth:`advance` for each batch that it has trained on: what a
    loader or a fetcher has read ahead does not count.

    Args:
        index: The utterances.
        labels: Their labels, or None where the target needs none.
        shapes: Crop lengths and batch rows.
        plan: The sequence of batches.
        heard: Counts what is trained on.
        seed: Seeds the crops.
        workers: Processes of each rank that read.
        quarantine: Takes what cannot be read.

    Attributes:
        position: Global batches consumed.
        trained: Is told of each batch that this rank trains on, or None.
        unused_fraction: Share of the audio that an epoch of one pass leaves unheard.
        num_excluded: Utterances that are too short.
    """

    def __init__(
        self,
        index: DatasetIndex | CombinedIndex,
        labels: LabelSet | CombinedLabels | None,
        shapes: Shapes,
        plan: PlannedSequence,
        *,
        heard: Heard,
        seed: int,
        workers: int,
        quarantine: Quarantine,
    ) -> None:
        super().__init__()
        self.index = index
        self.labels = labels
        self.shapes = shapes
        self.plan = plan
        self.heard = heard
        self.seed = seed
        self.workers = workers
        self.quarantine = quarantine
        parts = index.indexes if isinstance(index, CombinedIndex) else (index,)
        samples = [part.rows["samples"] for part in parts]
        audio = [part.num_samples for part in parts]
        unused = [shapes.unused_fraction(samples_N) * total for samples_N, total in zip(samples, audio, strict=True)]
        self.unused_fraction = sum(unused) / sum(audio)
        self.num_excluded = sum(shapes.num_excluded(samples_N) for samples_N in samples)
        self.position = 0
        self.trained: Trained | None = None
        self._clock: FrameClock | None = None
        self._given: deque[tuple[int, int, NDArray[np.int64], NDArray[np.int64]]] = deque(maxlen=_AHEAD)

    @property
    def fingerprint(self) -> str:
        """Hash of all that the sequence of batches depends on: data, shapes, shares, seed."""
        return hash_json({"data": self.index.content_hash, "plan": self.plan.fingerprint})

    def set_clock(self, clock: FrameClock, num_classes: int | None = None) -> None:
        """Take the model's clock, and check the labels against it.

        Args:
            clock: The model's clock.
            num_classes: Classes that the objective predicts, where it predicts labels.

        Raises:
            ConfigError: Another rate, clock or number of classes than the data's and the labels'.
            DataError: The labels are of other data.
        """
        if clock.rate_hz != self.index.rate_hz:
            raise ConfigError(
                f"the model hears {clock.rate_hz} Hz and {self.index.path} holds {self.index.rate_hz} Hz",
                "prepare the data at the model's rate",
            )
        if clock.num_frames(self.shapes.lengths[0]) == 0:
            raise ConfigError(
                f"the shortest crop, {self.shapes.lengths[0]} samples, gives the model no frame",
                f"raise data.min_crop_s to at least {clock.num_samples(1) / clock.rate_hz}",
            )
        if self.labels is not None:
            check_labels(self.labels, self.index, clock, num_classes)
        self._clock = clock

    def epoch(self) -> float:
        """Epochs consumed so far, as a fraction."""
        return self.plan.epochs(self.position)

    def advance(self, batches_per_rank: int = 1) -> None:
        """Count batches that every rank has consumed."""
        world = World.current()
        self.position += batches_per_rank * world.size
        while self._given and self._given[0][0] < self.position:
            position, samples, ids_B, starts_B = self._given.popleft()
            self.heard.add(ids_B, samples)
            if self.trained is not None:
                self.trained(position, ids_B, starts_B)

    @override
    def train_dataloader(self) -> PlannedLoader:
        """An endless loader from the current position on.

        Raises:
            ConfigError: The model's clock has not been set.
        """
        if self._clock is None:
            raise ConfigError("the data do not know the model's clock", "call set_clock before fit")
        reader = BatchReader(
            self.index,
            self.shapes,
            seed=self.seed,
            model_clock=self._clock,
            quarantine=self.quarantine,
            labels=self.labels,
        )
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        self._given.clear()
        return planned_loader(
            self.plan,
            reader,
            start_position=self.position,
            world=World.current(),
            workers=self.workers,
            pin_memory=on_gpu,
            given=self._give,
        )

    def _give(self, batch: Batch) -> None:
        """Note what a batch holds while it is on the host: it counts as heard once it is trained on."""
        ids_B, starts_B = batch.ids_B.numpy(), batch.starts_B.numpy()
        self._given.append((batch.position, batch.waveform_BS.shape[1], ids_B, starts_B))

    @override
    def state_dict(self) -> dict[str, int | str]:
        return {"position": self.position, "fingerprint": self.fingerprint}

    @override
    def load_state_dict(self, state_dict: dict[str, int | str]) -> None:
        """Go to a saved position, on any number of ranks.

        Raises:
            ConfigError: The position is of another sequence of batches.
        """
        if state_dict["fingerprint"] != self.fingerprint:
            raise ConfigError(
                "the checkpoint's data position is of other data, crops, batch_s, window_shards, shares or seed",
                "resume with the settings of the run that wrote it, or start a new run from its weights",
            )
        self.position = int(state_dict["position"])


class ShardData(PlannedModule):
    """One split of a prepared dataset as planned batches.

    Args:
        shards: Directory of a prepared dataset, or a URL of one.
        split: Split to train on.
        labels: Directory of labels, or None where the target needs none.
        max_crop_s: Longest crop, in seconds.
        min_crop_s: Utterances shorter than this are left out, in seconds.
        num_shapes: Most static shapes that batches come in.
        batch_s: Audio in one batch of one rank, in seconds.
        max_cut: Share of an utterance that may be cut away before it is heard in one piece more.
        window_shards: Shards whose samples are shuffled together.
        workers: Processes of each rank that read.
        seed: Seeds the order and the crops.
        max_bad_fraction: Share of unreadable utterances above which training stops.
        quarantine: File that names what could not be read, or None.
        cache: Where shards behind a URL are kept on this machine; None for 20 GB in its temporary folder.
        storage: Options of the URL's file system, such as endpoint_url.
    """

    def __init__(
        self,
        shards: str | Path,
        *,
        max_crop_s: float,
        min_crop_s: float,
        num_shapes: int,
        batch_s: float,
        window_shards: int,
        workers: int,
        seed: int,
        max_bad_fraction: float,
        max_cut: float = 1.0,
        split: str = "train",
        labels: str | Path | None = None,
        quarantine: str | Path | None = None,
        cache: ShardCache | None = None,
        storage: Storage | None = None,
    ) -> None:
        index = DatasetIndex.load(shards, split, cache, storage)
        shapes = choose_shapes(
            index.rows["samples"],
            max_crop_s=max_crop_s,
            min_crop_s=min_crop_s,
            num_shapes=num_shapes,
            batch_s=batch_s,
            max_cut=max_cut,
            rate_hz=index.rate_hz,
        )
        super().__init__(
            index,
            None if labels is None else LabelSet.load(labels),
            shapes,
            Plan(index.rows, shapes, seed=seed, window_shards=window_shards),
            heard=Heard([("", language) for language in index.languages], index),
            seed=seed,
            workers=workers,
            quarantine=Quarantine(None if quarantine is None else Path(quarantine), max_bad_fraction),
        )
