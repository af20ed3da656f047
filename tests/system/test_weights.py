from pathlib import Path

import pytest
import torch
from torch import nn

from ossicle.core.errors import DataError
from ossicle.system.weights import encoder_weights, load_encoder, read_metadata, read_weights, write_weights


def test_weights_and_metadata_survive_their_file(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    write_weights(tmp_path / "e.safetensors", layer.state_dict(), {"config": {"a": [1, None]}, "step": 7})
    assert read_metadata(tmp_path / "e.safetensors") == {"config": {"a": [1, None]}, "step": 7}
    other = nn.Linear(3, 2)
    load_encoder(other, tmp_path / "e.safetensors")
    assert torch.equal(other.weight, layer.weight)


def test_a_checkpoint_gives_the_weights_of_its_model_alone(tmp_path: Path) -> None:
    state = {"model.a": torch.ones(2), "objective.b": torch.zeros(2)}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    assert list(read_weights(tmp_path / "last.ckpt")) == list(encoder_weights(state)) == ["a"]


def test_weights_that_are_missing_damaged_or_of_another_model_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no weights"):
        read_weights(tmp_path / "none.safetensors")
    for name in ("broken.safetensors", "broken.ckpt"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(DataError, match=name):
            read_weights(tmp_path / name)
    write_weights(tmp_path / "e.safetensors", nn.Linear(3, 2).state_dict(), {})
    with pytest.raises(DataError, match="do not fit"):
        load_encoder(nn.Linear(4, 2), tmp_path / "e.safetensors")
