"""Frozen teachers from the command line: a model of Hugging Face, and a finished run."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchaudio.models import wav2vec2_model
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from ossicle.launch.config import compose
from ossicle.launch.experiment import check, resolved
from ossicle.launch.pretrain import pretrain
from tests.interop.test_torchaudio import settings
from tests.launch.toy import TOY, ossicle, single_run

KERNELS, STRIDES = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small HuBERT as transformers saves it, of large models' shape."""
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    HubertModel(
        HubertConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            conv_dim=(8,) * 7, conv_kernel=KERNELS, conv_stride=STRIDES, conv_bias=True, feat_extract_norm="layer",
            do_stable_layer_norm=True, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        )
    ).save_pretrained(folder)  # fmt: skip
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def test_a_model_of_hugging_face_teaches_and_a_finished_run_teaches_the_next(
    hubert: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    common = ["pretrain", "experiment=data2vec_tiny", f"data.shards={synthetic_dataset}", *TOY, "max_steps=2"]
    folder = f"target.model.directory={hubert}"
    ran = ossicle(*common, "target=teacher_huggingface", folder, f"runs={tmp_path / 'first'}", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    run = single_run(tmp_path / "first", "data2vec_tiny")
    assert "frontend.layers.0.conv.weight" not in load_file(run / "encoder.safetensors")  # the student's alone
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    theirs = load_file(hubert / "model.safetensors")
    kept = state["objective.target.frozen.frontend.layers.0.conv.weight"]
    assert torch.equal(kept, theirs["feature_extractor.conv_layers.0.conv.weight"])
    assert state["objective.predict.weight"].shape == (24, 32)

    own = f"target.model.directory={run}"
    again = ossicle(*common, "target=teacher", own, f"runs={tmp_path / 'second'}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    second = single_run(tmp_path / "second", "data2vec_tiny")
    state = torch.load(second / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    taught = load_file(run / "encoder.safetensors")
    assert all(torch.equal(state[f"objective.target.frozen.{key}"], value) for key, value in taught.items())


def test_a_model_whose_weights_lie_in_several_files_teaches(
    hubert: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sharded"
    HubertModel.from_pretrained(hubert).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    words = ["experiment=data2vec_tiny", f"data.shards={synthetic_dataset}", "target=teacher_huggingface", *TOY]
    config = resolved(compose("pretrain", [*words, f"target.model.directory={folder}", "max_steps=2"]))
    check(config)
    assert pretrain(config, tmp_path / "run") is not None
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    theirs = load_file(hubert / "model.safetensors")
    kept = state["objective.target.frozen.encoder.blocks.1.feed_forward.contract.weight"]
    assert torch.equal(kept, theirs["encoder.layers.1.feed_forward.output_dense.weight"])


def test_a_model_of_torchaudio_teaches(synthetic_dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    state = wav2vec2_model(**settings(large=False), aux_num_out=None).state_dict()
    torch.save(state, path)
    words = ["experiment=data2vec_tiny", f"data.shards={synthetic_dataset}", "target=teacher_torchaudio", *TOY]
    config = resolved(
        compose("pretrain", [*words, f"target.model.path={path}", "target.model.num_heads=4", "max_steps=2"])
    )
    check(config)
    assert pretrain(config, tmp_path / "run") is not None
    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    mine = kept["objective.target.frozen.encoder.blocks.1.feed_forward.contract.weight"]
    assert torch.equal(mine, state["encoder.transformer.layers.1.feed_forward.output_dense.weight"])


def test_a_folder_without_a_model_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    ran = ossicle(
        "pretrain", "experiment=data2vec_tiny", "data.shards=nowhere", *TOY, "target=teacher_huggingface",
        f"target.model.directory={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 2
    assert f"there is no {tmp_path}/config.json" in ran.stderr
    assert "save_pretrained" in ran.stderr
