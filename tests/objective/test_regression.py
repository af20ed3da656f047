import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.layer.mask import EmbeddingMask
from ossicle.objective.regression import Regression
from ossicle.ops.masking import masked_flags
from tests.objective.teaching import DIM, FRAMES, small_batch, small_model, small_teacher, step, without_gradient

MASKED = torch.tensor([[2, 3, 4, 11, 20], [0, 1, 7, 8, 29]])


def make(model: Backbone, **changes: object) -> Regression:
    torch.manual_seed(1)
    objective = Regression(small_teacher(model), model.dim, model.feature_dim, mask=EmbeddingMask, **changes)
    objective.adopt(model)
    return objective


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.25])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_loss_equals_data2vecs_formula_computed_by_hand(beta: float, unmasked_weight: float) -> None:
    model = small_model()
    objective = make(model, beta=beta, unmasked_weight=unmasked_weight)
    step(model)  # teacher and student differ
    batch = small_batch()
    output = objective.regress(model, batch, MASKED, seed=0)

    wanted = objective.target(batch).double()
    x = model.embed(model.normalise(model.local(batch.waveform_BS).features_BTC)).clone()
    flags = masked_flags(MASKED, FRAMES)
    x[flags] = objective.mask.vector_D
    predicted = objective.predict(model.encode(x).last_BTD).double()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(2):
        for frame in range(FRAMES):
            weight = 1.0 if flags[row, frame] else unmasked_weight
            for channel in range(DIM):
                d = (predicted[row, frame, channel] - wanted[row, frame, channel]).abs()
                square = d**2 if beta == 0 else d**2 / (2 * beta)
                total = total + weight * (square if beta == 0 or d <= beta else d - beta / 2) / DIM**0.5
    torch.testing.assert_close(output.loss_sum.double(), total, rtol=1e-5, atol=1e-4)
    assert float(output.count) == (2 * FRAMES if unmasked_weight else MASKED.numel())


def test_teacher_gets_no_gradient_and_all_else_is_trained() -> None:
    model = small_model()
    objective = make(model)
    objective(model, small_batch(), seed=0, step=0).loss_sum.backward()
    names = {name for name, _ in objective.named_parameters()}
    assert without_gradient(objective) == {name for name in names if name.startswith("target.")} != set()
    assert not without_gradient(model) - {"encoder.position.conv.bias"}


def test_predictions_of_unmasked_frames_get_no_gradient() -> None:
    model = small_model()
    objective = make(model)
    seen: list[torch.Tensor] = []
    objective.predict.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    objective.regress(model, small_batch(), MASKED, seed=0)
    assert [tuple(x.shape) for x in seen] == [(2, 5, DIM)]  # nothing else is predicted


def test_the_teacher_follows_after_a_step_and_the_student_alone_is_masked() -> None:
    model = small_model()
    objective = make(model)
    before = objective.target.model.project.weight.clone()
    step(model)
    objective.after_step(model, seed=0, step=1)
    torch.testing.assert_close(objective.target.model.project.weight, (before + model.project.weight) / 2)


def test_two_halves_of_a_batch_add_up_to_the_whole() -> None:
    model, batch = small_model(), small_batch(rows=2)
    objective = make(model, unmasked_weight=0.5)
    whole = objective.regress(model, batch, MASKED, seed=0)
    halves = [
        objective.regress(model, replace(batch, waveform_BS=batch.waveform_BS[n : n + 1]), MASKED[n : n + 1], seed=0)
        for n in (0, 1)
    ]
    torch.testing.assert_close(halves[0].loss_sum + halves[1].loss_sum, whole.loss_sum, rtol=1e-5, atol=1e-4)
    assert float(halves[0].count + halves[1].count) == float(whole.count)
    for name, log in whole.logs.items():
        assert (halves[0].logs[name] + halves[1].logs[name]).read(name) == pytest.approx(log.read(name), rel=1e-4)


def test_a_collapsed_teacher_shows_in_the_targets_deviation() -> None:
    model = small_model()
    objective = make(model)
    healthy = objective(model, small_batch(), seed=0, step=0).logs["target/std"].read("s")["s"]
    with torch.no_grad():
        for block in objective.target.model.encoder.blocks:
            nn.init.zeros_(block.feed_forward.contract.weight)
    collapsed = objective(model, small_batch(), seed=0, step=0).logs["target/std"].read("s")["s"]
    assert healthy > 0.5
    assert collapsed < 1e-3


def test_a_few_steps_learn_a_teacher_that_stands_still() -> None:
    model = small_model()
    objective = make(model)
    optimiser = torch.optim.Adam([*model.parameters(), *objective.predict.parameters()], 1e-2)
    losses = []
    for _ in range(30):
        output = objective.regress(model, small_batch(), MASKED, seed=0)
        optimiser.zero_grad()
        (output.loss_sum / output.count).backward()
        optimiser.step()
        losses.append(float(output.loss_sum.detach() / output.count))
    assert losses[-1] < 0.3 * losses[0]


def test_bf16_autocast_gives_a_finite_float32_loss() -> None:
    model = small_model()
    objective, batch = make(model), small_batch()
    exact = objective(model, batch, seed=0, step=0).loss_sum
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(model, batch, seed=0, step=0)
    output.loss_sum.backward()
    assert output.loss_sum.dtype == torch.float32
    torch.testing.assert_close(output.loss_sum, exact, rtol=0.05, atol=0)


def test_no_step_reads_a_value_on_the_host() -> None:
    model = small_model()
    objective, batch = make(model, unmasked_weight=1.0), small_batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        output = objective(model, batch, seed=0, step=0)
        output.loss_sum.backward()
        objective.after_step(model, seed=0, step=1)


def test_a_target_that_is_no_teacher_is_refused() -> None:
    with pytest.raises(ConfigError, match="target=ema_teacher"):
        Regression(nn.Identity(), 4, 4, mask=EmbeddingMask)  # ty: ignore[invalid-argument-type]


def test_it_builds_on_the_meta_device_and_deepcopies() -> None:
    with torch.device("meta"):
        objective = make(small_model())
    assert {parameter.device.type for parameter in objective.parameters()} == {"meta"}
    copy.deepcopy(make(small_model()))
