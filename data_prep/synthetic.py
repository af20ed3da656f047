"""The embedded corpus: speech in six languages by voices of many kinds, with exact phone times, from a seed alone."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from typing_extensions import override

from data_prep.espeak import say
from ossicle.core.errors import ConfigError
from ossicle.core.seeds import derive_seed, numpy_generator
from ossicle.data.audio import RATE_HZ, to_pcm
from ossicle.data.utterance import Corpus, Phone, Sample, Source, Utterance

LANGUAGES = ("en-us", "de", "es", "fr", "it", "pl")
"""eSpeak NG's names; the corpus's own sentences for each lie in the folder texts."""

# timbres of the library: formants, breath, roughness and the shape of the glottal pulse differ
# fmt: off
_VARIANTS = (
    "f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5",
    "m6", "m7", "m8", "Andy", "Annie", "adam", "anika", "antonio", "aunty", "belinda",
    "caleb", "david", "ed", "edward", "grandma", "grandpa", "iven", "john", "kaukovalta", "linda",
    "marcelo", "Michael", "miguel", "paul", "pedro", "quincy", "rob", "robert", "steph", "travis",
)
# fmt: on
_SHARES = {"test": 0.15, "dev": 0.07}
_CHARACTERS_PER_S = 18.9  # of text, at the standard rate, pauses included
_STANDARD_RATE = 175


@dataclass(frozen=True)
class SyntheticSource(Source):
    """An utterance to be said.

    Args:
        text: What is said.
        language: eSpeak NG's name of the language.
        speaker: The voice's name in the corpus.
        variant: eSpeak NG's name of the timbre.
        rate: Words a minute.
        pitch: Base pitch, 0 to 100.
        pitch_range: Liveliness of the melody, 0 to 100.
        noise_seed: Seed of the noise in the sound.
    """

    text: str
    language: str
    speaker: str
    variant: str
    rate: int
    pitch: int
    pitch_range: int
    noise_seed: int


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker: a timbre with habits of pitch and pace.

    Args:
        speaker: Its name in the corpus.
        variant: eSpeak NG's name of the timbre; no two voices share one.
        rate: Words a minute on average.
        pitch: Base pitch on average.
        pitch_range: Liveliness of the melody.
    """

    speaker: str
    variant: str
    rate: int
    pitch: int
    pitch_range: int


