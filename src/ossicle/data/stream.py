"""Training data for Lightning out of tars that have no index: pipes, foreign archives, buckets of other projects."""

from collections import deque
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from typing_extensions import override

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.files import hash_json
from ossicle.core.world import World
from ossicle.data.buckets import Shapes, length_histogram, pieces_of, shapes_of
from ossicle.data.cache import ShardCache
from ossicle.data.ledger import Mark, Progress, StreamState, merge, start
from ossicle.data.members import audio_members
from ossicle.data.module import Trained
from ossicle.data.quarantine import Quarantine
from ossicle.data.sources import Sources, closed_well
from ossicle.data.store import Storage
from ossicle.data.streaming import Drawn, StreamLoader, Streams, measure
from ossicle.data.transfer import BatchModule

_QUANTUM = 320  # samples: crops are multiples of it
_AHEAD = 1024  # batches that a loader may give before one is trained on


class StreamPosition(TypedDict):
    """Where a run stands, in plain values.

    Attributes:
        position: Global batches consumed.
        fingerprint: Hash of what the streams depend on.
        lengths: Crop lengths, in samples.
        rows: Crops in a batch of each length.
        streams: Shards finished and begun.
    """

    position: int
    fingerprint: str
    lengths: list[int]
    rows: list[int]
    streams: StreamState


