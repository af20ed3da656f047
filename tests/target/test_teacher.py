import pytest
import torch

from ossicle.core.errors import ConfigError
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
