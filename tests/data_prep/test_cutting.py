import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typing_extensions import override

from data_prep.cutting import Cut
from data_prep.espeak import PAUSE
from data_prep.folder import FolderCorpus
from data_prep.librilight import LibriLight
from data_prep.nemo import Nemo
from data_prep.pieces import speech_spans
from data_prep.recordings import Recording, Recordings
from data_prep.synthetic import SyntheticCorpus
from data_prep.vad import speech_probabilities
from ossicle.core.errors import ConfigError, DataError
from ossicle.data.audio import RATE_HZ, read_audio_file
from ossicle.data.prepare import prepare
from ossicle.data.utterance import Corpus, Phone, Sample, Source, Utterance
from ossicle.launch.config import compose, groups
from tests.data_prep.miniature import prepared, write_text, write_tone

pytest.importorskip("silero_vad")

SECOND = RATE_HZ


@dataclasses.dataclass(frozen=True)
class Long:
    """A recording of many utterances with pauses, and its phones without them."""

    pcm_S: np.ndarray
    phones: tuple[Phone, ...]

    def spoken(self) -> np.ndarray:
        """True where a phone is."""
        mask = np.zeros(len(self.pcm_S), bool)
        for phone in self.phones:
            mask[phone.start : phone.end] = phone.symbol != PAUSE
        return mask


@pytest.fixture(scope="module")
def long() -> Long:
    """About two minutes by eSpeak, with pauses of 0.4 to 3 s between utterances."""
    corpus = SyntheticCorpus(hours=0.1, seed=7)
    rng = np.random.default_rng(0)
    parts: list[np.ndarray] = []
    phones: list[Phone] = []
    place = 0
    for source in list(corpus.sources())[::2][:20]:
        sample = corpus.load(source)
        phones += [Phone(p.start + place, p.end + place, p.symbol) for p in sample.utterance.phones]
        pause = round(rng.uniform(0.4, 3) * SECOND)
        parts += [sample.pcm_S, np.zeros(pause, np.int16)]
        place += len(sample.pcm_S) + pause
    return Long(np.concatenate(parts), tuple(phones))


class Memory(Corpus):
    """One recording that is no file."""

    name = "memory"

    def __init__(self, long: Long) -> None:
        self.long = long

    @override
    def sources(self) -> Iterator[Source]:
        yield Source("talk", "dev", len(self.long.pcm_S) / SECOND)

    @override
    def load(self, source: Source) -> Sample:
        about = Utterance(source.name, source.split, "de", "eva", "all of it", self.long.phones)
        return Sample(about, self.long.pcm_S)


def place(name: str) -> tuple[int, int]:
    """First sample and the one after the last, to the millisecond, by a piece's name."""
    start, end = name.rsplit("/", 1)[1].split("-")
    return int(start) * SECOND // 1000, int(end) * SECOND // 1000


def begin_in(whole: np.ndarray, sample: Sample) -> int:
    """Where in its recording a piece begins, to the sample, by its sound and its name."""
    start, _ = place(sample.utterance.id)
    equal = [n for n in range(start, start + 16) if np.array_equal(whole[n:][: len(sample.pcm_S)], sample.pcm_S)]
    assert equal, sample.utterance.id
    return equal[0]


def cut_all(cut: Cut) -> list[Sample]:
    return [sample for source in cut.sources() for sample in cut.samples(source)]


