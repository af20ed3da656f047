import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.elastic import Elastic
from ossicle.layer.layer_reader import Read
from ossicle.layer.spec_augment import SpecAugment
from ossicle.mixer.attention import Attention
from ossicle.ops.momentum import Linear
from ossicle.system.execution import compile_blocks
from ossicle.target.ema_teacher import EmaTeacher
from tests.objective.teaching import DIM, small_batch, small_model, small_teacher, step


def normalised(x_TD: Tensor) -> Tensor:
    return (x_TD - x_TD.mean(0)) / (x_TD.var(0, unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize("read", ["blocks", "feed_forward"])
def test_the_target_is_the_mean_of_the_last_layers_each_normalised_over_the_utterance(read: Read) -> None:
    model = small_model().eval()
    teacher = small_teacher(model, read, top_layers=2)
    teacher.adopt(model)
    batch = small_batch()
    x = model.embed(model.normalise(model.local(batch.waveform_BS).features_BTC))
    entering = model.encode(x, layers=True).layers
    for row, made in enumerate(teacher(batch)):
        wanted = []
        for number in (1, 2):  # the last two of three
            before, block = entering[number][row : row + 1], model.encoder.blocks[number]
            mixed = block.mixer_norm(before + block.mixer(before))
            branch = block.feed_forward(mixed) if read == "feed_forward" else entering[number + 1][row : row + 1]
            wanted.append(normalised(branch[0].double()))
        torch.testing.assert_close(made.double(), torch.stack(wanted).mean(0), atol=1e-5, rtol=1e-4)


def test_it_follows_by_the_momentum_of_the_step() -> None:
    model = small_model()
    teacher = EmaTeacher(model.clock, model.feature_dim, momentum=Linear(0.0, 1.0, 4), top_layers=1)
    teacher.adopt(model)
    before = teacher.model.project.weight.clone()
    step(model)
    teacher.follow(model, step=3)
    torch.testing.assert_close(teacher.model.project.weight, 0.75 * before + 0.25 * model.project.weight)


def test_dropout_and_skipped_layers_are_the_students_alone() -> None:
    model = small_model(dropout=0.5)
    teacher = small_teacher(model)
    teacher.adopt(model)
    teacher.train()
    assert torch.equal(teacher(small_batch()), teacher(small_batch()))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("read", ["blocks", "feed_forward"])
def test_the_whole_of_a_supernet_teaches_whatever_size_is_trained(read: Read, *, dropout: bool) -> None:
    attention = partial(Attention, num_heads=4, dropout=0.0)
    elastic = Elastic(
        attention, dims=(8, DIM), heads=(1, 4), ffn_ratios=(0.5, 2.0), depths=(1, 3), dropout=0.0,
        position_kernel=4, position_groups=2,
    )  # fmt: skip
    model = Backbone(small_model().frontend, elastic, input_dropout=0.0)
    teacher = EmaTeacher(
        model.clock, model.feature_dim, momentum=Linear(0.5, 0.5), top_layers=2, read=read, dropout=dropout
    )
    teacher.adopt(model)
    batch = small_batch()
    whole = teacher.eval()(batch)
    teacher.train()
    model.train()
    sizes = set()
    for _ in range(8):
        assert torch.equal(teacher(batch), whole)
        sizes.add(int((model(batch.waveform_BS).last_BTD != 0).any(0).any(0).sum()))
    assert sizes == {8, DIM}
    assert whole.std() > 0.1


def test_a_teacher_with_dropout_drops_and_skips_what_the_student_would_by_the_same_draws_and_hides_no_input() -> None:
    model = small_model(dropout=0.5)
    model.encoder.layer_drop = 0.5
    model.spec_augment = SpecAugment(model.feature_dim, num_time_masks=5)
    teacher = EmaTeacher(
        model.clock, model.feature_dim, momentum=Linear(0.5, 0.5), top_layers=1, read="blocks", dropout=True
    )
    teacher.adopt(model)
    batch = small_batch()
    taught = set()
    for seed in range(6):
        torch.manual_seed(seed)
        ours = teacher(batch)
        model.spec_augment.eval()
        torch.manual_seed(seed)
        last_BTD = model(batch.waveform_BS).last_BTD
        torch.testing.assert_close(ours, teacher.norm(last_BTD.detach().float()))
        taught.add(float(ours.abs().sum()))
    assert len(taught) == 6
    assert torch.equal(teacher.eval()(batch), teacher(batch))


def test_a_shared_frontend_hears_once_and_an_augmented_batch_is_heard_clean() -> None:
    model = small_model()
    teacher = EmaTeacher(
        model.clock, model.feature_dim, momentum=Linear(0.5, 0.5), top_layers=2, shared=["frontend", "norm"]
    )
    teacher.adopt(model)
    batch = small_batch()
    features = model.local(batch.waveform_BS).features_BTC
    wanted = teacher(batch)
    torch.testing.assert_close(teacher(batch, features), wanted)
    assert not torch.allclose(teacher(batch, features + 1 + torch.randn_like(features)), wanted)  # they are taken
    noisy = replace(batch, waveform_BS=torch.randn_like(batch.waveform_BS), clean_BS=batch.waveform_BS)
    torch.testing.assert_close(teacher(noisy, model.local(noisy.waveform_BS).features_BTC), wanted)


def test_it_is_saved_with_what_owns_it_and_goes_on_after_loading() -> None:
    model = small_model()
    teacher, other = small_teacher(model), small_teacher(model)
    teacher.adopt(model)
    step(model)
    teacher.follow(model, step=1)
    other.adopt(model)
    other.load_state_dict(teacher.state_dict())
    assert torch.equal(other(small_batch()), teacher(small_batch()))


def test_no_gradient_passes_and_none_is_asked_for() -> None:
    model = small_model()
    teacher = small_teacher(model)
    teacher.adopt(model)
    features = model.local(small_batch().waveform_BS).features_BTC
    assert not teacher(small_batch(), features).requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_copy_of_it_records_its_own_layers() -> None:
    model = small_model()
    teacher = small_teacher(model)
    teacher.adopt(model)
    twin = copy.deepcopy(teacher)
    step(twin.model)
    assert not torch.allclose(twin(small_batch()), teacher(small_batch()))


def test_compiled_blocks_are_read_as_well() -> None:
    model = small_model()
    teacher = small_teacher(model)
    teacher.adopt(model)
    wanted = teacher(small_batch())
    compile_blocks(teacher.model, "aot_eager")
    torch.testing.assert_close(teacher(small_batch()), wanted)


def test_more_layers_than_there_are_and_another_clock_are_refused() -> None:
    model = small_model()
    with pytest.raises(ConfigError, match=r"top_layers=4 .* 3 layers"):
        small_teacher(model, top_layers=4).adopt(model)
    strange = EmaTeacher(FrameClock().then(10, 10), model.feature_dim, momentum=Linear(0.5), top_layers=1)
    with pytest.raises(ConfigError, match="50 frames a second, the student 1600"):
        strange.adopt(model)
