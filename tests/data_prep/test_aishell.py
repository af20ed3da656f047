from pathlib import Path

import pytest

from data_prep.aishell import Aishell
from ossicle.core.errors import ConfigError, DataError
from tests.data_prep.miniature import prepared, write_text, write_tone

TEXTS = {
    "train/S0002/BAC009S0002W0122": "而 对 楼市 成交 抑制 作用 最 大 的 限 购",
    "train/S0002/BAC009S0002W0123": "也 成为 地方 政府 的 眼中 钉",
    "dev/S0724/BAC009S0724W0121": "广州 市 房地产 中介 协会 分析",
    "test/S0764/BAC009S0764W0121": "甚至 出现 交易 几乎 停滞 的 情况",
}


def make(root: Path) -> Path:
    base = root / "data_aishell"
    for place in TEXTS:
        write_tone(base / "wav" / f"{place}.wav", 0.75)
    lines = [f"{place.split('/')[-1]} {text}\n" for place, text in TEXTS.items()]
    write_text(base / "transcript/aishell_transcript_v0.8.txt", "".join(lines))
    (base / "wav/S0002.tar.gz").touch()
    return root


def test_speakers_texts_splits_and_lengths_come_back(tmp_path: Path) -> None:
    result = prepared(Aishell(make(tmp_path / "in")), tmp_path / "out")
    assert result.splits() == {
        "train": {"BAC009S0002W0122", "BAC009S0002W0123"},
        "dev": {"BAC009S0724W0121"},
        "test": {"BAC009S0764W0121"},
    }
    said = result.utterances["BAC009S0724W0121"]
    assert (said.speaker, said.language, said.text) == ("S0724", "zh", "广州 市 房地产 中介 协会 分析")
    assert result.seconds("BAC009S0724W0121") == 0.75
    assert {source.seconds for source in Aishell(tmp_path / "in").sources()} == {0.75}
    assert result.reasons == {}


def test_parts_are_chosen_and_the_inner_folder_serves_too(tmp_path: Path) -> None:
    make(tmp_path)
    sources = Aishell(tmp_path / "data_aishell", ["test", "dev"]).sources()
    assert [source.split for source in sources] == ["dev", "test"]
    with pytest.raises(ConfigError, match="choose from train, dev, test"):
        Aishell(tmp_path, ["valid"])


def test_missing_files_are_named_and_recordings_without_a_text_are_kept(tmp_path: Path) -> None:
    base = make(tmp_path / "in") / "data_aishell"
    (base / "wav/train/S0002/BAC009S0002W0122.wav").unlink()
    write_tone(base / "wav/train/S0002/BAC009S0002W0999.wav")
    write_text(base / "transcript/aishell_transcript_v0.8.txt", "BAC009S0002W0122 而 对\nBAC009S0764W0121\n")
    result = prepared(Aishell(tmp_path / "in"), tmp_path / "out")
    assert "no such file" in result.reasons["BAC009S0002W0122"]
    assert "without a text" in result.reasons["BAC009S0764W0121"]
    assert set(result.utterances) == {"BAC009S0002W0123", "BAC009S0002W0999", "BAC009S0724W0121"}
    assert result.utterances["BAC009S0002W0999"].text == ""


def test_wrong_folders_and_packed_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not look like AISHELL-1"):
        list(Aishell(tmp_path).sources())
    (tmp_path / "data_aishell/wav").mkdir(parents=True)
    (tmp_path / "data_aishell/wav/S0002.tar.gz").touch()
    with pytest.raises(DataError, match="holds archives alone") as caught:
        list(Aishell(tmp_path).sources())
    assert "tar xf" in caught.value.mend
    make(tmp_path)
    (tmp_path / "data_aishell/transcript/aishell_transcript_v0.8.txt").unlink()
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        list(Aishell(tmp_path).sources())
