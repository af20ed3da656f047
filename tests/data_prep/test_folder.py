import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.folder import FolderCorpus, _Splits
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.seeds import derive_seed
from ossicle.data.card import Summary
from ossicle.data.index import DatasetIndex
from ossicle.data.prepare import prepare, verify
from ossicle.data.utterance import Phone, Utterance

HEADER = "path\tduration_s\tlang\tspeaker\ttext\tactive_s\tsrc_rate\tsource\tsplit"


def write_tone(path: Path, rate_hz: int = 16_000, channels: int = 1, seconds: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(2 * np.pi * 300 * np.arange(round(rate_hz * seconds)) / rate_hz)
    kinds = {".ogg": ("OGG", "VORBIS"), ".opus": ("OGG", "OPUS"), ".mp3": ("MP3", None)}
    kind, subtype = kinds.get(path.suffix.lower(), (path.suffix[1:].upper(), None))
    soundfile.write(path, np.repeat(wave[:, None], channels, 1), rate_hz, format=kind, subtype=subtype)


def write_g722(path: Path) -> None:
    pcm = (9000 * np.sin(2 * np.pi * 300 * np.arange(8000) / 16_000)).astype(np.int16)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)


def run(corpus: FolderCorpus, output: Path, max_bad_fraction: float = 1.0) -> Summary:
    return prepare(corpus, output, shard_s=60, workers=1, max_bad_fraction=max_bad_fraction)


def utterances(output: Path) -> dict[str, Utterance]:
    found: dict[str, Utterance] = {}
    for split in json.loads((output / "dataset.json").read_text(encoding="utf-8"))["splits"]:
        index = DatasetIndex.load(output, split)
        metas = [index.read_meta(row) for row in range(index.num_utterances)]
        assert {meta.split for meta in metas} == {split}
        found.update({meta.id: meta for meta in metas})
    return found


