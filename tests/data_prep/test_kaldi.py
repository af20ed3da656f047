from pathlib import Path

import pytest

from data_prep.kaldi import Kaldi
from ossicle.core.errors import DataError
from tests.data_prep.miniature import pitch_hz, prepared, steps, write_text, write_tone, write_wave


def make(root: Path) -> Path:
    """Two folders of a recipe: train with segments of a long recording, dev without."""
    write_wave(root / "audio" / "call.wav", steps(300, 600, 900))
    write_tone(root / "audio" / "b.flac", 0.75)
    train, dev = root / "data" / "train", root / "data" / "valid"
    write_text(train / "wav.scp", f"call {root}/audio/call.wav\nloud {root}/audio/b.flac\n")
    write_text(
        train / "segments",
        "call-0001 call 0.00 1.00\ncall-0002 call 1.00 2.00\ncall-0003 call 2.0 -1\nloud-1 loud 0 0.5 0\n",
    )
    write_text(train / "utt2spk", "call-0001 anna\ncall-0002 bob\ncall-0003 anna\nloud-1 bob\n")
    write_text(train / "spk2gender", "anna f\nbob m\n")
    write_text(train / "utt2lang", "call-0001 de\ncall-0003 pl\n")
    write_text(train / "text", "call-0001 guten  Tag\ncall-0002 \ncall-0003 cześć wam\n")
    write_text(dev / "wav.scp", f"d1\t{root}/audio/b.flac\n")
    return root


def test_segments_speakers_languages_and_texts_are_joined(tmp_path: Path) -> None:
    result = prepared(Kaldi(make(tmp_path) / "data"), tmp_path / "out")
    assert result.splits() == {"train": {"call-0001", "call-0002", "call-0003", "loud-1"}, "dev": {"d1"}}
    found = {name: (meta.speaker, meta.language, meta.text) for name, meta in result.utterances.items()}
    assert found["call-0001"] == ("anna", "de", "guten  Tag")
    assert found["call-0002"] == ("bob", "", "")
    assert found["call-0003"] == ("anna", "pl", "cześć wam")
    assert found["d1"] == ("", "", "")
    assert [round(pitch_hz(result.waves[f"call-000{n}"]), -1) for n in (1, 2, 3)] == [300, 600, 900]
    assert result.seconds("call-0003") == 1.0
    assert result.seconds("loud-1") == 0.5
    assert result.reasons == {}


def test_a_folder_alone_is_a_split_that_can_be_renamed(tmp_path: Path) -> None:
    make(tmp_path)
    assert {s.split for s in Kaldi(tmp_path / "data" / "train").sources()} == {"train"}
    assert {s.split for s in Kaldi(tmp_path / "data" / "train", splits={"train": "main"}).sources()} == {"main"}
    assert {s.name for s in Kaldi(tmp_path / "data", splits={"train": None}).sources()} == {"d1"}


def test_commands_are_refused_and_never_executed(tmp_path: Path) -> None:
    write_tone(tmp_path / "good.wav")
    touched = tmp_path / "touched"
    lines = [
        f"piped touch {touched}; cat good.wav |",
        f"middle cat good.wav | touch {touched} |",
        "archive raw.ark:1024",
        "stdin -",
        "gone none.wav",
        "good good.wav",
        "empty",
        "good good.wav",
    ]
    write_text(tmp_path / "wav.scp", "\n".join(lines) + "\n")
    result = prepared(Kaldi(tmp_path, splits={tmp_path.name: "train"}), tmp_path / "out")
    assert not touched.exists()
    assert set(result.utterances) == {"good"}
    assert "commands are not executed" in result.reasons["piped"]
    assert "commands are not executed" in result.reasons["middle"]
    assert "in an archive" in result.reasons["archive"]
    assert "no path" in result.reasons["stdin"]
    assert "no path" in result.reasons["empty"]
    assert "none.wav, and there is none" in result.reasons["gone"]
    assert "names two utterances good" in result.reasons["good (again)"]


def test_bad_segments_are_named_by_their_lines(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 1.0)
    write_text(tmp_path / "wav.scp", "a a.wav\n")
    write_text(tmp_path / "segments", "u1 a 0 0.5\nu2 a 0.5 0.2\nu3 b 0 1\nu4 a zero 1\nu5 a 0.5 9\n")
    result = prepared(Kaldi(tmp_path, splits={tmp_path.name: "train"}), tmp_path / "out")
    assert set(result.utterances) == {"u1"}
    assert "line 2" in result.reasons["u2"]
    assert "no recording b" in result.reasons["u3"]
    assert "line 4" in result.reasons[f"{tmp_path.name}/segments (line 4)"]
    assert "no span from 0.5 to 9.0 s" in result.reasons["u5"]


def test_relative_paths_begin_at_root(tmp_path: Path) -> None:
    write_tone(tmp_path / "recipe" / "corpus" / "a.wav")
    write_text(tmp_path / "recipe" / "data" / "train" / "wav.scp", "a corpus/a.wav\n")
    folder = tmp_path / "recipe" / "data"
    assert [s.problem for s in Kaldi(folder, root=tmp_path / "recipe").sources()] == [""]
    assert "there is none" in next(Kaldi(folder).sources()).problem


def test_a_folder_without_wav_scp_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \*/wav\.scp"):
        list(Kaldi(tmp_path).sources())
