"""What a corpus gives: utterances with what is known of them, read one at a time from cheap, ordered sources."""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Phone:
    """A phone and where it lies in its utterance.

    Args:
        start: First sample at 16 kHz.
        end: Sample after the last one.
        symbol: The phone's name in its corpus's inventory.
    """

    start: int
    end: int
    symbol: str


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is known of a piece of audio apart from its sound; an unknown thing is empty.

    Args:
        id: Name that is unique in its corpus; any text.
        split: Part of the corpus, such as train, dev or test.
        language: Language code.
        speaker: Speaker's name.
        text: What is said.
        phones: Timed phones, in order.
    """

    id: str
    split: str
    language: str = ""
    speaker: str = ""
    text: str = ""
    phones: tuple[Phone, ...] = ()

    @property
    def key(self) -> str:
        """The name in a tar: ASCII without dots or slashes, at most 58 characters, distinct for distinct ids."""
        readable = _UNSAFE.sub("_", self.id)[:40].strip("_")
        digest = hashlib.blake2b(self.id.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        return f"{readable}-{digest}" if readable else digest

    def to_json(self) -> bytes:
        """UTF-8 JSON with a fixed order of keys: equal utterances give equal bytes."""
        value = {
            "id": self.id,
            "split": self.split,
            "language": self.language,
            "speaker": self.speaker,
            "text": self.text,
            "phones": [[phone.start, phone.end, phone.symbol] for phone in self.phones],
        }
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """The utterance that :meth:`to_json` wrote."""
        value = json.loads(data)
        phones = tuple(Phone(int(start), int(end), str(symbol)) for start, end, symbol in value["phones"])
        return cls(value["id"], value["split"], value["language"], value["speaker"], value["text"], phones)


@dataclass(frozen=True, slots=True)
class Sample:
    """An utterance with its sound.

    Args:
        utterance: What is known of it.
        pcm_S: Mono 16-bit samples at 16 kHz, int16, shape (S,).
    """

    utterance: Utterance
    pcm_S: NDArray[np.int16]


@dataclass(frozen=True)
class Source:
    """Where one utterance comes from. Corpora derive their own, whose fields say all that decides the utterance.

    Args:
        name: The utterance's id, unique in its corpus.
        split: The split it belongs to.
        seconds: About how long it is; used to fill shards evenly.
    """

    name: str
    split: str
    seconds: float


class Corpus(ABC):
    """A collection of speech: it lists its sources cheaply and loads each on its own, in any process.

    Attributes:
        name: What the dataset is called.
        treatment: What is done to recordings after they are read, where anything is: equal sources with another
            treatment are other data.
    """

    name: str
    treatment: str = ""

    @abstractmethod
    def sources(self) -> Iterator[Source]:
        """Every source, in an order that is the same each time, without decoding audio."""

    @abstractmethod
    def load(self, source: Source) -> Sample:
        """One utterance with its sound. Runs in worker processes, so a corpus pickles.

        Raises:
            DataError: The source holds no usable audio; it is quarantined and the others go on.
        """

    def samples(self, source: Source) -> Iterator[Sample]:
        """Every utterance of a source: one, unless a corpus cuts long recordings.

        Raises:
            DataError: The source, or what is left of it, holds no usable audio.
        """
        yield self.load(source)
