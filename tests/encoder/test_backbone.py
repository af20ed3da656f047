import copy
import functools

import hypothesis
import pytest
import torch
import torchaudio
from hypothesis import strategies as st

from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.convolutional import Convolutional
from ossicle.encoder.recurrent import Recurrent
from ossicle.encoder.transformer import Transformer
from ossicle.frontend.base import Frontend
from ossicle.frontend.logmel import LogMel
from ossicle.frontend.wave import Wave
from ossicle.layer.spec_augment import SpecAugment
from ossicle.mixer.attention import Attention

THIN = ((8, 10, 5), *((8, 3, 2),) * 4, *((8, 2, 2),) * 2)
FRONTENDS = pytest.mark.parametrize("frontend", [functools.partial(Wave, THIN), LogMel])


def build(frontend: functools.partial[Frontend] | type[Frontend]) -> Backbone:
    torch.manual_seed(0)
    mixer = functools.partial(Attention, num_heads=2)
    encoder = Transformer(mixer, dim=16, num_layers=2, ffn_dim=32, position_kernel=8, position_groups=4)
    return Backbone(frontend(), encoder)


@FRONTENDS
def test_forward_is_its_four_steps(frontend: functools.partial[Frontend]) -> None:
    model = build(frontend).eval()
    waveform_BS = torch.randn(2, 4_000)
    lengths_B = torch.tensor([4_000, 2_500])
    frames = model.local(waveform_BS, lengths_B)
    steps = model.encode(model.embed(model.normalise(frames.features_BTC)), frames.valid_BT, layers=True)
    out = model(waveform_BS, lengths_B, layers=True)
    torch.testing.assert_close(out.last_BTD, steps.last_BTD)
    assert len(out.layers) == model.num_layers + 1
    assert out.last_BTD.shape == (2, model.clock.num_frames(4_000), model.dim)
    assert frames.features_BTC.shape[-1] == model.feature_dim


@FRONTENDS
def test_a_padded_row_equals_the_row_alone(frontend: functools.partial[Frontend]) -> None:
    model = build(frontend).eval()
    waveform_BS = torch.zeros(3, 5_000)
    lengths = (5_000, 3_111, 800)
    for row, length in enumerate(lengths):
        waveform_BS[row, :length] = torch.randn(length)
    out = model(waveform_BS, torch.tensor(lengths)).last_BTD
    for row, length in enumerate(lengths):
        alone = model(waveform_BS[row : row + 1, :length]).last_BTD[0]
        torch.testing.assert_close(out[row, : len(alone)], alone, atol=2e-4, rtol=1e-3)


@FRONTENDS
@hypothesis.given(lengths=st.lists(st.integers(600, 6_000), min_size=1, max_size=4))
@hypothesis.settings(max_examples=10, deadline=None)
def test_packed_equals_padded_equals_alone(frontend: functools.partial[Frontend], lengths: list[int]) -> None:
    model = build(frontend).eval()
    waveform_BS = torch.zeros(len(lengths), max(lengths))
    for row, length in enumerate(lengths):
        waveform_BS[row, :length] = torch.randn(length)
    packed = model.packed(waveform_BS, lengths, layers=True)
    padded = model(waveform_BS, torch.tensor(lengths)).last_BTD
    assert packed.lengths == tuple(map(model.clock.num_frames, lengths))
    for row, ours_TD in enumerate(packed.last_PD.split(packed.lengths)):
        alone = model(waveform_BS[row : row + 1, : lengths[row]], layers=True)
        torch.testing.assert_close(padded[row, : len(ours_TD)], ours_TD, atol=2e-4, rtol=1e-3)
        torch.testing.assert_close(alone.last_BTD[0], ours_TD, atol=2e-4, rtol=1e-3)
        for layer, theirs in zip(packed.layers, alone.layers, strict=True):
            torch.testing.assert_close(layer.split(packed.lengths)[row], theirs[0], atol=2e-4, rtol=1e-3)


