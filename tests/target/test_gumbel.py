import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import Wav2Vec2Config
from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

from ossicle.core.clock import FrameClock
from ossicle.core.errors import ConfigError
from ossicle.target.base import Quantised
from ossicle.target.gumbel import GumbelQuantiser

CLOCK = FrameClock().then(400, 320)


def make(groups: int = 2, codes: int = 5, dim: int = 8) -> GumbelQuantiser:
    torch.manual_seed(0)
    return GumbelQuantiser(CLOCK, 6, num_groups=groups, num_codes=codes, dim=dim)


def quantise(quantiser: GumbelQuantiser, x: Tensor, position: int = 0, step: int = 0, seed: int = 0) -> Quantised:
    return quantiser(x, seed=seed, position=position, step=step)


@pytest.mark.parametrize(("groups", "codes", "dim"), [(2, 5, 8), (1, 7, 4), (4, 3, 12)])
def test_evaluation_equals_transformers(groups: int, codes: int, dim: int) -> None:
    ours = make(groups, codes, dim).eval()
    config = Wav2Vec2Config(
        conv_dim=(6,), conv_kernel=(3,), conv_stride=(2,), num_feat_extract_layers=1, codevector_dim=dim,
        num_codevector_groups=groups, num_codevectors_per_group=codes,
    )  # fmt: skip
    theirs = Wav2Vec2GumbelVectorQuantizer(config).eval()
    theirs.weight_proj.load_state_dict(ours.logits.state_dict())
    theirs.codevectors.data = ours.codebook_GVD.detach().reshape(1, groups * codes, -1)
    x = torch.randn(3, 9, 6)
    vectors, perplexity = theirs(x)
    out = quantise(ours, x)
    assert torch.equal(out.vectors_BMD, vectors)
    probabilities = out.code_probabilities_GV.double()
    entropies = -torch.xlogy(probabilities, probabilities).sum(-1)
    assert float(entropies.exp().sum()) == pytest.approx(float(perplexity), rel=1e-5)
    torch.testing.assert_close(out.code_probabilities_GV, out.code_counts_GV / 27)


def test_vectors_are_exactly_the_chosen_codes_in_training() -> None:
    quantiser, x = make().train(), torch.randn(2, 30, 6)
    out = quantise(quantiser, x)
    picked = [quantiser.codebook_GVD[g][out.codes_BMG[..., g]] for g in range(2)]
    assert torch.equal(out.vectors_BMD, torch.cat(picked, -1))


def test_the_gradient_is_that_of_the_soft_choice() -> None:
    quantiser = make().train()
    x = torch.randn(2, 4, 6, requires_grad=True)
    weight = torch.randn(2, 4, 8)
    (ours,) = torch.autograd.grad((quantise(quantiser, x).vectors_BMD * weight).sum(), x)
    logits = quantiser.logits(x).reshape(8, 2, 5)
    noisy = (logits + quantiser._noise(logits.detach(), 0, 0)) / quantiser.temperature
    soft = torch.einsum("pgv,gvd->pgd", noisy.softmax(-1), quantiser.codebook_GVD).reshape(2, 4, 8)
    (expected,) = torch.autograd.grad((soft * weight).sum(), x)
    torch.testing.assert_close(ours, expected)


def test_training_probabilities_are_the_noiseless_softmax_averaged_over_frames() -> None:
    quantiser, x = make().train(), torch.randn(2, 9, 6)
    out = quantise(quantiser, x)
    expected = quantiser.logits(x).reshape(18, 2, 5).softmax(-1).mean(0)
    torch.testing.assert_close(out.code_probabilities_GV, expected)
    assert out.code_probabilities_GV.requires_grad
    assert not out.code_counts_GV.requires_grad
    assert torch.equal(out.code_counts_GV.sum(-1), torch.tensor([18.0, 18.0]))


def test_sampled_codes_follow_the_softmax_of_the_logits() -> None:
    quantiser = make(groups=1, codes=4, dim=4).train()
    with torch.no_grad():
        quantiser.logits.weight.zero_()
        quantiser.logits.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    codes = quantise(quantiser, torch.zeros(1, 20_000, 6)).codes_BMG.flatten()
    expected = quantiser.logits.bias.detach().double().softmax(0) * len(codes)
    assert stats.chisquare(torch.bincount(codes, minlength=4).numpy(), expected.numpy()).pvalue > 1e-3


def test_noise_is_a_function_of_seed_and_position_and_not_of_the_step() -> None:
    quantiser, x = make().train(), torch.randn(2, 30, 6) * 0.1
    base = quantise(quantiser, x, position=4).codes_BMG
    assert torch.equal(base, quantise(quantiser, x, position=4, step=7).codes_BMG)
    assert not torch.equal(base, quantise(quantiser, x, position=5).codes_BMG)
    assert not torch.equal(base, quantise(quantiser, x, position=4, seed=1).codes_BMG)


def test_temperature_falls_from_two_to_its_floor() -> None:
    quantiser = make()
    assert quantiser.temperature_at(0) == 2.0
    assert quantiser.temperature_at(100_000) == pytest.approx(2 * math.exp(100_000 * math.log(0.999995)))
    assert quantiser.temperature_at(400_000) == 0.5


def test_parameters_start_as_published() -> None:
    torch.manual_seed(0)
    quantiser = GumbelQuantiser(CLOCK, 512)
    assert quantiser.codebook_GVD.shape == (2, 320, 128)
    assert float(quantiser.logits.weight.std()) == pytest.approx(1.0, rel=0.01)
    assert not quantiser.logits.bias.any()
    assert float(quantiser.codebook_GVD.min()) >= 0
    assert float(quantiser.codebook_GVD.mean()) == pytest.approx(0.5, abs=0.01)


def test_everything_is_float32_under_autocast() -> None:
    quantiser, x = make().train(), torch.randn(2, 9, 6)
    plain = quantise(quantiser, x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantise(quantiser, x)
    assert torch.equal(cast.vectors_BMD, plain.vectors_BMD)
    assert torch.equal(cast.code_probabilities_GV, plain.code_probabilities_GV)


def test_a_width_that_does_not_divide_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="take 255"):
        GumbelQuantiser(CLOCK, 6, num_groups=3, dim=256)


def test_it_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        quantiser = make()
    assert {parameter.device.type for parameter in quantiser.parameters()} == {"meta"}
