import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.core.batch import Batch
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.core.seeds import generator
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.convolutional import Convolutional
from ossicle.encoder.recurrent import Recurrent
from ossicle.frontend.wave import WaveReLU
from ossicle.mixer.attention import Attention
from ossicle.objective.contrastive_binary import ContrastiveBinary
from ossicle.objective.contrastive_predictive import ContrastivePredictive
from ossicle.objective.future import Foreseeing, found
from ossicle.ops.future import other_frames
from ossicle.target.frames import Frames

KINDS = pytest.mark.parametrize("kind", [ContrastivePredictive, ContrastiveBinary])
THIN = ((6, 10, 5), (6, 8, 4), (6, 4, 2), (6, 4, 2), (6, 4, 2))


def causal(encoder: type[Convolutional] | type[Recurrent] = Convolutional) -> Backbone:
    torch.manual_seed(0)
    return Backbone(WaveReLU(THIN, gradient_scale=1.0), encoder(partial(Attention), dim=8, num_layers=2), 0.0)


def objective(kind: type[Foreseeing], model: Backbone, *, across_rows: bool = False) -> Foreseeing:
    torch.manual_seed(1)
    made = kind(Frames(model.clock, 6), model.dim, 6, num_steps=3, num_negatives=4, across_rows=across_rows)
    made.adopt(model)
    if made.predict.bias is not None:
        nn.init.normal_(made.predict.bias)
    return made


@KINDS
@pytest.mark.parametrize("across_rows", [False, True])
def test_the_loss_equals_a_loop_over_the_papers_equation_in_float64(
    kind: type[Foreseeing], across_rows: bool, make_batch: Callable[..., Batch]
) -> None:
    model = causal().double()
    loss = objective(kind, model, across_rows=across_rows).double()
    batch = make_batch(rows=2, frames=9)
    batch = replace(batch, waveform_BS=batch.waveform_BS.double())
    output = loss(model, batch, seed=5, step=0)
    z = model.local(batch.waveform_BS).features_BTC
    frames = z.shape[1]
    c = model.encode(model.embed(model.normalise(z))).last_BTD
    source = generator(5, batch.position, 0, "negatives")
    draws = other_frames(2, frames, num=4, generator=source, across_rows=across_rows)
    among = [z.flatten(0, 1)] * 2 if across_rows else list(z)  # what each row's negatives are counted in
    maps = loss.predict.weight.unflatten(0, (3, 6))
    shifts = torch.zeros(3, 6) if kind is ContrastivePredictive else loss.predict.bias.unflatten(0, (3, 6))
    total, count = 0.0, 0
    for step in (1, 2, 3):
        for row in range(2):
            for t in range(frames - step):
                prediction = maps[step - 1] @ c[row, t] + shifts[step - 1]
                right = (prediction @ z[row, t + step]).item()
                wrong = [(prediction @ among[row][other]).item() for other in draws[row, t + step].tolist()]
                if kind is ContrastivePredictive:
                    total -= math.log(math.exp(right) / (math.exp(right) + sum(math.exp(w) for w in wrong)))
                else:
                    total -= math.log(1 / (1 + math.exp(-right)))
                    total -= 4 * sum(math.log(1 / (1 + math.exp(w))) for w in wrong) / 4
                count += 1
    assert output.count.item() == count
    # scores are taken in float32, whatever comes in
    assert output.loss_sum.item() == pytest.approx(total, rel=1e-5)


@KINDS
@pytest.mark.parametrize("encoder", [Convolutional, Recurrent])
def test_every_parameter_learns_and_the_frontend_from_both_sides(
    kind: type[Foreseeing], encoder: type[Convolutional] | type[Recurrent], make_batch: Callable[..., Batch]
) -> None:
    model = causal(encoder)
    loss = objective(kind, model)
    loss(model, make_batch(), seed=0, step=0).loss_sum.backward()
    for name, parameter in [*model.named_parameters(), *loss.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@KINDS
def test_the_loss_of_a_batch_is_that_of_its_draws_and_of_no_other(
    kind: type[Foreseeing], make_batch: Callable[..., Batch]
) -> None:
    model = causal()
    loss = objective(kind, model)
    first, again = (loss(model, make_batch(), seed=0, step=0).loss_sum for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, loss(model, make_batch(position=4), seed=0, step=0).loss_sum)


@KINDS
def test_it_learns_to_foresee(kind: type[Foreseeing], make_batch: Callable[..., Batch]) -> None:
    model = causal()
    loss = objective(kind, model)
    batch = make_batch()
    time = torch.arange(batch.waveform_BS.shape[1]) / 16_000
    tones = [torch.sin(2 * math.pi * (150 + 100 * row) * time) for row in range(4)]
    beating = torch.stack([tone * torch.sin(2 * math.pi * (3 + row) * time) for row, tone in enumerate(tones)])
    batch = replace(batch, waveform_BS=beating)
    optimiser = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=3e-3)
    values = []
    for position in range(150):
        output = loss(model, replace(batch, position=position), seed=0, step=position)
        values.append((output.loss_sum / output.count).item())
        optimiser.zero_grad()
        (output.loss_sum / output.count).backward()
        optimiser.step()
    assert sum(values[-5:]) < 0.75 * sum(values[:5])


