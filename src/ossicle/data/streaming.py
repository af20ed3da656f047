"""What a worker does without an index: shards in an endless order, their utterances shuffled, cropped and batched."""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import BinaryIO, Self

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from typing_extensions import override
from webdataset.filters import detshuffle
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import split_by_node, split_by_worker
from webdataset.utils import pytorch_worker_info

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError, OssicleError
from ossicle.core.seeds import derive_seed
from ossicle.core.world import World
from ossicle.data.audio import decode
from ossicle.data.buckets import Shapes
from ossicle.data.ledger import Ledger, Mark, StreamState, begun_of
from ossicle.data.loader import raised_as_they_were
from ossicle.data.members import audio_members
from ossicle.data.orphans import end_with_parent
from ossicle.data.quarantine import Quarantine
from ossicle.data.shards import digest_bytes
from ossicle.data.sources import Place, Sources, closed_well

_BARREN = 20  # shards in a row without one usable utterance, at least, before a stream gives up


@dataclass(frozen=True, slots=True)
class Encoded:
    """An utterance before it is decoded.

    Args:
        place: The shard that it comes from.
        ordinal: Its number among the shard's audio.
        name: Its name, for the log.
        data: Its encoded audio.
        samples: Its length.
    """

    place: Place
    ordinal: int
    name: str
    data: bytes
    samples: int

    @property
    def id(self) -> int:
        """63 bits of a hash of the shard's URL and the member's name: the same in every epoch."""
        return digest_bytes(f"{self.place.url}\0{self.name}".encode("utf-8", "surrogatepass")) >> 1


@dataclass(frozen=True, slots=True)
class Drawn:
    """A batch of one stream, and where the stream stands after it.

    Args:
        batch: The batch; its position is not known yet.
        stream: The worker that read it.
        mark: Where that worker stands.
    """

    batch: Batch
    stream: int
    mark: Mark

    def pin_memory(self) -> Self:
        """The same with the batch in page-locked memory."""
        return replace(self, batch=self.batch.pin_memory())


class Streams(IterableDataset[Drawn | OssicleError]):
    """The endless batches of one rank: each of its workers is a stream of its own.

    The shards of all epochs stand in one endless sequence, each epoch in an order of its own, and stream s of n takes
    every n-th place. So each shard is read once an epoch by one stream, every stream is endless however uneven shards
    and ranks are, and none waits for another. Within an epoch a stream's utterances are shuffled through a buffer of
    encoded audio, cropped where (seed, epoch, utterance) says, and gathered into the static shapes.

    Args:
        sources: The shards.
        shapes: Crop lengths and batch rows.
        seed: Seeds the order of shards and utterances, and the crops.
        clock: The model's clock: crops start at multiples of its stride.
        shuffle: Utterances that the buffer holds.
        quarantine: Takes what cannot be read.
        world: This process's place.
        state: Where the run stood.
    """

    def __init__(
        self,
        sources: Sources,
        shapes: Shapes,
        *,
        seed: int,
        clock: FrameClock,
        shuffle: int,
        quarantine: Quarantine,
        world: World,
        state: StreamState,
    ) -> None:
        super().__init__()
        self.sources = sources
        self.shapes = shapes
        self.seed = seed
        self.clock = clock
        self.shuffle = shuffle
        self.quarantine = quarantine
        self.world = world
        self.state = state

    @override
    def __iter__(self) -> Iterator[Drawn | OssicleError]:
        """Batches without end; an error travels as the last item, for a DataLoader would rebuild it from its text."""
        worker = get_worker_info()
        stream, streams = (0, 1) if worker is None else (worker.id, worker.num_workers)
        try:
            self._check_place()
            yield from self._batches(stream, streams)
        except OssicleError as error:
            yield error

    def _check_place(self) -> None:
        found = pytorch_worker_info()[:2]
        if found != (self.world.rank, self.world.size):
            raise ConfigError(
                f"webdataset takes this process for rank {found[0]} of {found[1]}, and it is rank {self.world.rank} of"
                f" {self.world.size}: ranks would read each other's shards",
                "let the launcher set RANK and WORLD_SIZE as torchrun does, or start workers by fork",
            )

    def _batches(self, stream: int, streams: int) -> Iterator[Drawn]:
        state = self.state
        mine = partial(_is_mine, number=self.world.rank + self.world.size * stream, streams=self.world.size * streams)
        ledger = Ledger({place: value for place, value in begun_of(state).items() if mine(place)})
        pipeline = DataPipeline(
            self.sources.endless(self.seed, state["floor"], self.world.size * streams),
            split_by_node,
            split_by_worker,
            partial(_unfinished, floor=state["floor"], beyond=frozenset(state["beyond"])),
            partial(self._utterances, ledger=ledger),
            self._shuffled,
            partial(self._collated, stream=stream, ledger=ledger),
        )
        yield from pipeline

    def _utterances(self, places: Iterable[Place], ledger: Ledger) -> Iterator[Encoded]:
        """Every utterance of the places' shards that is long enough for a crop and was not trained on before."""
        barren = 0
        for place, file in self.sources.opened(places, self.quarantine):
            found = 0
            with closed_well(file, place.url, self.quarantine):
                for item in self._read(place, file, ledger):
                    found += 1
                    yield item
            ledger.end(place.number)
            barren = 0 if found else barren + 1
            if barren >= max(_BARREN, 2 * len(self.sources.urls)):
                raise DataError(
                    f"the last {barren} shards gave not one utterance of {self.shapes.lengths[0]} samples or more",
                    "name tars with audio in them, or lower data.min_crop_s",
                )

    def _read(self, place: Place, file: BinaryIO, ledger: Ledger) -> Iterator[Encoded]:
        for member in audio_members(file, self.sources.max_member_bytes):
            name = f"{place.url}:{member.name}" if member.name else place.url
            if member.ordinal < 0:
                self.quarantine.add(name, member.problem)
            elif ledger.take(place.number, member.ordinal):
                problem, samples = member.problem, 0
                if member.data is not None:
                    samples, problem = measure(member.data, self.clock.rate_hz)
                if problem:
                    self.quarantine.add(name, problem)
                if problem or samples < self.shapes.lengths[0]:
                    ledger.give(place.number, member.ordinal)
                elif member.data is not None:
                    yield Encoded(place, member.ordinal, member.name, member.data, samples)

    def _shuffled(self, utterances: Iterable[Encoded]) -> Iterator[Encoded]:
        for epoch, part in groupby(utterances, key=_epoch_of):
            # run() counts the epoch up before it uses it
            stage = detshuffle(self.shuffle, self.shuffle, derive_seed(self.seed, "samples"), epoch - 1)
            yield from stage.run(part)

    def _collated(self, utterances: Iterable[Encoded], stream: int, ledger: Ledger) -> Iterator[Drawn]:
        waiting: list[list[tuple[Encoded, int, NDArray[np.float32]]]] = [[] for _ in self.shapes.lengths]
        for item in utterances:
            bucket = int(self.shapes.assign(np.array([item.samples]))[0])
            start = self._start(item, self.shapes.lengths[bucket])
            try:
                wave_S = decode(item.data, start, self.shapes.lengths[bucket])
            except DataError as error:
                self.quarantine.add(f"{item.place.url}:{item.name}", error.problem)
                ledger.give(item.place.number, item.ordinal)
                continue
            self.quarantine.ok()
            waiting[bucket].append((item, start, wave_S))
            if len(waiting[bucket]) == self.shapes.rows[bucket]:
                full, waiting[bucket] = waiting[bucket], []
                for item_b, _, _ in full:
                    ledger.give(item_b.place.number, item_b.ordinal)
                yield Drawn(_batch(full), stream, ledger.mark())

    def _start(self, item: Encoded, length: int) -> int:
        draw = derive_seed(self.seed, "crop", item.place.epoch, item.id) / 2**63
        choices = (item.samples - length) // self.clock.stride_samples + 1
        return int(draw * choices) * self.clock.stride_samples


