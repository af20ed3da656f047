from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
from typing_extensions import override

from ossicle.core.batch import Batch, EncoderOutput, Frames
from ossicle.core.clock import FrameClock
from ossicle.core.errors import DataError
from ossicle.layer.mask import EmbeddingMask, NoiseMask
from ossicle.layer.projection import MLPProjection
from ossicle.layer.speech_encoder import SpeechEncoder
from ossicle.objective.contrastive import Contrastive
from ossicle.ops.masking import mask_indices, masked_flags
from ossicle.ops.negatives import sample_negatives
from ossicle.target.gumbel import GumbelQuantiser
from tests.objective.stand_in import encodes

BatchMaker = Callable[..., Batch]
Part = Callable[[Batch, slice], Batch]


def make(model: SpeechEncoder, codes: int = 6, **changes: object) -> Contrastive:
    torch.manual_seed(1)
    target = GumbelQuantiser(model.clock, model.feature_dim, num_groups=2, num_codes=codes, dim=8)
    parts: dict[str, object] = {"mask": EmbeddingMask, "num_negatives": 9, "final_dim": 10, "feature_dropout": 0.0}
    return Contrastive(target, model.dim, model.feature_dim, **(parts | changes))


def draw(rows: int, frames: int, num: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    masked = mask_indices(rows, frames, start_probability=0.1, length=5, generator=source)
    return masked, sample_negatives(rows, masked.shape[1], num=num, generator=source)


class Theirs(SpeechEncoder):
    """transformers' own wav2vec 2.0 behind the interface, so that the losses are compared on equal frames."""

    def __init__(self, codes: int) -> None:
        super().__init__()
        config = Wav2Vec2Config(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(12,) * 3,
            conv_kernel=(10, 8, 4), conv_stride=(5, 8, 8), num_feat_extract_layers=3, num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2, num_codevectors_per_group=codes, num_codevector_groups=2,
            codevector_dim=8, proj_codevector_dim=10, hidden_dropout=0.0, attention_dropout=0.0,
            activation_dropout=0.0, feat_proj_dropout=0.0, layerdrop=0.0, attn_implementation="eager",
        )  # fmt: skip
        self.theirs = Wav2Vec2ForPreTraining(config)
        self.clock = self.feature_clock = FrameClock().then(10, 5).then(8, 8).then(4, 8)
        self.feature_dim, self.dim, self.num_layers = 12, 24, 2

    @override
    def local(self, waveform_BS: Tensor, lengths_B: Tensor | None = None) -> Frames:
        return Frames(self.theirs.wav2vec2.feature_extractor(waveform_BS).transpose(1, 2))

    @override
    def normalise(self, features_BTC: Tensor) -> Tensor:
        return self.theirs.wav2vec2.feature_projection.layer_norm(features_BTC)

    @override
    def embed(self, features_BTC: Tensor) -> Tensor:
        return self.theirs.wav2vec2.feature_projection.projection(features_BTC)

    @override
    def encode(self, x_BTD: Tensor, valid_BT: Tensor | None = None, **asked: Any) -> EncoderOutput:
        return encodes(lambda x: self.theirs.wav2vec2.encoder(x).last_hidden_state)(x_BTD, **asked)

    @override
    def forward(self, waveform_BS: Tensor, lengths_B: Tensor | None = None, *, layers: bool = False) -> EncoderOutput:
        return self.encode(self.embed(self.normalise(self.local(waveform_BS).features_BTC)))


def converted(model: Theirs, codes: int, penalty_weight: float = 0.0) -> Contrastive:
    objective, theirs = make(model, codes, penalty_weight=penalty_weight), model.theirs
    assert isinstance(objective.target, GumbelQuantiser)
    assert isinstance(objective.mask, EmbeddingMask)
    with torch.no_grad():
        objective.target.logits.load_state_dict(theirs.quantizer.weight_proj.state_dict())
        objective.target.codebook_GVD.copy_(theirs.quantizer.codevectors.reshape(2, codes, 4))
        objective.project_context.load_state_dict(theirs.project_hid.state_dict())
        objective.project_quantised.load_state_dict(theirs.project_q.state_dict())
        objective.mask.vector_D.copy_(theirs.wav2vec2.masked_spec_embed)
    return objective


def shared_noise(monkeypatch: pytest.MonkeyPatch, masked: Tensor, frames: int) -> None:
    """One Gumbel noise for both: theirs quantises every frame, ours the masked ones."""
    noise = torch.distributions.Gumbel(0.0, 1.0).sample((masked.shape[0], frames, 2, 6))

    def theirs(logits: Tensor, tau: float, *, hard: bool) -> Tensor:
        soft = ((logits + noise.reshape(logits.shape)) / tau).softmax(-1)
        one_hot = functional.one_hot(soft.argmax(-1), logits.shape[-1])
        assert hard
        return one_hot + (soft - soft.detach())

    monkeypatch.setattr(functional, "gumbel_softmax", theirs)
    ours = noise[masked_flags(masked, frames)]
    monkeypatch.setattr(GumbelQuantiser, "_noise", lambda *_: ours)


@pytest.mark.parametrize("train", [True, False])
@given(rows=st.integers(1, 3), frames=st.integers(6, 40), num=st.integers(1, 12), seed=st.integers(0, 2**32))
@settings(max_examples=8, deadline=None)
def test_contrastive_and_diversity_losses_and_gradients_equal_transformers(
    *, train: bool, rows: int, frames: int, num: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = Theirs(codes=6).train(train)
    objective = converted(model, codes=6).train(train)
    masked, negatives = draw(rows, frames, num, seed)
    waveform = torch.randn(rows, model.clock.num_samples(frames))
    index = torch.arange(rows)
    with pytest.MonkeyPatch.context() as monkeypatch:
        shared_noise(monkeypatch, masked, frames)
        batch = Batch(waveform, 0, index, index)
        ours = objective.compare(model, batch, masked, negatives, seed=0, step=0)
        their_negatives = torch.zeros(rows, frames, num, dtype=torch.int64)
        for row in range(rows):
            their_negatives[row, masked[row]] = masked[row][negatives[row]] + row * frames
        flags = masked_flags(masked, frames)
        theirs = model.theirs(waveform, mask_time_indices=flags, sampled_negative_indices=their_negatives)

    values = {key: value for name, log in ours.logs.items() for key, value in log.read(name).items()}
    count = masked.numel()
    assert float(ours.count) == count
    assert values["objective/contrastive"] * count == pytest.approx(
        float(theirs.contrastive_loss.detach()), rel=1e-5, abs=1e-4
    )
    assert values["objective/diversity"] * count == pytest.approx(
        float(theirs.diversity_loss.detach()), rel=1e-5, abs=1e-4
    )
    torch.testing.assert_close(ours.loss_sum, theirs.loss, rtol=1e-5, atol=1e-4)
    pairs = (
        (objective.target.logits.weight, model.theirs.quantizer.weight_proj.weight),
        (objective.project_context.weight, model.theirs.project_hid.weight),
        (objective.project_quantised.weight, model.theirs.project_q.weight),
    )
    for own, other in pairs:
        if own.requires_grad and (train or own is not objective.target.logits.weight):
            (mine,) = torch.autograd.grad(ours.loss_sum, own, retain_graph=True)
            (other_grad,) = torch.autograd.grad(theirs.loss, other, retain_graph=True)
            torch.testing.assert_close(mine, other_grad, rtol=1e-3, atol=2e-4)


def test_total_is_contrastive_plus_weighted_diversity_and_penalty(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    objective, batch = make(model, diversity_weight=0.3, penalty_weight=7.0), make_batch()
    masked, negatives = draw(4, 49)
    output = objective.compare(model, batch, masked, negatives, seed=0, step=0)
    values = {key: value for name, log in output.logs.items() for key, value in log.read(name).items()}
    features = model.local(batch.waveform_BS).features_BTC.double()
    assert values["objective/feature_penalty"] == pytest.approx(float((features**2).mean()), rel=1e-5)
    expected = values["objective/contrastive"] + 0.3 * values["objective/diversity"]
    expected += 7.0 * values["objective/feature_penalty"]
    assert float(output.loss_sum / output.count) == pytest.approx(expected, rel=1e-5)
    assert values["objective/loss"] == pytest.approx(expected, rel=1e-5)


def test_frames_that_are_not_masked_get_no_gradient_from_what_is_compared(
    model: SpeechEncoder, make_batch: BatchMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, last = make(model, penalty_weight=0.0), torch.randn(4, 49, 16, requires_grad=True)
    monkeypatch.setattr(model, "encode", encodes(lambda _: last))
    frames = torch.randn(4, 49, 12, requires_grad=True)
    monkeypatch.setattr(model, "normalise", lambda _: frames)
    masked, negatives = draw(4, 49)
    objective.compare(model, make_batch(), masked, negatives, seed=0, step=0).loss_sum.backward()
    for reached in (last.grad, frames.grad):  # contexts, and what is quantised
        assert reached is not None
        assert torch.equal(reached.any(-1), masked_flags(masked, 49))


def test_count_is_every_masked_frame_of_the_batch(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    output = make(model)(model, make_batch(4, 49), seed=0, step=0)
    assert float(output.count) == 4 * round(49 * (1 - 0.935**10))


def test_two_halves_of_a_batch_add_up_to_the_whole_but_for_diversity(
    model: SpeechEncoder, make_batch: BatchMaker, part: Part
) -> None:
    objective, batch = make(model, diversity_weight=0.0).eval(), make_batch()
    masked, negatives = draw(4, 49)
    whole = objective.compare(model, batch, masked, negatives, seed=0, step=0)
    halves = [
        objective.compare(model, part(batch, rows), masked[rows], negatives[rows], seed=0, step=0)
        for rows in (slice(2), slice(2, 4))
    ]
    torch.testing.assert_close(halves[0].loss_sum + halves[1].loss_sum, whole.loss_sum, rtol=1e-5, atol=1e-4)
    assert float(halves[0].count + halves[1].count) == float(whole.count)
    for name in whole.logs.keys() - {"objective/diversity"}:
        added = (halves[0].logs[name] + halves[1].logs[name]).read(name)
        assert added == pytest.approx(whole.logs[name].read(name), rel=1e-5, abs=1e-6)


def test_with_the_papers_diversity_weight_micro_batches_add_up_but_for_a_diversity_of_each_ones_own(
    model: SpeechEncoder, make_batch: BatchMaker, part: Part
) -> None:
    objective, batch = make(model, diversity_weight=0.1, penalty_weight=0.0).eval(), make_batch()
    masked, negatives = draw(4, 49)

    def micro(rows: slice) -> tuple[Tensor, Tensor, float]:
        """Loss sum, contrastive sum, and the diversity by equation 4 of what these rows alone have."""
        mine = part(batch, rows)
        output = objective.compare(model, mine, masked[rows], negatives[rows], seed=0, step=0)
        frames = model.normalise(model.local(mine.waveform_BS).features_BTC)[masked_flags(masked[rows], 49)]
        best = objective.target.logits(frames).view(-1, 2, 6).argmax(-1)  # without noise: what evaluation counts
        shares = functional.one_hot(best, 6).double().mean(0)
        unused = 1 - float((-torch.special.xlogy(shares, shares).sum(-1)).exp().sum()) / 12
        contrastive = output.logs["objective/contrastive"].read("x")["x"] * output.count
        torch.testing.assert_close(output.loss_sum, contrastive + output.count * 0.1 * unused, rtol=1e-5, atol=1e-4)
        return output.loss_sum, contrastive, unused

    (whole, whole_contrastive, unused), *halves = (micro(rows) for rows in (slice(4), slice(2), slice(2, 4)))
    torch.testing.assert_close(halves[0][1] + halves[1][1], whole_contrastive, rtol=1e-5, atol=1e-4)
    half = masked[:2].numel()
    surplus = half * 0.1 * sum(own - unused for _, _, own in halves)
    assert abs(surplus) > 1e-3  # so it is not the whole batch's diversity that accumulates
    assert float((halves[0][0] + halves[1][0] - whole).detach()) == pytest.approx(surplus, rel=0.02)


def test_position_seed_and_step_determine_the_loss(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    objective = make(model)
    first = objective(model, make_batch(position=3), seed=0, step=5).loss_sum
    assert torch.equal(first, objective(model, make_batch(position=3), seed=0, step=5).loss_sum)
    assert not torch.equal(first, objective(model, make_batch(position=4), seed=0, step=5).loss_sum)
    assert not torch.equal(first, objective(model, make_batch(position=3), seed=1, step=5).loss_sum)


def projected_by_hand(project: MLPProjection, frame: Tensor) -> Tensor:
    """Linear map, norm by the running moments, ReLU, linear map, channel by channel."""
    out = project.leave.bias.double()
    for channel, weight in enumerate(project.enter.weight.double()):
        scale = (project.norm.running_var[channel].double() + project.norm.eps).sqrt()
        normed = (weight @ frame - project.norm.running_mean[channel].double()) / scale
        value = normed * project.norm.weight[channel] + project.norm.bias[channel]
        if value > 0:
            out = out + project.leave.weight[:, channel].double() * value
    return out


def test_behind_sews_projections_the_loss_is_the_formula_by_a_loop_in_float64(
    model: SpeechEncoder, make_batch: BatchMaker
) -> None:
    objective, batch = (
        make(model, projection=partial(MLPProjection, hidden_dim=7), penalty_weight=0.0),
        make_batch(2, 20),
    )
    projections = objective.project_context, objective.project_quantised
    with torch.no_grad():
        for project in projections:
            project.leave.bias.normal_(std=0.3)
            norm = project.norm
            norm.running_mean.normal_(std=0.3)
            for scale in (norm.running_var, norm.weight):
                scale.uniform_(0.5, 2.0)
            norm.bias.normal_(std=0.3)
    objective.eval()
    masked, negatives = draw(2, 20)
    output = objective.compare(model, batch, masked, negatives, seed=0, step=0)

    normalised, flags = model.normalise(model.local(batch.waveform_BS).features_BTC), masked_flags(masked, 20)
    quantised = objective.target(normalised[flags].view(*masked.shape, -1), seed=0, position=3, step=0)
    x = model.embed(normalised).clone()
    x[flags] = objective.mask.vector_D
    encoded = model.encode(x).last_BTD
    total = torch.zeros((), dtype=torch.float64)
    for row, frames in enumerate(masked.tolist()):
        wanted = [projected_by_hand(projections[1], frame) for frame in quantised.vectors_BMD[row].double()]
        for place, frame in enumerate(frames):
            context = projected_by_hand(projections[0], encoded[row, frame].double())
            codes = quantised.codes_BMG[row]
            others = [n for n in negatives[row, place].tolist() if (codes[n] != codes[place]).any()]
            pairs = [context @ wanted[n] / context.norm() / wanted[n].norm() / 0.1 for n in (place, *others)]
            total = total + torch.stack(pairs).exp().sum().log() - pairs[0]
    diversity = output.logs["objective/diversity"].read("x")["x"]
    expected = total + masked.numel() * 0.1 * diversity
    torch.testing.assert_close(output.loss_sum.double(), expected, rtol=1e-5, atol=1e-4)


def test_every_parameter_is_trained(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    objective = make(model)
    objective(model, make_batch(), seed=0, step=0).loss_sum.backward()
    for name, parameter in [*objective.named_parameters(), *model.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_quantised_frames_are_those_before_masking(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    seen: list[Tensor] = []
    objective, batch = make(model, mask=NoiseMask), make_batch()
    objective.target.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    masked, negatives = draw(4, 49)
    objective.compare(model, batch, masked, negatives, seed=0, step=0)
    expected = model.normalise(model.local(batch.waveform_BS).features_BTC)[masked_flags(masked, 49)]
    torch.testing.assert_close(seen[0].flatten(0, 1), expected)


def test_bf16_autocast_gives_a_finite_float32_loss_and_gradients(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    objective = make(model)
    with torch.autocast("cpu", torch.bfloat16):
        output = objective(model, make_batch(), seed=0, step=0)
    output.loss_sum.backward()
    assert output.loss_sum.dtype == torch.float32
    assert output.loss_sum.isfinite()
    assert all(p.grad.isfinite().all() for p in [*model.parameters(), *objective.parameters()])


def test_a_few_steps_learn_to_tell_frames_apart(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    batch, objective = make_batch(), make(model, codes=16)
    optimiser = torch.optim.Adam([*model.parameters(), *objective.parameters()], 1e-2)
    losses = []
    for step in range(30):
        output = objective(model, batch, seed=0, step=step)
        optimiser.zero_grad()
        (output.loss_sum / output.count).backward()
        optimiser.step()
        losses.append(float(output.loss_sum.detach() / output.count))
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_no_step_reads_a_value_on_the_host(
    model: SpeechEncoder, make_batch: BatchMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GumbelQuantiser, "_noise", lambda _, like, *__: like)  # fake tensors take no generator there
    objective, batch = make(model), make_batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        output = objective(model, batch, seed=0, step=0)
        output.loss_sum.backward()
        assert output.loss_sum.shape == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_on_a_gpu_never_makes_the_host_wait(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    model, objective = model.cuda(), make(model).cuda()
    batch = make_batch().to(torch.device("cuda"))
    objective(model, batch, seed=0, step=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16):
            output = objective(model, batch, seed=0, step=1)
        output.loss_sum.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(output.loss_sum)


def test_a_crop_of_one_masked_frame_is_refused_with_the_mend(model: SpeechEncoder, make_batch: BatchMaker) -> None:
    with pytest.raises(DataError, match="min_crop_s"):
        make(model)(model, make_batch(2, 2), seed=0, step=0)


def test_it_builds_on_the_meta_device(model: SpeechEncoder) -> None:
    with torch.device("meta"):
        objective = make(model)
    assert {parameter.device.type for parameter in objective.parameters()} == {"meta"}
