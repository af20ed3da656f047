import gzip
import json
from pathlib import Path

import pytest

from data_prep.nemo import Nemo
from tests.data_prep.miniature import pitch_hz, prepared, steps, write_text, write_tone, write_wave


def write_rows(path: Path, *rows: dict[str, object]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def test_a_manifest_tells_span_text_speaker_and_language(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_wave(root / "wav" / "long.wav", steps(300, 600, 900))
    write_tone(root / "wav" / "b.flac", 0.5)
    long = {"audio_filepath": "wav/long.wav", "duration": 1.0}
    write_rows(
        root / "train_manifest.json",
        {**long, "offset": 1.0, "text": "zwei", "speaker": 7, "lang": "de"},
        {**long, "offset": 2.0, "text": "drei"},
        {"audio_filepath": str(root / "wav" / "b.flac"), "duration": 0.5, "text": "whole"},
    )
    write_rows(root / "dev_manifest.json", {"audio_filepath": "wav/long.wav"})
    result = prepared(Nemo(root), tmp_path / "out")
    assert result.splits() == {
        "train": {"wav/long.wav@1000", "wav/long.wav@2000", str(root / "wav" / "b.flac")},
        "dev": {"wav/long.wav"},
    }
    second = result.utterances["wav/long.wav@1000"]
    assert (second.speaker, second.language, second.text) == ("7", "de", "zwei")
    assert round(pitch_hz(result.waves["wav/long.wav@1000"]), -1) == 600
    assert round(pitch_hz(result.waves["wav/long.wav@2000"]), -1) == 900
    assert result.seconds("wav/long.wav") == 3.0
    assert result.reasons == {}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train_manifest.json", "train"),
        ("manifest_test-other.json", "test-other"),
        ("manifest.json", "train"),
        ("validation.jsonl", "dev"),
        ("an4.val.manifest.json", "an4-val"),
    ],
)
def test_a_split_is_named_by_its_file(tmp_path: Path, name: str, split: str) -> None:
    write_rows(tmp_path / name, {"audio_filepath": "a.wav", "duration": 1})
    assert [source.split for source in Nemo(tmp_path).sources()] == [split]


def test_a_gzipped_manifest_is_read_alone(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav")
    with gzip.open(tmp_path / "train.json.gz", "wt") as file:
        file.write(json.dumps({"audio_filepath": "a.wav", "duration": 0.5}))
    write_rows(tmp_path / "dev.json", {"audio_filepath": "a.wav", "duration": 0.5})
    assert [(s.split, s.problem) for s in Nemo(tmp_path / "train.json.gz").sources()] == [("train", "")]


def test_bad_lines_are_named_and_the_others_kept(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_tone(root / "a.wav")
    lines = [
        '{"audio_filepath": "a.wav", "duration": 0.5}',
        '{"audio_filepath": "a.wav", ',
        '{"duration": 0.5}',
        '["a.wav"]',
        '{"audio_filepath": "a.wav", "offset": -1, "duration": 2}',
        '{"audio_filepath": "gone.wav", "duration": 2}',
        '{"audio_filepath": "a.wav", "offset": 3.0, "duration": 2}',
    ]
    write_text(root / "train.json", "\n".join(lines))
    result = prepared(Nemo(root), tmp_path / "out")
    assert set(result.utterances) == {"a.wav"}
    assert "line 2" in result.reasons["train.json (line 2)"]
    assert "no audio_filepath" in result.reasons["train.json (line 3)"]
    assert "no JSON object" in result.reasons["train.json (line 4)"]
    assert "no span of time" in result.reasons["a.wav@-1000"]
    assert "no file" in result.reasons["gone.wav"]
    assert "no span from 3.0" in result.reasons["a.wav@3000"]