def test_a_gradient_through_packed_frames_is_the_sum_of_those_of_each_alone() -> None:
    model = build(LogMel).eval()
    waves = [torch.randn(length) for length in (3_000, 1_500)]
    padded_BS = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    model.packed(padded_BS, [3_000, 1_500]).last_PD.square().sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for wave_S in waves:
        model(wave_S[None]).last_BTD.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(ours[name], parameter.grad, atol=2e-3, rtol=1e-3, msg=name)


def test_state_dict_keys_start_with_the_four_parts() -> None:
    parts = {key.split(".")[0] for key in build(functools.partial(Wave, THIN)).state_dict()}
    assert parts == {"frontend", "norm", "project", "encoder"}


def bare(width: int, *, project: bool | None = None) -> Backbone:
    """A model without a norm around frames of 16 channels."""
    torch.manual_seed(0)
    mixer = functools.partial(Attention, num_heads=2, dropout=0.0)
    encoder = Transformer(
        mixer, dim=width, num_layers=1, ffn_dim=32, position_kernel=8, position_groups=4, dropout=0.0, layer_drop=0.0
    )
    return Backbone(LogMel(num_mels=8), encoder, input_dropout=0.0, norm=False, project=project)


def test_without_a_norm_the_encoder_hears_the_frontends_frames_themselves() -> None:
    model, waveform_BS = bare(16), torch.randn(2, 4_000)
    frames_BTC = model.frontend(waveform_BS).features_BTC
    assert torch.equal(model.embed(model.normalise(frames_BTC)), frames_BTC)
    torch.testing.assert_close(model(waveform_BS).last_BTD, model.encoder(frames_BTC).last_BTD)
    assert {key.split(".")[0] for key in model.state_dict()} == {"encoder"}
    packed = model.packed(waveform_BS, [4_000, 4_000])
    torch.testing.assert_close(packed.last_PD, model(waveform_BS).last_BTD.flatten(0, 1), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("width", "project"), [(24, None), (24, False), (16, True)])
def test_without_a_norm_a_projection_stands_where_widths_differ_or_it_is_asked_for(
    width: int, *, project: bool | None
) -> None:
    model = bare(width, project=project)
    features_BTC = torch.randn(2, 5, 16)
    weight, bias = (value.detach().double() for value in (model.project.weight, model.project.bias))
    expected = features_BTC.double() @ weight.T + bias
    torch.testing.assert_close(
        model.embed(model.normalise(features_BTC)).detach().double(), expected, atol=1e-5, rtol=0
    )


def test_with_a_norm_a_projection_of_one_width_can_be_left_out() -> None:
    encoder = bare(16).encoder
    assert isinstance(Backbone(LogMel(num_mels=8), encoder).project, torch.nn.Linear)
    model = Backbone(LogMel(num_mels=8), encoder, input_dropout=0.0, project=False)
    features_BTC = torch.randn(2, 5, 16)
    expected = torch.nn.functional.layer_norm(features_BTC, (16,))
    torch.testing.assert_close(model.embed(model.normalise(features_BTC)), expected)


@FRONTENDS
def test_every_parameter_gets_a_gradient_under_bf16_autocast(frontend: functools.partial[Frontend]) -> None:
    model = build(frontend)
    model.encoder.layer_drop = 0.0
    with torch.autocast("cpu", torch.bfloat16):
        out = model(torch.randn(2, 3_000)).last_BTD
    out.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_copy_for_averaging_is_apart_and_equal() -> None:
    model = build(LogMel).eval()
    twin = copy.deepcopy(model)
    waveform_BS = torch.randn(1, 2_000)
    assert torch.equal(model(waveform_BS).last_BTD, twin(waveform_BS).last_BTD)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in twin.parameters()}
    assert not shared


