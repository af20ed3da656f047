"""Long recordings cut at silences, which a voice activity detector finds, into pieces of a range of lengths."""

import logging
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from data_prep.pieces import Limits, cut_pieces, speech_spans
from data_prep.recordings import Recording, Recordings, describe
from data_prep.streaming import in_spans, length_s, stream_audio
from data_prep.vad import detector_version, speech_probabilities
from ossicle.core.errors import ConfigError, DataError
from ossicle.data.audio import RATE_HZ
from ossicle.data.utterance import Corpus, Phone, Sample, Source, Utterance

_LOG = logging.getLogger(__name__)


class Cut(Corpus):
    """Another corpus whose long recordings are cut at silences; those up to max_s long pass as they are.

    The pieces of a recording hold all its speech and as little silence as may be, and part in silences, at the least
    energetic place. Only a stretch of speech longer than max_s is cut in speech, at its least energetic
    places. A piece is shorter than min_s only where it has not enough silence around it and would be longer than max_s
    with either neighbour. A piece is called NAME/START-END, in milliseconds, and keeps speaker, language, split and
    the phones in it. A text tells no times: it is kept where one piece holds all speech, and dropped elsewhere.

    A file is read twice, to find its silences and to take its pieces, in blocks of half a minute: memory holds a block,
    a piece and some 50 bytes for each 32 ms. Corpora that do more than read files give whole recordings, which stay in
    memory while they are cut. All pieces of a recording go to one shard.

    Args:
        corpus: What is cut.
        min_s: Shortest length of a piece, in seconds.
        max_s: Longest length, at least twice min_s.
        min_silence_s: Shorter silences are no place to cut.
        pad_s: Silence that stays on each side of a piece's speech, where there is as much.
        threshold: Probability of speech, by silero-vad, from which there is some.

    Raises:
        ConfigError: The lengths or the threshold make no sense.
        MissingExtraError: The extra vad is not installed.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        min_s: float = 2.0,
        max_s: float = 20.0,
        min_silence_s: float = 0.2,
        pad_s: float = 0.25,
        threshold: float = 0.5,
    ) -> None:
        if not 0 < min_s <= max_s / 2 < float("inf"):
            problem = f"pieces cannot always be from {min_s} to {max_s} s long"
            raise ConfigError(problem, "give a positive cut.min_s, and a cut.max_s of at least twice as much")
        if min_silence_s <= 0 or pad_s < 0 or not 0 < threshold < 1:
            problem = f"min_silence_s={min_silence_s}, pad_s={pad_s} and threshold={threshold} find no silences"
            raise ConfigError(problem, "give a positive silence, a pad of 0 or more and a threshold between 0 and 1")
        self.corpus = corpus
        self.name = corpus.name
        self.limits = Limits(round(min_s * RATE_HZ), round(max_s * RATE_HZ), round(pad_s * RATE_HZ))
        self.min_silence_s = min_silence_s
        self.threshold = threshold
        lengths = f"{min_s}-{max_s} s, silences of {min_silence_s} s, {pad_s} s around, threshold {threshold}"
        self.treatment = f"{corpus.treatment}cut by {detector_version()}: {lengths};"

    @override
    def sources(self) -> Iterator[Source]:
        return self.corpus.sources()

    @override
    def load(self, source: Source) -> Sample:
        """The recording whole; :meth:`samples` cuts it."""
        return self.corpus.load(source)

    @override
    def samples(self, source: Source) -> Iterator[Sample]:
        corpus = self.corpus
        if isinstance(corpus, Recordings) and isinstance(source, Recording) and corpus.is_plain(source):
            yield from self._file(corpus, source)
            return
        for sample in corpus.samples(source):
            if len(sample.pcm_S) <= self.limits.max_samples:
                yield sample
            else:
                pieces = self.pieces([sample.pcm_S], sample.utterance.id)
                yield from _parts(sample.utterance, [sample.pcm_S], pieces)

    def pieces(self, blocks: Iterable[NDArray[np.int16]], name: str) -> list[tuple[int, int]]:
        """Where a recording is cut.

        Args:
            blocks: Its samples at 16 kHz, int16, in blocks of any length.
            name: What messages call it.

        Returns:
            First sample of each piece and the one after its last.

        Raises:
            DataError: There is no speech in it.
        """
        found = list(speech_probabilities(blocks))
        num_samples = sum(size for _, _, size in found)
        probabilities_T = np.concatenate([probabilities for probabilities, _, _ in found])
        levels_T = np.concatenate([levels for _, levels, _ in found])
        spans = speech_spans(probabilities_T, num_samples, self.threshold, round(self.min_silence_s * RATE_HZ))
        if not spans:
            raise DataError(f"{name}: no speech is found in {num_samples / RATE_HZ:.1f} s", "leave the recording out")
        return cut_pieces(spans, levels_T, num_samples, self.limits)

    def _file(self, corpus: Recordings, source: Recording) -> Iterator[Sample]:
        file = corpus.audio(source)
        name = str(file) if isinstance(file, Path) else source.name
        end_s = length_s(file, name) if source.end_s is None else source.end_s
        if (end_s - source.start_s) * RATE_HZ <= self.limits.max_samples:
            yield from corpus.samples(source)
            return
        span = (source.start_s, source.end_s, source.channel)
        pieces = self.pieces(stream_audio(file, name, *span), name)
        utterance = describe(source, round((end_s - source.start_s) * RATE_HZ))
        yield from _parts(utterance, stream_audio(file, name, *span), pieces)


def _parts(whole: Utterance, blocks: Iterable[NDArray[np.int16]], pieces: list[tuple[int, int]]) -> Iterator[Sample]:
    text = whole.text if len(pieces) == 1 else ""
    if whole.text != text:
        _say_once("texts of recordings that are cut are dropped: nothing tells which piece says what")
    for start, end, pcm_S in in_spans(blocks, pieces):
        phones = tuple(
            Phone(max(phone.start, start) - start, min(phone.end, end) - start, phone.symbol)
            for phone in whole.phones
            if phone.start < end and phone.end > start
        )
        name = f"{whole.id}/{_milliseconds(start)}-{_milliseconds(end)}"
        yield Sample(Utterance(name, whole.split, whole.language, whole.speaker, text, phones), pcm_S)


def _milliseconds(samples: int) -> str:
    return f"{samples * 1000 // RATE_HZ:08d}"


@cache
def _say_once(message: str) -> None:
    _LOG.info(message)
