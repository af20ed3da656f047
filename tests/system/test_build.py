from pathlib import Path

import pytest
import torch
from typing_extensions import override

from ossicle.core.errors import ConfigError
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.system.build import build
from ossicle.system.weights import encoder_weights, write_weights
from tests.system.toys import ToyObjective, toy_experiment


def test_numbers_that_no_run_can_have_are_refused_by_name() -> None:
    for name, value in (("max_steps", 0), ("accumulate", 0), ("log_every", 0), ("clip_norm", -1.0), ("ema_decay", 1.0)):
        with pytest.raises(ConfigError, match=name):
            toy_experiment(**{name: value})


def test_keys_of_the_state_are_plain() -> None:
    keys = build(toy_experiment()).state_dict().keys()
    assert {key.split(".")[0] for key in keys} == {"model", "objective"}
    assert {"model.frontend.weight", "model.norm.weight", "model.project.weight"} <= keys


def test_a_run_may_start_from_another_ones_encoder(tmp_path: Path) -> None:
    before = build(toy_experiment(seed=1))
    write_weights(tmp_path / "encoder.safetensors", encoder_weights(before.state_dict()), {})
    after = build(toy_experiment(seed=2, init_from=tmp_path / "encoder.safetensors"))
    assert torch.equal(after.model.project.weight, before.model.project.weight)  # type: ignore[union-attr]
    assert not torch.equal(after.objective.head.weight, before.objective.head.weight)  # type: ignore[union-attr]


class Keeping(ToyObjective):
    """Keeps of the model what it was when it was adopted last, as a teacher does."""

    kept: torch.Tensor

    @override
    def adopt(self, model: SpeechEncoder) -> None:
        self.kept = model.get_parameter("project.weight").detach().clone()


def test_an_objective_begins_with_the_encoder_that_was_loaded(tmp_path: Path) -> None:
    before = build(toy_experiment(seed=1))
    write_weights(tmp_path / "encoder.safetensors", encoder_weights(before.state_dict()), {})
    after = build(toy_experiment(seed=2, objective=Keeping, init_from=tmp_path / "encoder.safetensors"))
    assert isinstance(after.objective, Keeping)
    assert torch.equal(after.objective.kept, before.model.get_parameter("project.weight"))


def test_parts_build_on_the_meta_device() -> None:
    with torch.device("meta"):
        system = build(toy_experiment())
    assert all(parameter.device.type == "meta" for parameter in system.parameters())
