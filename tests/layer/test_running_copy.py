import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.core.errors import ConfigError
from ossicle.layer.batch_norm import FrameBatchNorm
from ossicle.layer.running_copy import RunningCopy
from ossicle.layer.spec_augment import SpecAugment


def source() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_it_is_the_average_of_the_papers_recursion() -> None:
    student = source()
    follower = RunningCopy(student)
    wanted = {name: p.detach().double().clone() for name, p in student.named_parameters()}
    for number, momentum in enumerate((0.9, 0.5, 0.99, 1.0)):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.1 * (number + 1))
        follower.follow(student, momentum)
        for name, parameter in student.named_parameters():
            wanted[name] = momentum * wanted[name] + (1 - momentum) * parameter.detach().double()
    for name, parameter in follower.module.named_parameters():
        torch.testing.assert_close(parameter.double(), wanted[name], rtol=1e-6, atol=1e-6)


def test_shared_parts_and_buffers_are_the_sources_own() -> None:
    student = source()
    follower = RunningCopy(student, ["0"])
    with torch.no_grad():
        student[0].weight.add_(1)
        student[3].weight.add_(1)
        student[1].running_mean.add_(1)
    follower.follow(student, 0.75)
    assert torch.equal(follower.module[0].weight, student[0].weight)
    assert torch.equal(follower.module[1].running_mean, student[1].running_mean)
    torch.testing.assert_close(student[3].weight - follower.module[3].weight, torch.full((2, 4), 0.75))


def test_at_a_momentum_of_one_shared_parts_and_buffers_stand_still_too() -> None:
    student = source()
    follower = RunningCopy(student, ["0"])
    before = {name: value.clone() for name, value in follower.module.state_dict().items()}
    with torch.no_grad():
        for value in (*student.parameters(), student[1].running_mean):
            value.add_(1)
    follower.follow(student, 1.0)
    assert all(torch.equal(value, before[name]) for name, value in follower.module.state_dict().items())


def test_it_never_trains() -> None:
    follower = RunningCopy(source()).train()
    assert not any(module.training for module in follower.module.modules())
    assert not any(parameter.requires_grad for parameter in follower.parameters())


def test_with_dropout_it_trains_with_its_owner_but_for_what_hides_input_and_norms_over_a_batch() -> None:
    student = nn.Sequential(source(), SpecAugment(2), FrameBatchNorm(2))
    follower = RunningCopy(student, dropout=True)
    still = {"0.1", "1", "2"}  # a batch norm of torch's, SpecAugment and our batch norm
    for owner in (follower, nn.ModuleList([follower]).eval().train()):
        owner.train()
        assert {name for name, part in follower.module.named_modules() if not part.training} == still
        owner.eval()
        assert not any(part.training for part in follower.module.modules())
    assert not any(parameter.requires_grad for parameter in follower.parameters())


def test_it_is_saved_and_loaded() -> None:
    follower = RunningCopy(source())
    with torch.no_grad():
        follower.module[0].weight.fill_(7)
    other = RunningCopy(source())
    other.load_state_dict(follower.state_dict())
    assert torch.equal(other.module[0].weight, torch.full((4, 3), 7.0))


def test_the_gap_is_the_relative_distance_of_the_weights() -> None:
    student = source()
    follower = RunningCopy(student)
    assert float(follower.gap(student)) == 0
    before = torch.cat([p.detach().flatten() for p in student.parameters()])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.5)
    after = torch.cat([p.detach().flatten() for p in student.parameters()])
    assert float(follower.gap(student)) == pytest.approx(float((after - before).norm() / after.norm()), rel=1e-5)


def test_following_reads_no_value_on_the_host() -> None:
    student = source()
    follower = RunningCopy(student)
    with FakeTensorMode(allow_non_fake_inputs=True):
        follower.follow(student, 0.9)
        follower.gap(student)


def test_a_part_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="shared names frontend"):
        RunningCopy(source(), ["frontend"])


def test_it_begins_as_the_source_is_again_when_loaded() -> None:
    student = source()
    follower = RunningCopy(student)
    other = copy.deepcopy(student)
    with torch.no_grad():
        other[0].weight.add_(1)
    follower.load(other)
    assert torch.equal(follower.module[0].weight, other[0].weight)
