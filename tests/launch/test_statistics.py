"""A frontend that normalises by all data is measured before the first step, and keeps what was measured."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torchaudio.compliance import kaldi

from ossicle.core.errors import ConfigError
from ossicle.data.audio import decode
from ossicle.data.index import DatasetIndex
from ossicle.launch.config import compose
from ossicle.launch.encoders import trained_encoder, untrained_encoder
from ossicle.launch.experiment import check, resolved
from ossicle.launch.pretrain import pretrain
from ossicle.launch.statistics import global_norms, take_norms
from ossicle.launch.training import train
from tests.launch.toy import TOY

GLOBAL = ("experiment=best_rq_tiny", "frontend.norm=global", *TOY)


@pytest.mark.parametrize(("norm", "place"), [("global", "frontend.norm"), ("running", "frontend.norm.prior")])
def test_a_run_is_exported_with_the_mean_and_deviation_of_kaldis_frames_of_its_split(
    norm: str, place: str, synthetic_dataset: Path, tmp_path: Path
) -> None:
    words = [*GLOBAL, f"frontend.norm={norm}", f"data.shards={synthetic_dataset}", "max_steps=2"]
    config = resolved(compose("pretrain", words))
    check(config)
    pretrain(config, tmp_path / "run")
    index = DatasetIndex.load(synthetic_dataset, "train")
    waves = [torch.from_numpy(decode(index.read_audio(row)))[None] for row in range(index.num_utterances)]
    mels = torch.cat([kaldi.fbank(wave, num_mel_bins=80, dither=0.0) for wave in waves]).double()
    weights = load_file(tmp_path / "run" / "encoder.safetensors")
    mean_C, deviation_C = weights[f"{place}.mean_C"], weights[f"{place}.deviation_C"]
    torch.testing.assert_close(mean_C.double(), mels.mean(0), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(deviation_C.double(), mels.std(0, correction=0), atol=2e-3, rtol=1e-3)
    trained, untrained = trained_encoder(tmp_path / "run"), untrained_encoder(config)
    take_norms(untrained, trained)
    ((_, given),) = global_norms(untrained)
    assert torch.equal(given.mean_C, mean_C)


def test_a_teacher_begins_with_the_norm_that_its_student_was_given(
    synthetic_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[nn.Module] = []

    class Trainer:
        global_step = 2

        def fit(self, system: nn.Module, **_: object) -> None:
            seen.append(system)

    monkeypatch.setattr("ossicle.system.trainer.make_trainer", lambda *_, **__: Trainer())
    line = ["experiment=data2vec_tiny", "frontend=logmel", "frontend.norm=global", *TOY, "target.top_layers=1"]
    train(resolved(compose("pretrain", [*line, f"data.shards={synthetic_dataset}", "max_steps=2"])), tmp_path)
    found = [norm for _, norm in global_norms(seen[0])]
    assert len(found) == 2
    assert all(torch.equal(norm.mean_C, found[0].mean_C) and float(norm.mean_C.mean()) < -1 for norm in found)


def test_data_without_an_index_are_refused() -> None:
    line = [*GLOBAL, "data=stream", "data.urls=nowhere.tar"]
    line = [item for item in line if not item.startswith("data.window_shards")]
    with pytest.raises(ConfigError, match="measured by an index"):
        check(resolved(compose("pretrain", line)))
