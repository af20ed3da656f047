import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from typing_extensions import override

from ossicle.core.batch import Batch, Frames
from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError, DataError
from ossicle.layer.heads import CosineHead, LinearHead
from ossicle.layer.mask import EmbeddingMask, Mask, NoiseMask
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.masked_prediction import MaskedPrediction
from ossicle.ops.masking import masked_flags
from ossicle.target.base import DiscreteTarget
from tests.objective.stand_in import encodes

BatchMaker = Callable[..., Batch]
Part = Callable[[Batch, slice], Batch]


class Given(DiscreteTarget):
    """The batch's labels, through a parameter that a gradient must never reach."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.one = torch.nn.Parameter(torch.ones(()))

    @override
    def forward(self, batch: Batch, clock: FrameClock) -> Tensor:
        assert batch.labels_BT is not None
        assert not torch.is_grad_enabled()
        return (batch.labels_BT * self.one).round().long()


def make(model: SpeechEncoder, classes: int = 7, **changes: object) -> MaskedPrediction:
    torch.manual_seed(1)
    parts: dict[str, object] = {"head": partial(CosineHead, final_dim=8), "mask": EmbeddingMask}
    return MaskedPrediction(Given(classes), model.dim, model.feature_dim, **(parts | changes))


def draw(rows: int, frames: int, masked: int, seed: int = 0) -> Tensor:
    keys = torch.rand(rows, frames, generator=torch.Generator().manual_seed(seed))
    return keys.argsort(1)[:, :masked].sort(1).values


def encoded_by_hand(model: SpeechEncoder, objective: MaskedPrediction, batch: Batch, flags: Tensor) -> Tensor:
    x = model.embed(model.normalise(model.local(batch.waveform_BS).features_BTC)).clone()
    x[flags] = objective.mask.vector_D
    return model.encode(x).last_BTD


def nll_by_hand(head: CosineHead, frames: Tensor, labels: Tensor) -> Tensor:
    """HuBERT's equation 3, frame by frame."""
    total = torch.zeros((), dtype=torch.float64)
    for frame, label in zip(frames, labels, strict=True):
        projected = head.project.weight @ frame + head.project.bias
        scores = [projected @ e / projected.norm() / e.norm() / head.temperature for e in head.classes_VF]
        exponentials = torch.stack(scores).exp()
        total = total - (exponentials[label] / exponentials.sum()).log()
    return total