def reasons(output: Path) -> dict[str, str]:
    lines = (output / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return {entry["name"]: entry["reason"] for entry in map(json.loads, lines)}


def test_every_format_rate_and_channel_count_is_taken(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_tone(root / "a" / "1.wav", 44_100, 2)
    write_tone(root / "a" / "2.FLAC", 8_000)
    write_tone(root / "b" / "3.Mp3", 22_050, 2)
    write_tone(root / "b" / "c" / "4.ogg", 32_000)
    write_tone(root / "b" / "c" / "5.opus", 48_000)
    write_tone(root / "6.WAV", 11_025, 6)
    write_g722(root / "b" / "7.G722")
    (root / "notes.txt").write_text("no audio", encoding="utf-8")
    write_tone(root / ".hidden" / "8.wav")
    run(FolderCorpus(root), tmp_path / "out", max_bad_fraction=0.0)
    found = utterances(tmp_path / "out")
    assert set(found) == {"a/1.wav", "a/2.FLAC", "b/3.Mp3", "b/c/4.ogg", "b/c/5.opus", "6.WAV", "b/7.G722"}
    assert {meta.id: meta.speaker for meta in found.values()}["b/c/4.ogg"] == "b/c"
    assert found["6.WAV"].speaker == ""
    index = DatasetIndex.load(tmp_path / "out", "train")
    assert np.abs(index.rows["samples"].astype(int) - 8000).max() < 2500  # MP3 pads
    assert verify(tmp_path / "out") == 7


def test_a_manifest_says_language_speaker_text_and_split(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("x/1.flac", "x/2.flac", "y/3.flac"):
        write_tone(root / name)
    rows = [
        "x/1.flac\t0.5\tru\tanna\tЖили-были.\t0.4\t16000\tmine\ttrain",
        'x/2.flac\t0.5\tde\tbob\tEin "Zitat"\t0.4\t16000\tmine\tvalid',
        "y/3.flac\t0.5\tfr\tanna\t\t0.4\t16000\tmine\ttrain",
    ]
    (root / "manifest.tsv").write_text("\n".join([HEADER, *rows, ""]), encoding="utf-8")
    phones = ["path\tstart_s\tend_s\tphone", "x/1.flac\t0\t0.1\tp", "x/1.flac\t0.1\t0.9\tr", "x/1.flac\t0.9\t1\tq"]
    (root / "phones.tsv").write_text("\n".join(phones), encoding="utf-8")
    run(FolderCorpus(root), tmp_path / "out")
    found = utterances(tmp_path / "out")
    spans = (Phone(0, 1600, "p"), Phone(1600, 8000, "r"))  # cut at the end of the sound
    assert found["x/1.flac"] == Utterance("x/1.flac", "train", "ru", "anna", "Жили-были.", spans)
    assert found["x/2.flac"] == Utterance("x/2.flac", "valid", "de", "bob", 'Ein "Zitat"')
    assert found["y/3.flac"].text == ""


def test_a_given_manifest_chooses_among_the_files(tmp_path: Path) -> None:
    for number in range(4):
        write_tone(tmp_path / "in" / f"{number}.wav")
    (tmp_path / "some.tsv").write_text("path\tspeaker\r\n1.wav\teva\r\n3.wav\tadam\r\n", encoding="utf-8")
    summary = run(FolderCorpus(tmp_path / "in", tmp_path / "some.tsv"), tmp_path / "out")
    assert {meta.id: meta.speaker for meta in utterances(tmp_path / "out").values()} == {
        "1.wav": "eva",
        "3.wav": "adam",
    }
    assert summary.num_bad == 0


def test_without_a_manifest_a_folder_of_many_is_in_one_split(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for speaker in range(40):
        for number in range(3):
            (root / f"s{speaker}").mkdir(parents=True, exist_ok=True)
            (root / f"s{speaker}" / f"{number}.wav").touch()
    splits = {source.path: source.split for source in FolderCorpus(root, None, 0.1, 0.2).sources()}
    of_folder = {
        folder: {s for path, s in splits.items() if path.startswith(f"{folder}/")}
        for folder in (f"s{n}" for n in range(40))
    }
    assert all(len(found) == 1 for found in of_folder.values())
    counts = Counter(next(iter(found)) for found in of_folder.values())
    assert set(counts) == {"train", "dev", "test"}
    assert counts["train"] > 20
    (root / "s99").mkdir()
    (root / "s99" / "0.wav").touch()
    grown = {source.path: source.split for source in FolderCorpus(root, None, 0.1, 0.2).sources()}
    assert {path: grown[path] for path in splits} == splits


def drawn(keys: list[str], dev_fraction: float, test_fraction: float) -> dict[str, str]:
    """What the splits should be, with all keys in memory."""
    places = sorted((derive_seed(0, "split", key) / 2**63, key) for key in set(keys))
    bounds = {"dev": dev_fraction, "test": dev_fraction + test_fraction}
    splits = {key: next((split for split, end in bounds.items() if place < end), "train") for place, key in places}
    for split, fraction in (("dev", dev_fraction), ("test", test_fraction)):
        spare = [key for _, key in places if splits[key] == "train"]
        if fraction > 0 and len(spare) > 1 and split not in splits.values():
            splits[spare[0]] = split
    return splits


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 60).map(str), min_size=1, max_size=60),
    st.sampled_from((0.0, 0.02, 0.4)),
    st.sampled_from((0.0, 0.02, 0.4)),
)
def test_splits_are_drawn_without_the_keys_in_memory_as_with_them(keys: list[str], dev: float, test: float) -> None:
    splits = _Splits(dev, test)
    for key in keys:
        splits.see(key)
    assert {key: splits.of(key) for key in keys} == drawn(keys, dev, test)


@pytest.mark.parametrize("per_folder", [50, 400], ids=["many folders", "few folders"])
def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path, per_folder: int) -> None:
    peaks = {}
    for number in (400, 2_400):
        root = tmp_path / f"{number}"
        for file in range(number):
            folder = root / f"{file // per_folder}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{file:06d}.flac").touch()
        tracemalloc.start()
        assert sum(1 for _ in FolderCorpus(root).sources()) == number
        peaks[number] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[2_400] - peaks[400] < 2_000 * 10  # a file's path alone takes more than 60


