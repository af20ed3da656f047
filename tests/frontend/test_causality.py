"""A frontend that calls itself causal hears nothing but what its clock says, and one that does not does."""

from functools import partial
from typing import Any

import pytest
import torch
from hydra.utils import get_class

from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.convolutional import Convolutional
from ossicle.frontend.base import Frontend
from ossicle.frontend.logmel import LogMel
from ossicle.launch.parts import option
from ossicle.mixer.attention import Attention
from ossicle.objective.contrastive_binary import ContrastiveBinary
from ossicle.target.frames import Frames

CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "wave": ("wave", {}, False),
    "wave_compact": ("wave_compact", {}, False),
    "wave_cpc": ("wave_cpc", {}, True),
    "wave_layer_norm": ("wave_layer_norm", {"normalise": False}, True),
    "wave_layer_norm, normalised": ("wave_layer_norm", {"normalise": True}, False),
    "logmel": ("logmel", {}, False),
    "logmel, global": ("logmel", {"norm": "global"}, True),
    "logmel, running": ("logmel", {"norm": "running"}, True),
    "logmel_stacked, global": ("logmel_stacked", {"norm": "global"}, True),
    "logmel_conv": ("logmel_conv", {}, False),
    "logmel_conv, global": ("logmel_conv", {"norm": "global"}, True),
}


def built(name: str, numbers: dict[str, Any]) -> Frontend:
    node = option(name, "frontend")
    cls = get_class(node.pop("_target_"))
    node.pop("_partial_", None)
    torch.manual_seed(0)
    made = cls(**{**node, **numbers})
    assert isinstance(made, Frontend)
    return made.eval()


@pytest.mark.parametrize(("name", "numbers", "causal"), CASES.values(), ids=CASES)
def test_what_comes_after_a_frames_samples_changes_it_only_where_it_is_not_causal(
    name: str, numbers: dict[str, Any], causal: bool
) -> None:
    frontend = built(name, numbers)
    clock, samples = frontend.clock, 16_000
    waveform_BS = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(1))
    louder_BS = waveform_BS.clone()
    louder_BS[:, samples // 2 :] *= 5
    reach = samples // 2 - clock.kernel_samples - clock.offset_samples
    before = reach // clock.stride_samples
    assert before > 5
    with torch.no_grad():
        change = (frontend(louder_BS).features_BTC - frontend(waveform_BS).features_BTC)[:, :before].abs().max()
    assert frontend.causal == causal == (float(change) < 1e-5)


def test_what_hears_the_row_is_refused_where_frames_are_foreseen() -> None:
    for norm, causal in (("utterance", False), ("global", True), ("running", True)):
        frontend = LogMel(num_mels=12, norm=norm)
        model = Backbone(frontend, Convolutional(partial(Attention), dim=8, num_layers=1))
        assert model.causal == causal
        objective = ContrastiveBinary(Frames(model.clock, 24), model.dim, 24, num_steps=3, num_negatives=4)
        if causal:
            objective.adopt(model)
        else:
            with pytest.raises(ConfigError, match="hears what comes"):
                objective.adopt(model)
