"""A supernet that learns from its own moving average: a batch trains some size of it, the whole of it teaches."""

import math
from pathlib import Path
from typing import Any

import pytest

from ossicle.core.errors import ConfigError
from ossicle.launch.config import compose
from ossicle.launch.experiment import check, resolved
from ossicle.launch.pretrain import pretrain
from tests.launch.toy import TOY

ELASTIC = (
    "encoder=elastic", "encoder.dims=[32,48]", "encoder.heads=[2,3]", "encoder.ffn_ratios=[2.0,4.0]",
    "encoder.depths=[2,3]", "encoder.position_kernel=8", "encoder.position_groups=3", "mixer.num_heads=3",
    "target.top_layers=2",
)  # fmt: skip
TAUGHT = {
    "data2vec_tiny": (),
    "data2vec2_tiny": ("mixer=attention",),  # distances' biases are not sliced
    "dinosr_tiny": (),
    "spidr_tiny": (),
    "spiral_tiny": (
        "frontend.stack=2", "frontend.num_mels=80", "model.norm=true", "model.spec_augment=null", "mixer.head_dim=null"
    ),
}  # fmt: skip


def config_of(name: str, shards: object, *more: str) -> dict[str, Any]:
    toy = [word for word in TOY if not word.startswith(("++encoder", "++mixer"))]
    words = [f"experiment={name}", f"data.shards={shards}", "max_steps=3", *toy, *ELASTIC, *TAUGHT[name], *more]
    return resolved(compose("pretrain", words))


@pytest.mark.parametrize("name", TAUGHT)
def test_a_supernet_learns_from_its_own_average(name: str, synthetic_dataset: Path, tmp_path: Path) -> None:
    config = config_of(name, synthetic_dataset, f"runs={tmp_path}")
    assert config["target"]["read"] == ("blocks" if name == "spiral_tiny" else "feed_forward")  # as published
    check(config)
    loss = pretrain(config, tmp_path / "run")
    assert loss is not None
    assert math.isfinite(loss)
    assert (tmp_path / "run" / "encoder.safetensors").is_file()


def test_a_mixer_that_is_not_sliced_is_refused_before_data_are_read() -> None:
    with pytest.raises(ConfigError, match="encoder=elastic slices attention with 3 heads") as caught:
        check(config_of("data2vec_tiny", "nowhere", "mixer=summary", "mixer.num_heads=2"))
    assert "mixer=attention mixer.num_heads=3" in caught.value.mend