class StreamData(BatchModule):
    """Tars of audio in streams, shuffled, cropped and batched in static shapes; a run resumes to the shard.

    Without an index nothing is planned: ranks share the shards and not the batches, and an utterance's neighbours in a
    batch depend on the numbers of ranks and workers. What is kept is that each shard is read once an epoch by one
    stream, and that a run that is resumed, on any number of ranks and workers, reads the shards again that were begun
    and passes over what was trained on. An utterance longer than the longest crop gives one crop of it an epoch.

    The shapes are the optimiser's (:func:`ossicle.data.buckets.shapes_of`) for the lengths of the first utterances,
    which are read once before training, by every rank alike; checkpoints keep them.

    Args:
        urls: Tars: paths, URLs or ``pipe:`` commands, braces expanded; one text or several.
        max_crop_s: Longest crop, in seconds.
        min_crop_s: Utterances shorter than this are left out, in seconds.
        num_shapes: Most static shapes that batches come in.
        batch_s: Audio in one batch of one rank, in seconds.
        shuffle: Utterances that each stream shuffles together, encoded, in memory.
        workers: Processes of each rank that read; each is a stream, so there should be no fewer shards than streams.
        seed: Seeds the order and the crops.
        max_bad_fraction: Share of unreadable utterances above which training stops.
        measured: Utterances whose lengths choose the shapes.
        max_member_mb: Largest member of a tar that is read, in 10^6 bytes.
        quarantine: File that names what could not be read, or None.
        cache: Where shards behind URLs are kept on this machine; None reads them from afar every epoch.
        storage: Options of the URLs' file systems.

    Attributes:
        position: Global batches consumed.
        trained: Is told of each batch that this rank trains on, or None; ids stand for rows.
        shapes: Crop lengths and batch rows, once they are known.

    Raises:
        ConfigError: No shard is named, or the braces do not match.
    """

    def __init__(
        self,
        urls: str | Iterable[str],
        *,
        max_crop_s: float,
        min_crop_s: float,
        num_shapes: int,
        batch_s: float,
        shuffle: int,
        workers: int,
        seed: int,
        max_bad_fraction: float,
        measured: int = 500,
        max_member_mb: float = 256.0,
        quarantine: str | Path | None = None,
        cache: ShardCache | None = None,
        storage: Storage | None = None,
    ) -> None:
        super().__init__()
        if shuffle < 1 or measured < 1:
            raise ConfigError(
                f"data.shuffle={shuffle} and data.measured={measured} count utterances", "state 1 or more"
            )
        self.sources = Sources(urls, max_member_bytes=round(max_member_mb * 1e6), storage=storage, cache=cache)
        crops = {"max_crop_s": max_crop_s, "min_crop_s": min_crop_s, "num_shapes": num_shapes, "batch_s": batch_s}
        self.fingerprint = hash_json({"urls": self.sources.urls, "seed": seed, "crops": crops})
        self.shuffle = shuffle
        self.workers = workers
        self.seed = seed
        self.measured = measured
        self.quarantine = Quarantine(None if quarantine is None else Path(quarantine), max_bad_fraction)
        self.position = 0
        self.trained: Trained | None = None
        self.shapes: Shapes | None = None
        self._choose = partial(
            shapes_for, max_crop_s=max_crop_s, min_crop_s=min_crop_s, num_shapes=num_shapes, batch_s=batch_s
        )
        self._clock: FrameClock | None = None
        self._state = start()
        self._progress: Progress | None = None
        self._next = 0
        self._given: deque[tuple[int, NDArray[np.int64], NDArray[np.int64], int, Mark]] = deque(maxlen=_AHEAD)

    def set_clock(self, clock: FrameClock, num_classes: int | None = None) -> None:
        """Take the model's clock, whose rate the audio must have.

        Args:
            clock: The model's clock.
            num_classes: Classes that the objective predicts out of labels on disk, which streams have none of.
        """
        del num_classes  # a target that needs labels says so at its first batch; launch says so before
        self._clock = clock

    def epoch(self) -> float:
        """Epochs consumed so far, by the shards that this rank has finished."""
        if self._progress is None:
            return self._state["floor"] / len(self.sources.urls)
        return self._progress.num_finished() * World.current().size / len(self.sources.urls)

    def advance(self, batches_per_rank: int = 1) -> None:
        """Count batches that every rank has consumed."""
        self.position += batches_per_rank * World.current().size
        while self._given and self._given[0][0] < self.position:
            position, ids_B, starts_B, stream, mark = self._given.popleft()
            assert self._progress is not None
            self._progress.absorb(stream, mark)
            if self.trained is not None:
                self.trained(position, ids_B, starts_B)

    @override
    def train_dataloader(self) -> StreamLoader:
        """An endless loader of this rank's batches, from what has been trained on.

        Raises:
            ConfigError: The model's clock has not been set, or the shortest crop gives the model no frame.
            DataError: The first shards hold no audio that is long enough.
        """
        if self._clock is None:
            raise ConfigError("the data do not know the model's clock", "call set_clock before fit")
        if self.shapes is None:
            lengths, part = first_lengths(self.sources, self.seed, self._clock.rate_hz, self.measured)
            self.shapes = self._choose(lengths, part, rate_hz=self._clock.rate_hz)
        if self._clock.num_frames(self.shapes.lengths[0]) == 0:
            raise ConfigError(
                f"the shortest crop, {self.shapes.lengths[0]} samples, gives the model no frame",
                f"raise data.min_crop_s to at least {self._clock.num_samples(1) / self._clock.rate_hz}",
            )
        world = World.current()
        state = self._state if self._progress is None else self._progress.state()
        self._progress = Progress(state, world.rank, world.size)
        self._given.clear()
        self._next = self.position + world.rank
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        streams = Streams(
            self.sources,
            self.shapes,
            seed=self.seed,
            clock=self._clock,
            shuffle=self.shuffle,
            quarantine=self.quarantine,
            world=world,
            state=state,
        )
        return StreamLoader(streams, self._placed, workers=self.workers, pin_memory=on_gpu)

    def _placed(self, drawn: Drawn) -> Batch:
        batch = replace(drawn.batch, position=self._next)
        self._given.append((self._next, batch.ids_B.numpy(), batch.starts_B.numpy(), drawn.stream, drawn.mark))
        self._next += World.current().size
        return batch

    @override
    def state_dict(self) -> dict[str, object]:
        """Where all ranks stand together. Called on every rank: they tell each other."""
        state = self._state
        if self._progress is not None:
            state = self._progress.state()
            if dist.is_available() and dist.is_initialized():
                states: list[StreamState] = [start()] * dist.get_world_size()
                dist.all_gather_object(states, state)
                state = merge(states)
        lengths, rows = ([], []) if self.shapes is None else (self.shapes.lengths, self.shapes.rows)
        return dict(
            StreamPosition(
                position=self.position,
                fingerprint=self.fingerprint,
                lengths=list(lengths),
                rows=list(rows),
                streams=state,
            )
        )

    @override
    def load_state_dict(self, state_dict: StreamPosition) -> None:  # ty: ignore[incompatible-method-override]
        """Go to a saved position, on any number of ranks and workers.

        Raises:
            ConfigError: The position is of other shards, crops or seed.
        """
        if state_dict["fingerprint"] != self.fingerprint:
            raise ConfigError(
                "the checkpoint's data position is of other urls, crops, batch_s or seed",
                "resume with the settings of the run that wrote it, or start a new run from its weights",
            )
        self.position = int(state_dict["position"])
        self._state = state_dict["streams"]
        self._progress = None
        if state_dict["lengths"]:
            self.shapes = Shapes(tuple(state_dict["lengths"]), tuple(state_dict["rows"]))