def test_the_base_model_has_as_many_parameters_as_torchaudios() -> None:
    with torch.device("meta"):
        ours = Backbone(Wave(), Transformer(Attention))
        theirs = torchaudio.models.hubert_base()
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1]


def test_nothing_is_kept_for_frozen_parts_and_a_gradient_goes_through_a_frozen_projection() -> None:
    waveform_BS = torch.randn(2, 2_000)

    def gradients(frontend_at: int | None, projection_at: int | None) -> tuple[bool, dict[str, torch.Tensor]]:
        model = build(functools.partial(Wave, THIN)).eval()
        model.freeze_frontend_at, model.freeze_projection_at = frontend_at, projection_at
        model.anneal(5)
        features_BTC = model.local(waveform_BS).features_BTC
        embedded_BTD = model.embed(model.normalise(features_BTC))
        model.encode(embedded_BTD).last_BTD.square().sum().backward()
        trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        still = {id(p) for p in model.still()}
        assert {name.split(".")[0] for name, p in model.named_parameters() if id(p) in still} == {
            part
            for part, at in (("frontend", frontend_at), ("norm", projection_at), ("project", projection_at))
            if at == 5
        }
        return embedded_BTD.requires_grad, trained

    kept, everything = gradients(6, None)  # not yet
    assert kept
    assert {name.split(".")[0] for name in everything} == {"frontend", "norm", "project", "encoder"}
    kept, trained = gradients(5, 5)
    assert not kept
    assert {name.split(".")[0] for name in trained} == {"encoder"}
    kept, trained = gradients(None, 5)
    assert kept
    for name, gradient in trained.items():
        if name.startswith("frontend."):
            torch.testing.assert_close(gradient, everything[name])
    assert sum(name.startswith("frontend.") for name in trained) == sum(n.startswith("frontend.") for n in everything)


def test_spec_augment_hides_from_the_encoder_in_training_and_never_from_targets_or_in_evaluation() -> None:
    plain, augmented = build(LogMel), build(LogMel)
    augmented.spec_augment = SpecAugment(augmented.feature_dim, num_bands=80)
    assert list(plain.state_dict()) == list(augmented.state_dict())
    features = plain.normalise(plain.local(torch.randn(3, 8_000)).features_BTC)
    assert torch.equal(augmented.normalise(features), plain.normalise(features))
    plain.dropout.p = augmented.dropout.p = 0.0
    assert not torch.equal(augmented.train().embed(features), plain.train().embed(features))
    assert torch.equal(augmented.eval().embed(features), plain.eval().embed(features))


def test_spec_augment_is_built_for_the_frontends_width() -> None:
    encoder = build(LogMel).encoder
    model = Backbone(LogMel(stack=4), encoder, spec_augment=functools.partial(SpecAugment, num_bands=80))
    assert model.spec_augment is not None
    assert model.spec_augment.num_bands == 80
    with pytest.raises(ConfigError, match="num_bands=81"):
        Backbone(LogMel(), encoder, spec_augment=functools.partial(SpecAugment, num_bands=81))


def test_what_is_embedded_is_dropped_in_training_alone_by_a_number_of_its_own() -> None:
    encoder = build(LogMel).encoder
    features_BTC = torch.randn(2, 500, 160)
    for rate in (0.0, 0.3):
        model = Backbone(LogMel(), encoder, input_dropout=rate)
        dropped = (model.train().embed(features_BTC) == 0).float().mean().item()
        assert dropped == pytest.approx(rate, abs=0.05)
        assert (model.eval().embed(features_BTC) != 0).all()


def test_it_is_causal_where_both_of_its_parts_are() -> None:
    mixer = functools.partial(Attention, num_heads=2)
    for norm in ("global", "utterance"):
        for encoder in (Convolutional(mixer, dim=16), Recurrent(mixer, dim=16), build(LogMel).encoder):
            causal = norm == "global" and not isinstance(encoder, Transformer)
            assert Backbone(LogMel(norm=norm), encoder).causal == causal
