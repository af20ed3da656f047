from collections import Counter
from pathlib import Path

import pytest
from torchaudio.datasets import VCTK_092

from data_prep.vctk import VCTK
from ossicle.core.errors import ConfigError, DataError
from tests.data_prep.miniature import prepared, write_text, write_tone

SPEAKERS = ("p225", "p226", "p280", "p315", "s5")


def make(root: Path) -> Path:
    """As released: no texts of p315, nothing by the second microphone of p280."""
    base = root / "VCTK-Corpus-0.92"
    for speaker in SPEAKERS:
        for number in (1, 2):
            name = f"{speaker}_{number:03d}"
            for mic in ("mic1", "mic2"):
                if (speaker, mic) != ("p280", "mic2"):
                    path = base / "wav48_silence_trimmed" / speaker / f"{name}_{mic}.flac"
                    write_tone(path, 0.4 + number / 10 + (mic == "mic2"), 48_000)
            if speaker != "p315":
                write_text(base / "txt" / speaker / f"{name}.txt", f"Please call Stella, {speaker} {number}.\n")
    write_text(base / "wav48_silence_trimmed/log.txt", "trimmed")
    lines = ["ID  AGE  GENDER  ACCENTS  REGION COMMENTS ", "p225  23  F    English    Southern  England"]
    write_text(base / "speaker-info.txt", "\n".join(lines))
    return root


def test_speakers_texts_and_lengths_come_back_at_16_khz(tmp_path: Path) -> None:
    result = prepared(VCTK(make(tmp_path / "in"), dev_fraction=0.2, test_fraction=0.2), tmp_path / "out")
    assert set(result.utterances) == {f"{speaker}_00{number}" for speaker in SPEAKERS for number in (1, 2)}
    said = result.utterances["p226_002"]
    assert (said.speaker, said.language, said.text) == ("p226", "en", "Please call Stella, p226 2.")
    assert result.utterances["p315_001"].text == ""
    assert result.seconds("p226_002") == pytest.approx(0.6, abs=1e-3)
    assert result.reasons == {}
    splits = {found.speaker: found.split for found in result.utterances.values()}
    assert Counter(splits.values()) == {"train": 3, "dev": 1, "test": 1}
    assert all(found.split == splits[found.speaker] for found in result.utterances.values())


@pytest.mark.parametrize("mic", ["mic1", "mic2"])
def test_recordings_with_texts_are_those_that_torchaudio_lists(tmp_path: Path, mic: str) -> None:
    make(tmp_path)
    theirs = {"_".join(sample) for sample in VCTK_092(str(tmp_path), mic)._sample_ids}
    ours = {source.name for source in VCTK(tmp_path, mic).sources()}
    assert ours == theirs | {"p315_001", "p315_002"}


def test_splits_are_by_speaker_and_about_as_large_as_asked() -> None:
    speakers = [f"p{number}" for number in range(225, 335)]
    splits = VCTK("nowhere", dev_fraction=0.05, test_fraction=0.1)._splits(speakers)
    assert Counter(splits.values()) == {"train": 93, "test": 11, "dev": 6}
    assert VCTK("nowhere", dev_fraction=0.05, test_fraction=0.1)._splits(speakers[::-1]) == splits


def test_damaged_files_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    base = make(tmp_path / "in") / "VCTK-Corpus-0.92"
    (base / "txt/p225/p225_001.txt").write_bytes(b"\xff\xfe")
    (base / "wav48_silence_trimmed/p225/p225_002_mic1.flac").write_bytes(b"")
    result = prepared(VCTK(tmp_path / "in"), tmp_path / "out")
    assert set(result.reasons) == {"p225_001", "p225_002"}
    assert "UTF-8" in result.reasons["p225_001"]
    assert len(result.utterances) == 8


def test_wrong_folders_and_arguments_are_refused(tmp_path: Path) -> None:
    (tmp_path / "wav48").mkdir()  # the release before, with other recordings
    with pytest.raises(DataError, match=r"does not look like VCTK 0\.92"):
        list(VCTK(tmp_path).sources())
    with pytest.raises(ConfigError, match="choose from mic1, mic2"):
        VCTK(tmp_path, "mic3")
    with pytest.raises(ConfigError, match="leave nothing for train"):
        VCTK(tmp_path, dev_fraction=0.5, test_fraction=0.5)