def shapes_for(
    samples_N: NDArray[np.int64],
    part: float,
    *,
    max_crop_s: float,
    min_crop_s: float,
    num_shapes: int,
    batch_s: float,
    rate_hz: int,
) -> Shapes:
    """The shapes that cut away the least of utterances of which some were measured; the shortest is the shortest crop.

    Args:
        samples_N: Samples of those that were measured.
        part: Which part of all they are about: a shape must fill batches in an epoch.
        max_crop_s: Longest crop, in seconds.
        min_crop_s: Utterances shorter than this are left out.
        num_shapes: Most shapes.
        batch_s: Audio in one batch of one rank, in seconds.
        rate_hz: Samples a second.

    Raises:
        ConfigError: Numbers that contradict each other, or no utterance that is long enough.
    """
    pieces = pieces_of(
        max_crop_s=max_crop_s, min_crop_s=min_crop_s, max_cut=1.0, quantum_samples=_QUANTUM, rate_hz=rate_hz
    )
    counts = length_histogram(samples_N, pieces, _QUANTUM)[0] / part
    if counts.any():
        counts[pieces.min_samples // _QUANTUM] += 1  # what is measured may lack the shortest that there are
    return shapes_of(counts, pieces, num_shapes=num_shapes, batch_s=batch_s, rate_hz=rate_hz)


def first_lengths(sources: Sources, seed: int, rate_hz: int, wanted: int) -> tuple[NDArray[np.int64], float]:
    """Lengths of the first utterances of the first epoch, in samples: the same on every rank.

    Args:
        sources: The shards.
        seed: Seeds their order.
        rate_hz: Rate of the audio; what has another is passed over.
        wanted: How many utterances are measured; fewer where the shards hold fewer.

    Returns:
        The lengths, and which part of the shards they come from.

    Raises:
        DataError: There is none.
    """
    found: list[int] = []
    unheard = Quarantine(None, 1.0)  # what is bad here is met again, and counted, in training
    places = islice(sources.endless(seed, 0, 1), len(sources.urls))
    with closing(sources.opened(places, unheard)) as opened:
        for number, (place, file) in enumerate(opened, 1):
            with closed_well(file, place.url, unheard):
                for member in audio_members(file, sources.max_member_bytes):
                    samples = 0 if member.data is None else measure(member.data, rate_hz)[0]
                    if samples:
                        found.append(samples)
                    if len(found) >= wanted:
                        return np.asarray(found), number / len(sources.urls)
    if not found:
        problem = f"the {len(sources.urls)} shards of data.urls hold no utterance of {rate_hz} Hz and one channel"
        raise DataError(problem, "name tars of such audio, or make them: ossicle prepare")
    return np.asarray(found), 1.0