def test_few_files_still_give_every_split(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.wav").touch()
    assert Counter(source.split for source in FolderCorpus(tmp_path).sources()) == {"train": 3, "dev": 1, "test": 1}


def test_bad_files_are_named_and_the_others_kept(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_tone(root / "good.wav")
    write_tone(root / "语言" / ("é" * 100 + ".flac"))
    (root / "text.wav").write_text("a text with another suffix", encoding="utf-8")
    (root / "empty.flac").touch()
    soundfile.write(root / "one.wav", np.zeros(1), 16_000)
    soundfile.write(root / "nan.wav", np.full(900, np.nan), 16_000, subtype="FLOAT")
    (root / "corrupt.flac").write_bytes(b"fLaC" + np.random.default_rng(0).bytes(900))
    (root / "dangling.wav").symlink_to(root / "nowhere.wav")
    os.mkfifo(root / "pipe.wav")
    (root / "loop").symlink_to(root)
    summary = run(FolderCorpus(root), tmp_path / "out")
    bad = reasons(tmp_path / "out")
    assert set(bad) == {"text.wav", "empty.flac", "one.wav", "nan.wav", "corrupt.flac", "dangling.wav", "pipe.wav"}
    assert all(name in reason for name, reason in bad.items())
    assert "NaN" in bad["nan.wav"]
    assert "holds 1 samples" in bad["one.wav"]
    assert summary.num_bad == 7
    assert set(utterances(tmp_path / "out")) == {"good.wav", "语言/" + "é" * 100 + ".flac"}


def test_rows_and_files_that_do_not_meet_are_named(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("a.wav", "b.wav", "c.wav", "unlisted.wav"):
        write_tone(root / name)
    rows = [
        "path\tlang\tsplit",
        "a.wav\tde\ttrain",
        "gone.wav\tde\ttrain",
        "b.wav\tde",
        "c.wav\tde\tdev",
        "a.wav\tfr\tdev",
    ]
    (root / "manifest.tsv").write_text("\n".join(rows), encoding="utf-8")
    run(FolderCorpus(root), tmp_path / "out")
    bad = reasons(tmp_path / "out")
    assert "line 3: there is no file" in bad["gone.wav"]
    assert "line 4: 2 columns where the first line has 3" in bad["b.wav"]
    assert "line 6: a.wav is listed for the second time" in bad["a.wav (line 6)"]
    assert "has no row for it" in bad["unlisted.wav"]
    assert {meta.id: meta.language for meta in utterances(tmp_path / "out").values()} == {"a.wav": "de", "c.wav": "de"}


def test_a_folder_below_that_cannot_be_read_is_named_and_the_rest_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the superuser may read any folder, so the refusal is simulated
    root = tmp_path / "in"
    write_tone(root / "open" / "1.wav")
    write_tone(root / "shut" / "2.wav")
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    run(FolderCorpus(root), tmp_path / "out")
    assert set(utterances(tmp_path / "out")) == {"open/1.wav"}
    assert reasons(tmp_path / "out")["shut"].endswith("shut cannot be read: Permission denied")


def test_an_input_that_is_no_folder_or_has_no_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"empty holds no audio files") as caught:
        run(FolderCorpus(tmp_path / "empty"), tmp_path / "out")
    assert ".wav" in caught.value.mend
    for name, reason in (("file", "Not a directory"), ("absent", "No such file")):
        with pytest.raises(DataError, match=rf"{name} cannot be read: {reason}"):
            run(FolderCorpus(tmp_path / name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_that_is_no_table_is_refused(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav")
    manifest = tmp_path / "manifest.tsv"
    for content, reason in ((b"file,lang\na.wav,de\n", "no column path"), (b"path\xff\xfe", "cannot be read as UTF-8")):
        manifest.write_bytes(content)
        with pytest.raises(DataError, match=rf"manifest\.tsv .*{reason}"):
            list(FolderCorpus(tmp_path).sources())
    manifest.write_text("path\na.wav\n", encoding="utf-8")
    (tmp_path / "phones.tsv").write_text("path\tstart_s\tend_s\tphone\na.wav\tzero\t1\tp\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"phones\.tsv, line 2: 'zero' to '1'"):
        list(FolderCorpus(tmp_path).sources())


def test_fractions_that_leave_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave nothing for train"):
        FolderCorpus(tmp_path, dev_fraction=0.6, test_fraction=0.4)
