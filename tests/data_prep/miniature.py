"""Tiny corpora in the layouts of large ones: tones in place of speech, and a way there and back through shards."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from ossicle.data.audio import decode
from ossicle.data.card import Summary
from ossicle.data.index import DatasetIndex
from ossicle.data.prepare import prepare, verify
from ossicle.data.utterance import Corpus, Utterance

_KINDS = {
    ".flac": ("FLAC", "PCM_16"),
    ".wav": ("WAV", "PCM_16"),
    ".mp3": ("MP3", None),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
}


def write_tone(path: Path, seconds: float = 0.5, rate_hz: int = 16_000, hz: float = 300.0) -> None:
    """Write a mono tone in the format of the path's suffix."""
    write_wave(path, 0.3 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz), rate_hz)


def write_wave(path: Path, wave: np.ndarray, rate_hz: int = 16_000) -> None:
    """Write mono samples in [-1, 1] in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind, subtype = _KINDS[path.suffix]
    soundfile.write(path, wave, rate_hz, format=kind, subtype=subtype)


def write_text(path: Path, text: str) -> None:
    """Write a list of the corpus as UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def steps(*hz: float, seconds: float = 1.0) -> np.ndarray:
    """Tones of one length after another, so that a span can be told by its pitch."""
    times = np.arange(round(16_000 * seconds)) / 16_000
    return np.concatenate([0.3 * np.sin(2 * np.pi * each * times) for each in hz])


def pitch_hz(wave: np.ndarray) -> float:
    """The strongest frequency."""
    return float(np.argmax(np.abs(np.fft.rfft(wave))) * 16_000 / len(wave))


@dataclass(frozen=True)
class Prepared:
    """What became of a corpus: its utterances by name, their sound, and the reasons of what was bad."""

    utterances: dict[str, Utterance]
    waves: dict[str, np.ndarray]
    reasons: dict[str, str]
    summary: Summary

    def seconds(self, name: str) -> float:
        return len(self.waves[name]) / 16_000

    def splits(self) -> dict[str, set[str]]:
        """Names by split."""
        found: dict[str, set[str]] = {}
        for name, utterance in self.utterances.items():
            found.setdefault(utterance.split, set()).add(name)
        return found


def prepared(corpus: Corpus, output: Path) -> Prepared:
    """Prepare a corpus, verify it and read all of it back through its index."""
    # listing is repeatable, or a killed run could not go on
    assert [source.name for source in corpus.sources()] == [source.name for source in corpus.sources()]
    summary = prepare(corpus, output, shard_s=5, workers=1, max_bad_fraction=1.0)
    utterances: dict[str, Utterance] = {}
    waves: dict[str, np.ndarray] = {}
    for split in summary.splits:
        index = DatasetIndex.load(output, split)
        for row in range(index.num_utterances):
            meta = index.read_meta(row)
            assert meta.split == split
            utterances[meta.id] = meta
            waves[meta.id] = decode(index.read_audio(row))
    assert verify(output) == len(utterances)
    quarantine = output / "quarantine.jsonl"
    lines = quarantine.read_text(encoding="utf-8").splitlines() if quarantine.exists() else []
    reasons = {entry["name"]: entry["reason"] for entry in map(json.loads, lines)}
    return Prepared(utterances, waves, reasons, summary)