@pytest.mark.parametrize(("min_s", "max_s"), [(2.0, 15.0), (5.0, 30.0), (12.0, 24.0)])
def test_pieces_hold_all_speech_and_part_in_pauses(long: Long, min_s: float, max_s: float) -> None:
    pieces = cut_all(Cut(Memory(long), min_s=min_s, max_s=max_s))
    assert len(pieces) > 3
    spoken, probabilities = long.spoken(), np.concatenate([p for p, _, _ in speech_probabilities([long.pcm_S])])
    covered = np.zeros(len(spoken), bool)
    for sample in pieces:
        assert min_s * SECOND <= len(sample.pcm_S) <= max_s * SECOND
        start, end = place(sample.utterance.id)
        covered[start : end + SECOND // 1000] = True
        inside = [phone for phone in long.phones if phone.symbol != PAUSE for edge in (start, end)
                  if phone.start + SECOND // 1000 < edge < phone.end - SECOND // 1000]  # fmt: skip
        assert not inside
    assert not (spoken & ~covered).any()
    for start, end in speech_spans(probabilities, len(spoken), 0.5, SECOND // 5):
        assert covered[start:end].all()
    assert covered.sum() < len(covered) - 2 * SECOND  # long pauses are left out


def test_a_piece_keeps_its_sound_its_phones_and_what_is_known(long: Long) -> None:
    for sample in cut_all(Cut(Memory(long), max_s=15.0)):
        about = sample.utterance
        begin = begin_in(long.pcm_S, sample)
        assert (about.split, about.language, about.speaker, about.text) == ("dev", "de", "eva", "")
        whole = {(phone.start, phone.end, phone.symbol) for phone in long.phones}
        spoken = [phone for phone in about.phones if phone.symbol != PAUSE]
        assert len(spoken) > 5
        assert {(p.start + begin, p.end + begin, p.symbol) for p in spoken} <= whole
        assert all(0 <= phone.start < phone.end <= len(sample.pcm_S) for phone in about.phones)


def test_a_text_is_kept_where_one_piece_holds_all_speech(long: Long) -> None:
    silence = np.zeros(20 * SECOND, np.int16)
    padded = Long(np.concatenate([silence, long.pcm_S[: 6 * SECOND], silence]), ())
    [piece] = cut_all(Cut(Memory(padded), max_s=15.0))
    assert piece.utterance.text == "all of it"
    assert 2 * SECOND <= len(piece.pcm_S) < 9 * SECOND


def test_files_are_cut_as_arrays_are_and_short_ones_pass_untouched(long: Long, tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    soundfile.write(root / "long.flac", long.pcm_S, SECOND)
    soundfile.write(root / "short.flac", long.pcm_S[: 15 * SECOND], SECOND)
    result = prepared(Cut(FolderCorpus(root, dev_fraction=0, test_fraction=0), max_s=15.0), tmp_path / "out")
    expected = cut_all(Cut(Memory(long), max_s=15.0))
    assert set(result.utterances) == {
        "short.flac",
        *(sample.utterance.id.replace("talk", "long.flac") for sample in expected),
    }
    for sample in expected:
        wave = result.waves[sample.utterance.id.replace("talk", "long.flac")]
        np.testing.assert_array_equal(wave * 32768, sample.pcm_S)
    assert result.seconds("short.flac") == 15.0


def test_recorded_speech_with_noise_is_cut_at_its_pauses(long: Long) -> None:
    level = np.sqrt(np.square(long.pcm_S[long.spoken()].astype(np.float64)).mean())
    noise = np.random.default_rng(0).normal(0, level * 10 ** (-15 / 20), len(long.pcm_S))
    noisy = Long(np.clip(long.pcm_S + noise, -32768, 32767).astype(np.int16), long.phones)
    pieces = cut_all(Cut(Memory(noisy), max_s=20.0))
    assert all(2 * SECOND <= len(sample.pcm_S) <= 20 * SECOND for sample in pieces)
    spoken = noisy.spoken()
    assert not any(spoken[min(edge, len(spoken) - 1)] for s in pieces for edge in place(s.utterance.id))


def test_spans_channels_and_other_rates_are_cut(long: Long, tmp_path: Path) -> None:
    half = long.pcm_S[: 60 * SECOND]
    soundfile.write(tmp_path / "two.wav", np.stack([np.zeros_like(half), half], axis=1), SECOND)

    class Second(Recordings):
        name = "second"

        @override
        def sources(self) -> Iterator[Recording]:
            yield Recording("x", "train", 50, path="two.wav", start_s=10, end_s=60, channel=1)

    pieces = cut_all(Cut(Second(tmp_path), max_s=15.0))
    whole = read_audio_file(tmp_path / "two.wav", 10, 60, 1)
    assert len(pieces) >= 3
    for sample in pieces:
        assert begin_in(whole, sample) >= 0


def test_equal_input_gives_equal_pieces_in_another_process(long: Long, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.flac", long.pcm_S, SECOND)
    write_text(tmp_path / "train.json", '{"audio_filepath": "long.flac"}')
    cut = pickle.loads(pickle.dumps(Cut(Nemo(tmp_path), max_s=15.0)))  # noqa: S301  our own
    ours = [[s.utterance.id, hashlib.sha256(s.pcm_S.tobytes()).hexdigest()] for s in cut_all(cut)]
    program = (
        "import hashlib, json, sys; from data_prep.cutting import Cut; from data_prep.nemo import Nemo;"
        "cut = Cut(Nemo(sys.argv[1]), max_s=15.0);"
        "print(json.dumps([[s.utterance.id, hashlib.sha256(s.pcm_S.tobytes()).hexdigest()]"
        " for source in cut.sources() for s in cut.samples(source)]))"
    )
    answer = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, check=True)
    assert json.loads(answer.stdout) == ours


def test_other_lengths_are_other_data(long: Long, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "long.flac", long.pcm_S[: 60 * SECOND], SECOND)

    def run(max_s: float) -> int:
        corpus = Cut(FolderCorpus(tmp_path / "in", dev_fraction=0, test_fraction=0), max_s=max_s)
        summary = prepare(corpus, tmp_path / "out", shard_s=60, workers=1, max_bad_fraction=1.0)
        return summary.splits["train"].num_utterances

    first = run(15.0)
    with pytest.raises(DataError, match="other sources or settings"):
        run(10.0)
    (tmp_path / "out" / "dataset.json").unlink()
    assert run(10.0) > first


def test_a_corpus_that_cuts_itself_is_cut_after_that(long: Long, tmp_path: Path) -> None:
    book = tmp_path / "small" / "100" / "book"
    book.mkdir(parents=True)
    soundfile.write(book / "a.flac", long.pcm_S[: 60 * SECOND], SECOND)
    write_text(book / "a.json", '{"voice_activity": [[0.0, 30.0], [30.0, 60.0]]}')
    whole = cut_all(Cut(LibriLight(tmp_path, max_s=None), max_s=15.0))
    assert {sample.utterance.id.count("/") for sample in whole} == {4}
    halves = cut_all(Cut(LibriLight(tmp_path, max_s=40.0), max_s=15.0))
    assert {sample.utterance.id.rsplit("/", 1)[0] for sample in halves} == {
        "small/100/book/a/00000000-00030000",
        "small/100/book/a/00030000-00060000",
    }
    assert all(len(sample.pcm_S) <= 15 * SECOND for sample in (*whole, *halves))
    assert Cut(LibriLight(tmp_path), max_s=15.0).treatment.startswith(LibriLight(tmp_path).treatment)


def test_a_recording_without_speech_is_named(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_tone(root / "beep.wav", 40.0)
    soundfile.write(root / "silence.flac", np.zeros(40 * SECOND, np.int16), SECOND)
    (root / "broken.flac").write_bytes((root / "silence.flac").read_bytes()[:200])
    write_tone(root / "short.wav", 0.5)
    result = prepared(Cut(FolderCorpus(root), max_s=15.0), tmp_path / "out")
    assert "no speech is found in 40.0 s" in result.reasons["silence.flac"]
    assert "no speech is found" in result.reasons["beep.wav"]
    assert "broken.flac" in result.reasons["broken.flac"]
    assert set(result.utterances) == {"short.wav"}


def test_problems_of_a_manifest_stay_what_they_are(tmp_path: Path) -> None:
    write_tone(tmp_path / "in" / "a.wav", 0.5)
    rows = ['{"audio_filepath": "a.wav"}', '{"audio_filepath": "gone.wav", "duration": 99}']
    write_text(tmp_path / "in" / "train.json", "\n".join(rows))
    result = prepared(Cut(Nemo(tmp_path / "in")), tmp_path / "out")
    assert set(result.utterances) == {"a.wav"}
    assert "no file" in result.reasons["gone.wav"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_s": 0},
        {"min_s": 9, "max_s": 15},
        {"max_s": float("inf")},
        {"pad_s": -1},
        {"threshold": 1.0},
        {"min_silence_s": 0},
    ],
)
def test_lengths_that_make_no_sense_are_refused(long: Long, wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Cut(Memory(long), **wrong)


def test_the_command_line_reaches_it() -> None:
    assert groups()["cut"] == ["vad"]
    assert compose("prepare", ["corpus=folder", "input=x"]).get("cut") is None
    config = compose("prepare", ["corpus=folder", "input=x", "cut=vad", "cut.max_s=12"])
    assert config.cut.max_s == 12
    assert config.cut._target_ == "data_prep.cutting.Cut"


# VmHWM, since ru_maxrss of a new program still counts what the process was before it
MEASURE = """
import re, sys
from pathlib import Path
from data_prep.cutting import Cut
from data_prep.nemo import Nemo
cut = Cut(Nemo(sys.argv[1]), max_s=20.0)
for source in cut.sources():
    lengths = [len(sample.pcm_S) for sample in cut.samples(source)]
    size_kb = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
    print(len(lengths), max(lengths), sum(lengths), int(size_kb) // 1024)
"""


def measure(root: Path, *names: str) -> list[list[int]]:
    """Of each file, pieces, samples of the longest and of all, and the process's largest size until then in MB."""
    write_text(root / "train.json", "".join(f'{{"audio_filepath": "{name}"}}\n' for name in names))
    answer = subprocess.run([sys.executable, "-c", MEASURE, str(root)], capture_output=True, check=True, text=True)
    return [list(map(int, line.split())) for line in answer.stdout.splitlines()]


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells a process's largest size")


def write_hours(path: Path, wave: np.ndarray, rate_hz: int, seconds: int) -> None:
    with soundfile.SoundFile(path, "w", rate_hz, 1, "PCM_16") as file:
        for place in range(0, seconds * rate_hz, len(wave)):
            file.write(wave[: seconds * rate_hz - place])


@needs_proc
def test_memory_does_not_grow_with_a_recording(long: Long, tmp_path: Path) -> None:
    write_hours(tmp_path / "a.wav", long.pcm_S, SECOND, 3 * 60)
    write_hours(tmp_path / "b.wav", long.pcm_S, SECOND, 30 * 60)
    [[count, longest, total, small_mb], [many, longest_b, total_b, large_mb]] = measure(tmp_path, "a.wav", "b.wav")
    assert max(longest, longest_b) <= 20 * SECOND
    assert many > 8 * count
    assert total_b > 8 * total
    # the float samples alone of what is longer would take 99 MB
    assert large_mb - small_mb < 25, (small_mb, large_mb)


@pytest.mark.slow
@needs_proc
def test_three_hours_at_8_khz_are_cut_in_bounded_memory(long: Long, tmp_path: Path) -> None:
    write_hours(tmp_path / "a.wav", long.pcm_S[::2], 8_000, 3 * 60)
    write_hours(tmp_path / "b.flac", long.pcm_S[::2], 8_000, 3 * 3600)
    [[*_, small_mb], [count, longest, total, large_mb]] = measure(tmp_path, "a.wav", "b.flac")
    assert longest <= 20 * SECOND
    assert count > 3 * 3600 / 20 * 0.6
    assert total > 0.5 * 3 * 3600 * SECOND
    assert large_mb - small_mb < 50  # the float samples alone would take 691 MB
