import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep import hf_datasets
from data_prep.hf_datasets import HfDatasets
from ossicle.core.errors import DataError, MissingExtraError
from tests.data_prep.miniature import pitch_hz, prepared, write_text, write_tone

pa = pytest.importorskip("pyarrow")


def tone_bytes(hz: float, seconds: float = 0.5) -> bytes:
    file = io.BytesIO()
    soundfile.write(
        file, 0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * 16_000)) / 16_000), 16_000, format="FLAC"
    )
    return file.getvalue()


def table(pitches: list[float], **columns: list[object]) -> "pa.Table":
    audio = pa.array(
        [{"bytes": tone_bytes(hz), "path": f"{hz}.flac"} for hz in pitches],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    return pa.table({"audio": audio, **{name: pa.array(values) for name, values in columns.items()}})


def write_parquet(path: Path, content: "pa.Table", rows: int = 2) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(content, path, row_group_size=rows)


def write_saved(folder: Path, *tables: "pa.Table") -> None:
    """A folder as save_to_disk writes it."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(tables):05d}.arrow" for n in range(len(tables))]
    for name, content in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, content.schema) as writer:
            writer.write_table(content, max_chunksize=1)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    write_text(folder / "state.json", json.dumps(state))


def test_parquet_files_give_rows_with_their_audio(tmp_path: Path) -> None:
    root = tmp_path / "in"
    facts = {"sentence": ["a", "b", "c"], "client_id": [1, 2, 1], "locale": ["de", "fr", "pl"], "other": [0, 0, 0]}
    write_parquet(root / "data" / "train-00000-of-00002.parquet", table([300, 600, 900], **facts))
    write_parquet(root / "data" / "train-00001-of-00002.parquet", table([400]))
    write_parquet(root / "data" / "validation-00000-of-00001.parquet", table([500]))
    write_parquet(root / "data" / "test.clean-00000-of-00001.parquet", table([700]))
    result = prepared(HfDatasets(root), tmp_path / "out")
    assert {split: len(names) for split, names in result.splits().items()} == {"train": 4, "dev": 1, "test-clean": 1}
    second, third = (f"data/train-00000-of-00002/{place}" for place in ("0000-000001", "0001-000000"))
    said = result.utterances[second]
    assert (said.text, said.speaker, said.language) == ("b", "2", "fr")
    assert round(pitch_hz(result.waves[second]), -1) == 600
    assert round(pitch_hz(result.waves[third]), -1) == 900
    assert result.reasons == {}


def test_a_saved_dataset_is_read_split_by_split(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_saved(root / "train", table([300, 600], text=["a", "b"]), table([900], text=["c"]))
    write_saved(root / "validation", table([400], text=["d"]))
    write_text(root / "dataset_dict.json", '{"splits": ["train", "validation"]}')
    result = prepared(HfDatasets(root), tmp_path / "out")
    assert {
        meta.text: (meta.split, round(pitch_hz(result.waves[name]), -1)) for name, meta in result.utterances.items()
    } == {
        "a": ("train", 300),
        "b": ("train", 600),
        "c": ("train", 900),
        "d": ("dev", 400),
    }
    assert {source.split for source in HfDatasets(root / "validation").sources()} == {"train"}


def test_a_row_may_name_a_file_or_have_no_audio(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_tone(root / "a.wav", 0.75)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    audio = pa.array([{"bytes": None, "path": "a.wav"}, None, {"bytes": b"no audio", "path": "x.wav"}], kind)
    write_parquet(root / "t.parquet", pa.table({"audio": audio}))
    result = prepared(HfDatasets(root), tmp_path / "out")
    assert {name: result.seconds(name) for name in result.utterances} == {"t/0000-000000": 0.75}
    assert "has no audio" in result.reasons["t/0000-000001"]
    assert "cannot be read as audio" in result.reasons["t/0001-000000"]


def test_columns_are_named_where_they_are_unusual(tmp_path: Path) -> None:
    content = table([300], spruch=["ja"], who=["eva"], tongue=["de"]).rename_columns(
        ["sound", "spruch", "who", "tongue"]
    )
    write_parquet(tmp_path / "in" / "x.parquet", content)
    corpus = HfDatasets(tmp_path / "in", text="spruch", speaker="who", language="tongue", audio="sound")
    result = prepared(corpus, tmp_path / "out")
    said = next(iter(result.utterances.values()))
    assert (said.text, said.speaker, said.language) == ("ja", "eva", "de")
    with pytest.raises(DataError, match=r"has no column loud with bytes: its columns are sound, spruch") as caught:
        list(HfDatasets(tmp_path / "in", audio="loud").sources())
    assert "corpus.audio=sound" in caught.value.mend


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_folder_of_audio_has_metadata_in_each_split(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "in"
    rows = {"train": [("1.wav", 'said "so", then'), ("sub/2.wav", "two")], "validation": [("3.wav", "three")]}
    for split, listed in rows.items():
        for name, _ in listed:
            write_tone(root / split / name)
        if kind == "csv":
            quoted = ['"{}","{}",7'.format(name, text.replace('"', '""')) for name, text in listed]
            write_text(root / split / "metadata.csv", "\n".join(["file_name,transcription,speaker_id", *quoted]))
        else:
            values = [{"file_name": name, "transcription": text, "speaker_id": 7} for name, text in listed]
            write_text(root / split / "metadata.jsonl", "\n".join(map(json.dumps, values)))
    result = prepared(HfDatasets(root), tmp_path / "out")
    assert result.splits() == {"train": {"train/1.wav", "train/sub/2.wav"}, "dev": {"validation/3.wav"}}
    assert result.utterances["train/1.wav"].text == 'said "so", then'
    assert {meta.speaker for meta in result.utterances.values()} == {"7"}


def test_a_table_above_the_splits_and_none_at_all_serve_too(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("data/train/1.wav", "data/test/2.wav", "data/.hidden/3.wav"):
        write_tone(root / name)
    assert {(s.name, s.split) for s in HfDatasets(root).sources()} == {
        ("data/train/1.wav", "train"),
        ("data/test/2.wav", "test"),
    }
    write_text(root / "metadata.csv", "file_name,text\ndata/test/2.wav,two\ngone.wav,none\n,empty\nx,y,z\n")
    result = prepared(HfDatasets(root), tmp_path / "out")
    assert {name: meta.text for name, meta in result.utterances.items()} == {"data/test/2.wav": "two"}
    assert "there is no file" in result.reasons["gone.wav"]
    assert "line 4 has no file_name" in result.reasons["metadata.csv (line 4)"]
    assert "more or fewer columns" in result.reasons["x"]


def test_what_datasets_itself_writes_is_read_as_it_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    for n in range(5):
        write_tone(tmp_path / "files" / "train" / f"{n}.wav", 0.5 + n / 16, hz=300 + 100 * n)
    write_text(
        tmp_path / "files" / "train" / "metadata.csv", "file_name,text\n" + "".join(f"{n}.wav,t{n}\n" for n in range(5))
    )
    columns = {"audio": [f"files/train/{n}.wav" for n in range(5)], "text": [f"t{n}" for n in range(5)]}
    made = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio(decode=False))
    made.save_to_disk("saved", num_shards=2)
    write_parquet(
        tmp_path / "hub" / "train-00000-of-00001.parquet", datasets.load_from_disk("saved").with_format("arrow")[:]
    )
    for folder in ("files", "saved", "hub"):
        corpus = HfDatasets(tmp_path / folder)
        samples = {s.utterance.text: s for s in map(corpus.load, corpus.sources())}
        assert set(samples) == {f"t{n}" for n in range(5)}, folder
        for n in range(5):
            wave, _ = soundfile.read(tmp_path / "files" / "train" / f"{n}.wav", dtype="int16")
            np.testing.assert_array_equal(samples[f"t{n}"].pcm_S, wave)


def test_a_missing_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "x.parquet", table([300]))
    hf_datasets._arrow.cache_clear()
    monkeypatch.delitem(sys.modules, "data_prep.arrow", raising=False)
    monkeypatch.delattr("data_prep.arrow", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match="pyarrow") as caught:
        list(HfDatasets(tmp_path).sources())
    assert "ossicle[hf]" in caught.value.mend


def test_damaged_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no saved dataset, parquet files, metadata or audio"):
        list(HfDatasets(tmp_path).sources())
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"x\.parquet cannot be read as parquet"):
        list(HfDatasets(tmp_path).sources())
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "gone.arrow"}]}')
    with pytest.raises(DataError, match=r"gone\.arrow cannot be read as Arrow"):
        list(HfDatasets(tmp_path).sources())
