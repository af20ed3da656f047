from functools import partial

import pytest
import torch

from ossicle.core.batch import Batch
from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.transformer import Transformer
from ossicle.frontend.logmel import LogMel
from ossicle.mixer.attention import Attention
from ossicle.target.teacher import FrozenTeacher
from tests.objective.teaching import small_batch, small_model, step


def test_it_is_the_given_model_and_never_moves() -> None:
    student, other = small_model(), small_model(layers=2)
    step(other)
    teacher = FrozenTeacher(student.clock, student.feature_dim, model=lambda: other, top_layers=1)
    teacher.adopt(student)
    wanted = other.eval()(small_batch().waveform_BS, layers=True).layers[-1]
    made = teacher(small_batch())
    torch.testing.assert_close(made, torch.nn.functional.instance_norm(wanted.mT).mT)
    step(student)
    teacher.follow(student, step=1)
    assert torch.equal(teacher(small_batch()), made)
    assert teacher.gap(student) is None
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.train().model.modules())


def test_its_weights_are_there_even_on_the_meta_device() -> None:
    student = small_model()
    with torch.device("meta"):
        teacher = FrozenTeacher(student.clock, student.feature_dim, model=small_model, top_layers=1)
    assert {parameter.device.type for parameter in teacher.parameters()} == {"cpu"}


def test_too_many_layers_are_refused() -> None:
    student = small_model()
    with pytest.raises(ConfigError, match="top_layers=9"):
        FrozenTeacher(student.clock, student.feature_dim, model=small_model, top_layers=9)


def hearing(window_ms: float, *, stack: int = 1, rate_hz: int = 16_000) -> Backbone:
    """A model whose frames come every 20 ms (times ``stack``) and see so much, the first one from the first sample."""
    torch.manual_seed(0)
    frontend = LogMel(num_mels=12, window_ms=window_ms, hop_ms=20.0, stack=stack, rate_hz=rate_hz, low_hz=100.0)
    encoder = Transformer(
        partial(Attention, num_heads=2), dim=16, num_layers=1, ffn_dim=32, position_kernel=4, position_groups=2
    )
    return Backbone(frontend, encoder)


@pytest.mark.parametrize(("mine", "theirs"), [(25, 30), (25, 65), (65, 25), (30, 145)])
@pytest.mark.parametrize("samples", [3200, 4000, 4321])
def test_of_another_clocks_frames_those_with_the_nearest_middles_are_taken(
    mine: float, theirs: float, samples: int
) -> None:
    student, other = hearing(mine), hearing(theirs)
    teacher = FrozenTeacher(student.clock, student.feature_dim, model=lambda: other, top_layers=1)
    waveform = 0.1 * torch.randn(2, samples)
    made = teacher(Batch(waveform, 0, torch.arange(2), torch.zeros(2, dtype=torch.int64)))
    whole = torch.nn.functional.instance_norm(other.eval()(waveform, layers=True).layers[-1].mT).mT
    assert made.shape == student(waveform).last_BTD.shape
    for frame in range(made.shape[1]):
        middle = student.clock.centre_samples(frame)
        away = [abs(other.clock.centre_samples(place) - middle) for place in range(whole.shape[1])]
        nearest = away.index(min(away))
        torch.testing.assert_close(made[:, frame], whole[:, nearest])


def test_another_frame_rate_is_refused_and_named() -> None:
    student = hearing(25)
    with pytest.raises(ConfigError, match="makes 25 frames a second, the student 50") as caught:
        FrozenTeacher(student.clock, 12, model=lambda: hearing(25, stack=2), top_layers=1)
    assert "of 25 frames a second" in caught.value.mend
    with pytest.raises(ConfigError, match="hears 8000 samples a second, the student 16000"):
        FrozenTeacher(student.clock, 12, model=lambda: hearing(25, rate_hz=8000), top_layers=1)
