import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.progressive import Progressive, Stage
from ossicle.frontend.logmel import LogMel
from ossicle.launch.config import compose
from ossicle.launch.experiment import resolved
from ossicle.layer.predictor import ConvolutionPredictor
from ossicle.mixer.attention import Attention
from ossicle.objective.contrastive_teacher import ContrastiveTeacher, shifted
from ossicle.ops.momentum import Linear
from ossicle.target.ema_teacher import EmaTeacher
from tests.objective.teaching import small_batch, small_model, step, without_gradient

PREDICTOR = partial(ConvolutionPredictor, hidden_dim=8, kernel=3, num_layers=2)


def shortening_model() -> Backbone:
    """100 frames a second to 25."""
    torch.manual_seed(0)
    stages = [Stage([[12, 3, 2]], 1, 16), Stage([[16, 3, 2]], 1, 32)]
    mixer = partial(Attention, num_heads=None, head_dim=4, dropout=0.0)
    encoder = Progressive(
        mixer, stages=stages, input_dim=12, dropout=0.0, layer_drop=0.0, position_kernel=4, position_groups=2
    )
    return Backbone(LogMel(num_mels=12, stack=1), encoder, input_dropout=0.0)


def make(model: Backbone, **changes: float) -> ContrastiveTeacher:
    torch.manual_seed(1)
    target = EmaTeacher(model.clock, model.feature_dim, momentum=Linear(0.5, 0.5), top_layers=1, read="blocks")
    objective = ContrastiveTeacher(
        target,
        model.dim,
        model.feature_dim,
        predictor=PREDICTOR,
        final_dim=6,
        **({"num_negatives": 5, "max_shift": 2} | changes),
    )
    objective.adopt(model)
    return objective


