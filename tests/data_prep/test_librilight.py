import json
from pathlib import Path

import pytest
from torchaudio.datasets.librilight_limited import LibriLightLimited

from data_prep.librilight import LibriLight, join_spans
from ossicle.core.errors import ConfigError, DataError
from tests.data_prep.miniature import pitch_hz, prepared, steps, write_text, write_tone, write_wave

BOOK = "small/100/sea_fairies_0812_librivox_64kb_mp3"
CHAPTER = f"{BOOK}/01_baum_sea_fairies_64kb"
HISTORY = "medium/1001/holland/history_01"


def describe(path: Path, spans: list[list[float]]) -> None:
    book = {"id": "2627", "title": "Sea Fairies", "meta_genre": "Literature"}
    write_text(path, json.dumps({"speaker": "100", "book_meta": book, "snr": 7.1, "voice_activity": spans}))


def make(root: Path) -> Path:
    write_wave(root / f"{CHAPTER}.flac", steps(200, 400, 600, 800, 1000, 1200))
    describe(root / f"{CHAPTER}.json", [[0.1, 0.9], [1.0, 1.9], [3.0, 3.9], [4.0, 4.05]])
    write_wave(root / f"{HISTORY}.flac", steps(300, 500, 700))
    describe(root / f"{HISTORY}.json", [[0.0, 3.0]])
    return root


def test_recordings_are_cut_at_the_silences_that_the_corpus_tells(tmp_path: Path) -> None:
    corpus = LibriLight(make(tmp_path / "in"), min_s=0.2, max_s=2.0)
    result = prepared(corpus, tmp_path / "out")
    first, second = f"{CHAPTER}/00000100-00001900", f"{CHAPTER}/00003000-00004050"
    halves = [f"{HISTORY}/00000000-00001500", f"{HISTORY}/00001500-00003000"]
    assert result.splits() == {"train": {first, second, *halves}}
    assert [result.seconds(name) for name in (first, second, *halves)] == pytest.approx([1.8, 1.05, 1.5, 1.5], abs=1e-3)
    assert pitch_hz(result.waves[second][:12_000]) == pytest.approx(800, abs=5)
    assert pitch_hz(result.waves[halves[1]][-8_000:]) == pytest.approx(700, abs=5)
    assert {utterance.speaker for utterance in result.utterances.values()} == {"100", "1001"}
    assert {utterance.language for utterance in result.utterances.values()} == {"en"}


def test_recordings_may_stay_whole_and_then_need_no_voice_activity(tmp_path: Path) -> None:
    make(tmp_path / "in")
    (tmp_path / "in" / f"{CHAPTER}.json").unlink()
    result = prepared(LibriLight(tmp_path / "in", ["small"], max_s=None), tmp_path / "out")
    assert set(result.utterances) == {CHAPTER}
    assert result.seconds(CHAPTER) == 6.0


def test_no_piece_is_longer_or_shorter_than_asked_and_no_speech_of_length_is_lost() -> None:
    spans = [(0.0, 3.0), (3.5, 4.0), (4.1, 70.0), (70.2, 70.4), (200.0, 200.5), (300.0, 309.9)]
    pieces = list(join_spans(spans, 1.0, 10.0))
    assert all(1.0 <= end - start <= 10.0 + 1e-9 for start, end in pieces)
    assert pieces[0] == (0.0, 4.0)
    assert pieces[-1] == (300.0, 309.9)
    assert sum(end - start for start, end in pieces[1:-1]) == pytest.approx(70.4 - 4.1, abs=0.5)
    assert not any(start <= 200.2 <= end for start, end in pieces)


def limited(root: Path) -> Path:
    base = root / "librispeech_finetuning"
    for number, place in enumerate(["1h/0/clean/10/1", "1h/3/other/11/2", "9h/clean/12/3", "9h/other/13/4"]):
        reader, chapter = place.split("/")[-2:]
        write_text(base / place / f"{reader}-{chapter}.trans.txt", f"{reader}-{chapter}-0000 TEXT {number}\n")
        write_tone(base / place / f"{reader}-{chapter}-0000.flac")
    write_text(base / "phones" / "phones_mapping.json", "{}")
    return root


def test_limited_sets_hold_each_other_and_their_texts(tmp_path: Path) -> None:
    limited(tmp_path)
    result = prepared(LibriLight(tmp_path, ["10h"]), tmp_path / "out")
    assert {name: utterance.text for name, utterance in result.utterances.items()} == {
        "10-1-0000": "TEXT 0",
        "11-2-0000": "TEXT 1",
        "12-3-0000": "TEXT 2",
        "13-4-0000": "TEXT 3",
    }
    for part in ("10min", "1h", "10h"):
        theirs = [name for _, name in LibriLightLimited(tmp_path, part)._fileids_paths]
        assert sorted(source.name for source in LibriLight(tmp_path, [part]).sources()) == sorted(theirs)


def test_a_recording_without_voice_activity_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    make(tmp_path / "in")
    write_text(tmp_path / "in" / f"{CHAPTER}.json", '{"speaker": "100"}')
    result = prepared(LibriLight(tmp_path / "in"), tmp_path / "out")
    assert set(result.utterances) == {f"{HISTORY}/00000000-00003000"}
    assert "does not tell where speech is" in result.reasons[CHAPTER]


def test_wrong_folders_and_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not look like librilight"):
        list(LibriLight(tmp_path).sources())
    with pytest.raises(DataError, match="10h is not whole"):
        list(LibriLight(tmp_path, ["10h"]).sources())
    with pytest.raises(ConfigError, match="the same speech twice"):
        LibriLight(tmp_path, ["1h", "10h"])
    with pytest.raises(ConfigError, match="leave no length"):
        LibriLight(tmp_path, min_s=5, max_s=5)