class StreamLoader(DataLoader[Drawn | OssicleError]):
    """A DataLoader of drawn batches that raises the errors that workers met, as they were.

    Args:
        streams: The endless batches.
        placed: Gives each batch its position as it leaves the loader, still on the host.
        workers: Processes that read ahead; 0 reads in this one.
        pin_memory: Whether batches go to page-locked memory, for copies to a GPU.
    """

    def __init__(
        self, streams: Streams, placed: Callable[[Drawn], Batch], *, workers: int = 0, pin_memory: bool = False
    ) -> None:
        super().__init__(
            streams,
            batch_size=None,
            num_workers=workers,
            pin_memory=pin_memory and torch.cuda.is_available(),
            prefetch_factor=4 if workers else None,
            worker_init_fn=end_with_parent,
        )
        self.placed = placed

    @override
    def __iter__(self) -> Iterator[Batch]:  # ty: ignore[incompatible-method-override]  a generator is all that is used
        return map(self.placed, raised_as_they_were(super().__iter__()))


def measure(data: bytes, rate_hz: int) -> tuple[int, str]:
    """Length of encoded audio in samples by its header, and what is wrong with it: empty where nothing is."""
    try:
        found = soundfile.info(io.BytesIO(data))
    except (soundfile.SoundFileError, RuntimeError) as error:
        return 0, f"is no audio: {error}"
    if found.samplerate != rate_hz or found.channels != 1:
        wanted = f"{rate_hz} Hz and one channel are wanted: ossicle prepare resamples"
        return 0, f"has {found.samplerate} Hz and {found.channels} channels; {wanted}"
    return int(found.frames), "" if found.frames > 0 else "holds no samples"


def _batch(rows: list[tuple[Encoded, int, NDArray[np.float32]]]) -> Batch:
    return Batch(
        waveform_BS=torch.from_numpy(np.stack([wave_S for _, _, wave_S in rows])),
        position=-1,
        ids_B=torch.tensor([item.id for item, _, _ in rows], dtype=torch.int64),
        starts_B=torch.tensor([start for _, start, _ in rows], dtype=torch.int64),
    )


def _epoch_of(item: Encoded) -> int:
    return item.place.epoch


def _is_mine(place: int, number: int, streams: int) -> bool:
    return place % streams == number


def _unfinished(places: Iterable[Place], floor: int, beyond: frozenset[int]) -> Iterator[Place]:
    return (place for place in places if place.number >= floor and place.number not in beyond)