def draws(frames: int, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(4)
    negatives = torch.randint(1, frames, (rows, frames, 5), generator=source)
    return torch.tensor([0, 2]), (torch.arange(frames)[None, :, None] + negatives) % frames


@pytest.mark.parametrize("kind", [small_model, shortening_model])
def test_loss_is_info_nce_against_the_moved_teacher_computed_by_hand(kind: type[Backbone]) -> None:
    model = kind()
    objective = make(model)
    step(model, 0.02)
    batch = small_batch()
    frames = model.clock.num_frames(batch.waveform_BS.shape[1])
    shifts, negatives = draws(frames)
    output = objective.compare(model, batch, shifts, negatives)

    teacher = objective.target.model
    embedded = teacher.embed(teacher.normalise(teacher.local(batch.waveform_BS).features_BTC))
    unit = model.clock.stride_samples // model.feature_clock.stride_samples
    predicted = objective.predict(objective.project(model(batch.waveform_BS).last_BTD)).double()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(2):
        before, after = int(shifts[row]) * unit, (2 - int(shifts[row])) * unit
        silence = embedded.new_zeros(1, 1, embedded.shape[2])
        moved = torch.cat([silence.expand(1, before, -1), embedded[row : row + 1], silence.expand(1, after, -1)], 1)
        heard = teacher.encode(moved).last_BTD[0, int(shifts[row]) :][:frames]
        wanted = objective.teacher_project.module(heard).double()
        for frame in range(frames):
            p = predicted[row, frame]
            others = [frame, *negatives[row, frame].tolist()]
            scores = torch.stack([p @ wanted[n] / p.norm() / wanted[n].norm() / 0.3 for n in others])
            total = total - (scores[0].exp() / scores.exp().sum()).log()
    torch.testing.assert_close(output.loss_sum.double(), total, rtol=1e-5, atol=1e-4)
    assert float(output.count) == 2 * frames


def test_a_row_is_moved_between_zeros() -> None:
    x = torch.arange(1.0, 4.0)[None, :, None].expand(2, 3, 1)
    assert shifted(x, torch.tensor([0, 2]), 2)[..., 0].tolist() == [[1, 2, 3, 0, 0], [0, 0, 1, 2, 3]]


@pytest.mark.parametrize("name", ["spiral_base", "essl"])
def test_the_published_teachers_are_moved_by_up_to_128_of_the_frames_that_they_hear(name: str) -> None:
    config = resolved(compose("pretrain", [f"experiment={name}", "data.shards=nowhere"]))
    stages = config["encoder"]["stages"]
    unit = math.prod(stride for stage in stages for _, _, stride in stage["convolutions"])
    assert config["objective"]["max_shift"] * unit == 16 * 8  # max and unit of RandomShift in both authors' code


def test_a_teacher_is_moved_by_every_shift_up_to_the_largest() -> None:
    model = small_model()
    objective, seen, batch = make(model, max_shift=3), set(), small_batch()
    objective.compare = lambda *given: seen.update(given[2].tolist())  # ty: ignore[invalid-assignment]
    for position in range(20):
        objective(model, replace(batch, position=position), seed=0, step=0)
    assert seen == {0, 1, 2, 3}


def test_the_teacher_hears_clean_speech() -> None:
    model = small_model()
    objective = make(model)
    batch = small_batch()
    noisy = replace(batch, waveform_BS=torch.randn_like(batch.waveform_BS), clean_BS=batch.waveform_BS)
    frames = model.clock.num_frames(batch.waveform_BS.shape[1])
    shifts, _ = draws(frames)
    heard = [
        objective.teach(given, model.local(given.waveform_BS).features_BTC, shifts, frames) for given in (batch, noisy)
    ]
    torch.testing.assert_close(*heard)


def test_teacher_and_its_projection_get_no_gradient_and_all_else_is_trained() -> None:
    model = small_model()
    objective = make(model)
    objective(model, small_batch(), seed=0, step=0).loss_sum.backward()
    names = {name for name, _ in objective.named_parameters()}
    teachers = {name for name in names if name.startswith(("target.", "teacher_project."))}
    assert without_gradient(objective) == teachers != set()
    assert not without_gradient(model) - {"encoder.position.conv.bias"}


def test_teacher_and_its_projection_follow_by_one_momentum() -> None:
    model = small_model()
    objective = make(model)
    before = objective.project.weight.detach().clone()
    step(objective.project)
    objective.after_step(model, seed=0, step=1)
    torch.testing.assert_close(objective.teacher_project.module.weight, (before + objective.project.weight) / 2)


def test_two_halves_of_a_batch_add_up_to_the_whole() -> None:
    model, batch = small_model(), small_batch()
    objective = make(model)
    shifts, negatives = draws(model.clock.num_frames(batch.waveform_BS.shape[1]))
    whole = objective.compare(model, batch, shifts, negatives)
    halves = [
        objective.compare(
            model, replace(batch, waveform_BS=batch.waveform_BS[n : n + 1]), shifts[n : n + 1], negatives[n : n + 1]
        )
        for n in (0, 1)
    ]
    torch.testing.assert_close(halves[0].loss_sum + halves[1].loss_sum, whole.loss_sum, rtol=1e-5, atol=1e-4)
    for name, log in whole.logs.items():
        assert (halves[0].logs[name] + halves[1].logs[name]).read(name) == pytest.approx(log.read(name), rel=1e-4)


def test_a_teacher_that_says_the_same_of_every_frame_shows() -> None:
    model = small_model()
    objective = make(model)
    healthy = objective(model, small_batch(), seed=0, step=0).logs["target/std"].read("s")["s"]
    with torch.no_grad():
        objective.teacher_project.module.weight.zero_()
    collapsed = objective(model, small_batch(), seed=0, step=0).logs
    assert healthy > 0.1
    assert collapsed["target/std"].read("s")["s"] < 1e-5
    assert collapsed["objective/accuracy_contrastive"].read("a")["a"] == 0
    assert collapsed["objective/chance"].read("c")["c"] == pytest.approx(1 / (1 + objective.num_negatives))


def test_position_and_seed_alone_choose_negatives_and_shifts() -> None:
    model = small_model()
    objective = make(model)
    losses = [
        float(objective(model, small_batch(position=place), seed=seed, step=0).loss_sum.detach())
        for place, seed in ((3, 0), (3, 0), (4, 0), (3, 1))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_no_step_reads_a_value_on_the_host() -> None:
    model = small_model()
    objective, batch = make(model), small_batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective(model, batch, seed=0, step=0).loss_sum.backward()
        objective.after_step(model, seed=0, step=1)


def test_a_teacher_that_does_not_follow_is_refused() -> None:
    with pytest.raises(ConfigError, match="target=ema_teacher"):
        ContrastiveTeacher(nn.Identity(), 4, 4, predictor=PREDICTOR)  # ty: ignore[invalid-argument-type]