@KINDS
def test_a_target_that_is_not_the_frames_and_no_steps_are_refused(kind: type[Foreseeing]) -> None:
    with pytest.raises(ConfigError, match="target=frames"):
        kind(torch.nn.Identity(), 8, 6)
    with pytest.raises(ConfigError, match="num_steps=0"):
        kind(Frames(FrameClock(), 6), 8, 6, num_steps=0)


@KINDS
def test_scores_begin_about_one_whatever_the_widths(kind: type[Foreseeing]) -> None:
    clock = causal().clock
    for dim, channels in ((32, 512), (512, 32)):
        made = kind(Frames(clock, channels), dim, channels, num_steps=3, num_negatives=4)
        predicted_T3C = made.predict(torch.randn(200, dim)).unflatten(1, (3, channels))
        scores_T3 = predicted_T3C @ torch.randn(channels)
        assert float(scores_T3.detach().std()) == pytest.approx(1.0, abs=0.3)


def test_frames_of_one_code_are_found_by_chance() -> None:
    right_BT = torch.tensor([[2.0, 1.0, 0.0, 3.0]])
    wrong_BTN = torch.tensor([[[1.0, 0.0, 1.5], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [3.0, 1.0, 0.0]]])
    torch.testing.assert_close(found(right_BT, wrong_BTN), torch.tensor([[1.0, 0.25, 0.0, 0.5]]))


@KINDS
def test_two_halves_of_a_batch_add_up_to_the_whole(kind: type[Foreseeing], make_batch: Callable[..., Batch]) -> None:
    model = causal()
    loss, batch = objective(kind, model), make_batch(rows=2, frames=9)
    frames = model.clock.num_frames(batch.waveform_BS.shape[1])
    negatives = other_frames(2, frames, num=4, generator=torch.Generator().manual_seed(0))
    whole = loss.compare(model, batch, negatives)
    halves = [
        loss.compare(model, replace(batch, waveform_BS=batch.waveform_BS[n : n + 1]), negatives[n : n + 1])
        for n in (0, 1)
    ]
    torch.testing.assert_close(halves[0].loss_sum + halves[1].loss_sum, whole.loss_sum, rtol=1e-5, atol=1e-5)
    assert float(halves[0].count + halves[1].count) == float(whole.count)
    for name, log in whole.logs.items():
        assert (halves[0].logs[name] + halves[1].logs[name]).read(name) == pytest.approx(log.read(name), rel=1e-4)


@KINDS
def test_bf16_autocast_gives_a_finite_float32_loss_and_gradients(
    kind: type[Foreseeing], make_batch: Callable[..., Batch]
) -> None:
    model = causal()
    loss = objective(kind, model)
    with torch.autocast("cpu", torch.bfloat16):
        output = loss(model, make_batch(), seed=0, step=0)
    output.loss_sum.backward()
    assert output.loss_sum.dtype == torch.float32
    for parameter in [*model.parameters(), *loss.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@KINDS
def test_no_step_reads_a_value_on_the_host(kind: type[Foreseeing], make_batch: Callable[..., Batch]) -> None:
    model = causal()
    loss, batch = objective(kind, model), make_batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        output = loss(model, batch, seed=0, step=0)
        output.loss_sum.backward()
        assert output.loss_sum.shape == ()


@KINDS
def test_a_crop_of_one_frame_is_refused_with_the_mend(kind: type[Foreseeing], make_batch: Callable[..., Batch]) -> None:
    model = causal()
    with pytest.raises(DataError, match="min_crop_s"):
        objective(kind, model)(model, make_batch(2, 1), seed=0, step=0)


@KINDS
def test_it_builds_on_the_meta_device(kind: type[Foreseeing]) -> None:
    model = causal()
    with torch.device("meta"):
        assert {parameter.device.type for parameter in objective(kind, model).parameters()} == {"meta"}