class SyntheticCorpus(Corpus):
    """Speech made by eSpeak NG, about as long as asked for, the same from the same arguments.

    Voices and clauses of dev and test are in no other split. Every voice speaks every language, so that neither tells
    the other. Phones are of one inventory for all languages, :func:`data_prep.espeak.simplify`.

    Args:
        hours: About how many hours there are in all; 7 % are dev, 15 % are test.
        seed: Decides texts, voices and sounds.
        num_voices: How many voices there are; an eighth of them, two at least, are dev's, and as many are test's.
        languages: Which of the six languages are spoken.

    Raises:
        ConfigError: A number is out of range, or a language has no texts.
    """

    def __init__(
        self, hours: float = 1.0, seed: int = 0, num_voices: int = 32, languages: Sequence[str] = LANGUAGES
    ) -> None:
        unknown = sorted(set(languages) - set(LANGUAGES))
        if unknown or not languages:
            raise ConfigError(f"languages={list(languages)} is not spoken here", f"choose from {', '.join(LANGUAGES)}")
        if not 6 <= num_voices <= len(_VARIANTS):
            raise ConfigError(f"num_voices={num_voices} is out of range", f"choose from 6 to {len(_VARIANTS)}")
        if not 0 < hours < math.inf:
            raise ConfigError(f"hours={hours} is no length", "give a positive number")
        self.name = "synthetic"
        self.hours = hours
        self.seed = seed
        self.num_voices = num_voices
        self.languages = tuple(languages)

    def voices(self) -> dict[str, list[Voice]]:
        """The voices of each split."""
        draw = numpy_generator(self.seed, "voices")
        variants = [_VARIANTS[i] for i in draw.permutation(len(_VARIANTS))[: self.num_voices]]
        # pitch and rate run over their ranges in orders of their own, so that no two voices share them
        pitches = draw.permutation(self.num_voices) * 55 // max(1, self.num_voices - 1) + 22
        rates = draw.permutation(self.num_voices) * 70 // max(1, self.num_voices - 1) + 145
        ranges = draw.permutation(self.num_voices) * 50 // max(1, self.num_voices - 1) + 30
        voices = [
            Voice(f"{variant.lower()}-p{pitch}-r{rate}", variant, int(rate), int(pitch), int(span))
            for variant, pitch, rate, span in zip(variants, pitches, rates, ranges, strict=True)
        ]
        held = max(2, self.num_voices // 8)
        return {"train": voices[2 * held :], "dev": voices[:held], "test": voices[held : 2 * held]}

    @override
    def sources(self) -> Iterator[SyntheticSource]:
        for split, voices in self.voices().items():
            share = _SHARES.get(split, 1 - sum(_SHARES.values()))
            seen: set[str] = set()
            seconds, number = 0.0, 0
            while seconds < self.hours * 3600 * share:
                source = self._source(split, voices, number, seen)
                seconds += source.seconds
                number += 1
                yield source

    @override
    def load(self, source: Source) -> Sample:
        assert isinstance(source, SyntheticSource)
        voice = f"{source.language}+{source.variant}"
        settings = {"rate": source.rate, "pitch": source.pitch, "pitch_range": source.pitch_range}
        speech = say(source.text, voice, **settings, seed=source.noise_seed)
        pcm_S = to_pcm(speech.pcm_S.astype(np.float32) / 32768, speech.rate_hz)
        scale = RATE_HZ / speech.rate_hz
        bounds = [min(round(phone.end * scale), len(pcm_S)) for phone in speech.phones]
        bounds[-1] = len(pcm_S)
        starts = [0, *bounds[:-1]]
        phones = tuple(
            Phone(start, end, phone.symbol)
            for start, end, phone in zip(starts, bounds, speech.phones, strict=True)
            if end > start
        )
        return Sample(Utterance(source.name, source.split, source.language, source.speaker, source.text, phones), pcm_S)

    def _source(self, split: str, voices: list[Voice], number: int, seen: set[str]) -> SyntheticSource:
        voice = voices[number % len(voices)]
        language = self.languages[(number // len(voices) + number % len(voices)) % len(self.languages)]
        attempt = 0
        # in a large corpus texts may come again, said by other voices: sooner that than no end
        while (text := self._text(split, language, number, attempt)) in seen and attempt < 100:
            attempt += 1
        seen.add(text)
        draw = numpy_generator(self.seed, "manner", split, number)
        rate = voice.rate + int(draw.integers(-8, 9))
        return SyntheticSource(
            name=f"{split}/{voice.speaker}/{language}-{number:06d}",
            split=split,
            seconds=len(text) / _CHARACTERS_PER_S * _STANDARD_RATE / rate,
            text=text,
            language=language,
            speaker=voice.speaker,
            variant=voice.variant,
            rate=rate,
            pitch=voice.pitch + int(draw.integers(-3, 4)),
            pitch_range=voice.pitch_range,
            noise_seed=derive_seed(self.seed, "noise", split, number) % 2**31,
        )

    def _text(self, split: str, language: str, number: int, attempt: int) -> str:
        """A clause, an opening and a clause, or an opening and two clauses: 3 to 12 seconds of speech."""
        draw = numpy_generator(self.seed, "text", split, language, number, attempt)
        parts = read_parts(language)

        def pick(part: str) -> str:
            return parts[part][int(draw.integers(len(parts[part])))]

        num_clauses = 2 if draw.random() < 0.25 else 1
        opens = num_clauses == 2 or draw.random() < 0.5
        clauses: list[str] = []
        while len(clauses) < num_clauses:
            subject, verb, thing, place = pick("subject"), pick("verb"), pick("object"), pick("place")
            clause = f"{subject} {verb} {thing} {place}"
            if clause_split(clause) != split:
                continue
            if clauses or not opens:
                clauses.append(clause)
            elif language == "de":  # the verb stands second: it follows the opening
                clauses.append(f"{pick('time')} {verb} {subject} {place} {thing}")
            else:
                clauses.append(f"{pick('time')}, {clause}")
        text = f", {pick('joiner')} ".join(clauses)
        return f"{text[0].upper()}{text[1:]}."


def clause_split(clause: str) -> str:
    """The one split whose texts may hold a clause, by its hash: a sixth of all is dev's, a sixth test's."""
    place = hashlib.blake2b(clause.encode(), digest_size=2).digest()[0] % 6
    return {0: "dev", 1: "test"}.get(place, "train")


@cache
def read_parts(language: str) -> dict[str, tuple[str, ...]]:
    """Phrases of a language, by what they are in a sentence."""
    text = (Path(__file__).parent / "texts" / f"{language}.txt").read_text(encoding="utf-8")
    blocks = [block.strip().split("\n", 1) for block in text.split("# ") if block.strip()]
    return {name.strip(): tuple(phrase.strip() for phrase in phrases.split(";")) for name, phrases in blocks}