@given(
    rows=st.integers(1, 3),
    frames=st.integers(2, 30),
    share=st.floats(0.05, 0.95),
    unmasked_weight=st.sampled_from([0.0, 0.3]),
    penalty_weight=st.sampled_from([0.0, 10.0]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_loss_equals_huberts_formula_computed_by_hand(
    model: SpeechEncoder,
    make_batch: BatchMaker,
    *,
    rows: int,
    frames: int,
    share: float,
    unmasked_weight: float,
    penalty_weight: float,
) -> None:
    model = copy.deepcopy(model).double()
    objective = make(model, masked_weight=0.7, unmasked_weight=unmasked_weight, penalty_weight=penalty_weight).double()
    batch = make_batch(rows, frames, classes=7)
    batch = Batch(batch.waveform_BS.double(), 0, batch.ids_B, batch.starts_B, batch.labels_BT)
    masked = draw(rows, frames, max(1, round(frames * share)))
    flags = masked_flags(masked, frames)
    output = objective.predict(model, batch, masked, seed=0)

    encoded = encoded_by_hand(model, objective, batch, flags)
    assert batch.labels_BT is not None
    assert isinstance(objective.head, CosineHead)
    expected = 0.7 * nll_by_hand(objective.head, encoded[flags], batch.labels_BT[flags])
    count = int(flags.sum())
    if unmasked_weight:
        expected = expected + unmasked_weight * nll_by_hand(objective.head, encoded[~flags], batch.labels_BT[~flags])
        count = flags.numel()
    features = model.local(batch.waveform_BS).features_BTC
    expected = expected + penalty_weight * count * (features**2).sum() / features.numel()
    assert float(output.count) == count
    torch.testing.assert_close(output.loss_sum.double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("std", [0.1, 0.0], ids=["best_rq", "melhubert"])
@pytest.mark.parametrize("unmasked_weight", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_plain_cross_entropy_behind_noise_equals_the_formula_by_a_loop_in_float64(
    model: SpeechEncoder, make_batch: BatchMaker, std: float, unmasked_weight: float, temperature: float
) -> None:
    model = copy.deepcopy(model).double()
    objective = make(
        model, head=partial(LinearHead, temperature=temperature), mask=partial(NoiseMask, std=std), penalty_weight=0.0,
        unmasked_weight=unmasked_weight,
    ).double()  # fmt: skip
    batch, masked = make_batch(2, 15, classes=7), draw(2, 15, 6)
    batch = replace(batch, waveform_BS=batch.waveform_BS.double())
    flags, labels = masked_flags(masked, 15), batch.labels_BT
    heard: list[Tensor] = []
    embed = model.embed
    model.embed = lambda x: heard.append(x) or embed(x)  # type: ignore[method-assign]
    output = objective.predict(model, batch, masked, seed=0)

    features = model.normalise(model.local(batch.waveform_BS).features_BTC)
    assert torch.equal(heard[0][~flags], features[~flags])
    assert float(heard[0][flags].detach().std()) == pytest.approx(std, rel=0.2)
    features[flags] = heard[0][flags]  # the noise itself is the mask's matter
    encoded = model.encode(embed(features)).last_BTD
    head, expected = objective.head, torch.zeros((), dtype=torch.float64)
    assert isinstance(head, LinearHead)
    assert labels is not None
    for row in range(2):
        for frame in range(15):
            scores = [
                (w @ encoded[row, frame] + b) / temperature for w, b in zip(*head.project.parameters(), strict=True)
            ]
            exponentials = torch.stack(scores).exp()
            nll = -(exponentials[labels[row, frame]] / exponentials.sum()).log()
            expected = expected + nll * (1.0 if flags[row, frame] else unmasked_weight)
    assert float(output.count) == (30 if unmasked_weight else 12)
    torch.testing.assert_close(output.loss_sum.double(), expected, atol=1e-4, rtol=1e-5)


def test_count_is_every_masked_frame_of_the_batch(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    output = make(model)(model, make_batch(4, 49, classes=7), seed=0, step=0)
    assert float(output.count) == 4 * round(49 * (1 - 0.92**10))
    assert output.loss_sum.shape == ()
    assert not output.count.requires_grad


def test_two_halves_of_a_batch_add_up_to_the_whole(model: SpeechEncoder, make_batch: BatchMaker, part: Part) -> None:
    objective, batch, masked = make(model, unmasked_weight=0.5), make_batch(4, 49, classes=7), draw(4, 49, 20)
    whole = objective.predict(model, batch, masked, seed=0)
    halves = [objective.predict(model, part(batch, rows), masked[rows], seed=0) for rows in (slice(2), slice(2, 4))]
    torch.testing.assert_close(halves[0].loss_sum + halves[1].loss_sum, whole.loss_sum, rtol=1e-5, atol=1e-4)
    assert float(halves[0].count + halves[1].count) == float(whole.count)
    for name, log in whole.logs.items():
        added = (halves[0].logs[name] + halves[1].logs[name]).read(name)
        assert added == pytest.approx(log.read(name), rel=1e-5, abs=1e-6)


def test_position_and_seed_alone_choose_the_masks(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    objective = make(model)
    first = objective(model, make_batch(classes=7, position=3), seed=0, step=0).loss_sum
    again = objective(model, make_batch(classes=7, position=3), seed=0, step=99).loss_sum
    other_position = objective(model, make_batch(classes=7, position=4), seed=0, step=0).loss_sum
    other_seed = objective(model, make_batch(classes=7, position=3), seed=1, step=0).loss_sum
    assert torch.equal(first, again)
    assert not torch.equal(first, other_position)
    assert not torch.equal(first, other_seed)


def test_nothing_flows_into_the_target_and_all_else_is_trained(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    objective = make(model)
    objective(model, make_batch(classes=7), seed=0, step=0).loss_sum.backward()
    without = {name for name, parameter in objective.named_parameters() if parameter.grad is None}
    assert without == {"target.one"}
    assert all(parameter.grad is not None for parameter in model.parameters())


class Identity(EmbeddingMask):
    """Keeps the encoder's output, so that a test can read its gradient."""

    @override
    def forward(self, *inputs: object) -> Tensor:
        self.embedded = super().forward(*inputs)
        self.embedded.retain_grad()
        return self.embedded


@pytest.mark.parametrize("unmasked_weight", [0.0, 0.5])
def test_frames_of_weight_zero_get_no_gradient(
    model: SpeechEncoder, make_batch: BatchMaker, monkeypatch: pytest.MonkeyPatch, unmasked_weight: float
) -> None:
    objective = make(model, mask=Identity, unmasked_weight=unmasked_weight, penalty_weight=0.0)
    monkeypatch.setattr(model, "encode", encodes(lambda x: x))  # frames do not meet
    masked = draw(4, 49, 20)
    objective.predict(model, make_batch(classes=7), masked, seed=0).loss_sum.backward()
    assert isinstance(objective.mask, Identity)
    reached = objective.mask.embedded.grad.abs().sum(-1) > 0
    expected = masked_flags(masked, 49)
    assert torch.equal(reached, torch.ones_like(expected) if unmasked_weight else expected)


@pytest.mark.parametrize("mask", [EmbeddingMask, NoiseMask])
def test_masked_frames_of_the_frontend_get_no_gradient_though_frames_meet_behind_it(
    model: SpeechEncoder, make_batch: BatchMaker, monkeypatch: pytest.MonkeyPatch, mask: type[Mask]
) -> None:
    objective = make(model, mask=mask, penalty_weight=0.0)
    features = torch.randn(4, 49, 12, requires_grad=True)
    monkeypatch.setattr(model, "local", lambda *_: Frames(features))
    monkeypatch.setattr(model, "encode", encodes(lambda x: x + x.mean(1, keepdim=True)))
    masked = draw(4, 49, 20)
    objective.predict(model, make_batch(classes=7), masked, seed=0).loss_sum.backward()
    assert features.grad is not None
    assert torch.equal(features.grad.any(-1), ~masked_flags(masked, 49))


def test_masked_frames_say_nothing_of_what_was_there(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    batch = make_batch(1, 49, classes=7)
    everything = torch.arange(49)[None]
    objective = make(model, penalty_weight=0.0)
    other = Batch(torch.randn_like(batch.waveform_BS), 0, batch.ids_B, batch.starts_B, batch.labels_BT)
    ours, theirs = (objective.predict(model, b, everything, seed=0).loss_sum for b in (batch, other))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "changes",
    [{}, {"head": LinearHead, "mask": NoiseMask, "penalty_weight": 0.0}, {"unmasked_weight": 1.0}],
    ids=["hubert", "best_rq", "unmasked"],
)
def test_bf16_autocast_gives_a_finite_float32_loss_and_gradients(
    model: SpeechEncoder, make_batch: BatchMaker, changes: dict[str, object]
) -> None:
    objective, batch = make(model, **changes), make_batch(classes=7)
    exact = objective(model, batch, seed=0, step=0).loss_sum
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(model, batch, seed=0, step=0)
    output.loss_sum.backward()
    assert output.loss_sum.dtype == torch.float32
    torch.testing.assert_close(output.loss_sum, exact, rtol=0.02, atol=0)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_logs_say_what_a_collapse_guard_reads(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    batch = make_batch(classes=7)
    assert batch.labels_BT is not None
    batch.labels_BT.fill_(2)  # one class everywhere
    output = make(model, unmasked_weight=1.0)(model, batch, seed=0, step=0)
    values = {key: value for name, log in output.logs.items() for key, value in log.read(name).items()}
    assert values["target/codes_top"] == pytest.approx(1.0)
    assert values["target/codes_perplexity"] == pytest.approx(1.0)
    assert values["target/codes_used"] == pytest.approx(1 / 7)
    assert 0 <= values["objective/accuracy_masked"] <= 1
    assert 0 <= values["objective/accuracy_unmasked"] <= 1
    assert values["objective/output_std"] > 0
    assert values["objective/loss"] == pytest.approx(float(output.loss_sum / output.count))
    assert {"objective/codes_perplexity", "objective/codes_top", "objective/feature_penalty"} <= values.keys()
    assert not any(tensor.requires_grad for log in output.logs.values() for tensor in log.tensors())


def test_a_few_steps_learn_labels_that_the_waveform_tells(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    batch = make_batch(classes=7)
    objective = make(model, penalty_weight=0.0)
    optimiser = torch.optim.Adam([*model.parameters(), *objective.parameters()], 1e-2)
    losses = []
    for _ in range(25):
        output = objective(model, batch, seed=0, step=0)  # one batch, one mask: it can be learned by heart
        optimiser.zero_grad()
        (output.loss_sum / output.count).backward()
        optimiser.step()
        losses.append(float(output.loss_sum.detach() / output.count))
    assert losses[-1] < 0.7 * losses[0]


def test_no_step_reads_a_value_on_the_host(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    objective, batch = make(model, unmasked_weight=1.0), make_batch(classes=7)
    with FakeTensorMode(allow_non_fake_inputs=True):
        output = objective(model, batch, seed=0, step=0)
        output.loss_sum.backward()
        assert output.loss_sum.shape == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_never_makes_the_host_wait(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    model, objective = model.cuda(), make(model, unmasked_weight=1.0).cuda()
    batch = make_batch(classes=7).to(torch.device("cuda"))
    objective(model, batch, seed=0, step=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            output = objective(model, batch, seed=0, step=1)
        output.loss_sum.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(output.loss_sum)


def test_labels_of_another_length_are_refused_with_both_shapes(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    batch = make_batch(classes=7)
    assert batch.labels_BT is not None
    short = Batch(batch.waveform_BS, 0, batch.ids_B, batch.starts_B, batch.labels_BT[:, :-1])
    with pytest.raises(DataError, match=r"\(4, 48\).*\(4, 49\)"):
        make(model)(model, short, seed=0, step=0)


def test_a_masked_weight_of_zero_is_refused(model: SpeechEncoder) -> None:
    with pytest.raises(ConfigError, match="masked_weight"):
        make(model, masked_weight=0.0)


def test_it_builds_on_the_meta_device(model: SpeechEncoder) -> None:
    with torch.device("meta"):
        objective = make(model)
    assert {parameter.device.type for parameter in objective.parameters()} == {"meta"}
