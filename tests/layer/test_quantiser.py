import math

import pytest
import torch
from torch import Tensor

from ossicle.core.errors import ConfigError
from ossicle.layer.quantiser import GumbelCodes, KMeansCodes, Quantiser

KINDS = pytest.mark.parametrize("kind", [GumbelCodes, KMeansCodes])


def make(kind: type[Quantiser], dim: int = 6) -> Quantiser:
    torch.manual_seed(0)
    return kind(dim, num_groups=2, num_codes=5)  # ty: ignore[missing-argument]


def test_kmeans_takes_the_nearest_code_and_asks_for_both_terms_by_a_loop_in_float64() -> None:
    quantiser = make(KMeansCodes).double()
    assert isinstance(quantiser, KMeansCodes)
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    coded = quantiser.float()(x.float())
    z = quantiser.norm(quantiser.project(x.float())).double().unflatten(-1, (2, 3))
    pull = 0.0
    for row in range(2):
        for t in range(7):
            for group in range(2):
                distances = [(z[row, t, group] - e).square().sum() for e in quantiser.codebook_GVD[group].double()]
                best = int(torch.stack(distances).argmin())
                assert int(coded.codes_BTG[row, t, group]) == best
                pull += float(distances[best].detach())
                torch.testing.assert_close(
                    coded.vectors_BTC[row, t].unflatten(0, (2, 3))[group], quantiser.codebook_GVD[group, best]
                )
    assert float(coded.penalty.detach()) == pytest.approx((1 + 0.25) * pull / (14 * 6), rel=1e-5)


def test_gumbel_takes_the_likeliest_code_in_evaluation_and_its_vector_exactly() -> None:
    quantiser = make(GumbelCodes).eval()
    assert isinstance(quantiser, GumbelCodes)
    x = torch.randn(2, 7, 6)
    coded = quantiser(x)
    logits = quantiser.logits(quantiser.enter(x).clamp(min=0)).unflatten(-1, (2, 5))
    assert torch.equal(coded.codes_BTG, logits.argmax(-1))
    groups = [quantiser.codebook_GVD[g][coded.codes_BTG[..., g]] for g in range(2)]
    torch.testing.assert_close(coded.vectors_BTC, torch.cat(groups, -1))


def test_gumbel_asks_for_codes_left_unused_where_it_is_told_to() -> None:
    torch.manual_seed(0)
    quantiser = GumbelCodes(6, num_groups=2, num_codes=5, diversity_weight=0.3)
    x = torch.randn(2, 7, 6)
    coded = quantiser(x)
    shares_GV = (
        quantiser.logits(quantiser.enter(x).clamp(min=0)).unflatten(-1, (2, 5)).double().softmax(-1).mean((0, 1))
    )
    perplexities = [math.exp(-sum(p * math.log(p) for p in group)) for group in shares_GV.tolist()]
    assert float(coded.penalty.detach()) == pytest.approx(0.3 * (10 - sum(perplexities)) / 10, rel=1e-5)
    coded.penalty.backward()
    assert quantiser.logits.weight.grad is not None
    assert quantiser.logits.weight.grad.abs().sum() > 0


def test_gumbel_draws_codes_with_their_probabilities_at_any_temperature() -> None:
    quantiser = make(GumbelCodes).train()
    assert isinstance(quantiser, GumbelCodes)
    quantiser.anneal(10_000_000)
    assert quantiser.temperature_now == 0.5
    x = torch.randn(1, 1, 6).expand(40, 500, 6)
    codes = quantiser(x).codes_BTG.reshape(-1, 2)
    wanted = quantiser.logits(quantiser.enter(x[0, 0]).clamp(min=0)).unflatten(-1, (2, 5)).softmax(-1)
    for group in range(2):
        shares = torch.bincount(codes[:, group], minlength=5) / len(codes)
        torch.testing.assert_close(shares, wanted[group], atol=0.02, rtol=0)


def test_the_temperature_falls_to_its_floor() -> None:
    quantiser = GumbelCodes(6, temperature_decay=0.9)
    quantiser.anneal(3)
    assert quantiser.temperature_now == pytest.approx(2 * 0.9**3)
    quantiser.anneal(10_000)
    assert quantiser.temperature_now == 0.5


@KINDS
def test_frames_and_codebook_both_get_gradients(kind: type[Quantiser]) -> None:
    quantiser = make(kind)
    x = torch.randn(2, 7, 6, requires_grad=True)
    coded = quantiser(x)
    (coded.vectors_BTC.square().sum() + coded.penalty).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    for name, parameter in quantiser.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_kmeans_passes_the_gradient_of_its_vectors_to_the_frames_and_none_of_it_to_the_codes() -> None:
    quantiser = make(KMeansCodes)
    x = torch.randn(2, 7, 6, requires_grad=True)
    quantiser(x).vectors_BTC.sum().backward()
    codebook = dict(quantiser.named_parameters())["codebook_GVD"]
    assert codebook.grad is None
    assert x.grad is not None


@KINDS
def test_autocast_changes_nothing(kind: type[Quantiser]) -> None:
    quantiser = make(kind).eval()
    x: Tensor = torch.randn(2, 7, 6)
    with torch.autocast("cpu", torch.bfloat16):
        coded = quantiser(x)
    assert torch.equal(coded.codes_BTG, quantiser(x).codes_BTG)
    assert coded.vectors_BTC.dtype == torch.float32


@KINDS
def test_groups_that_do_not_divide_the_width_are_refused(kind: type[Quantiser]) -> None:
    with pytest.raises(ConfigError, match="num_groups"):
        make(kind, dim=7)


@KINDS
def test_combined_groups_take_their_codes_from_one_codebook(kind: type[Quantiser]) -> None:
    torch.manual_seed(0)
    quantiser = kind(6, num_groups=2, num_codes=5, combine_groups=True).eval()  # ty: ignore[missing-argument]
    x = torch.randn(2, 7, 6)
    coded = quantiser(x)
    assert quantiser.codebook_GVD.shape == (1, 5, 3)
    for row in range(2):
        for t in range(7):
            pair = [quantiser.codebook_GVD[0, int(code)] for code in coded.codes_BTG[row, t]]
            torch.testing.assert_close(coded.vectors_BTC[row, t], torch.cat(pair))
    if isinstance(quantiser, KMeansCodes):
        z_BTGD = quantiser.norm(quantiser.project(x)).unflatten(-1, (2, 3))
        far_BTGV = (z_BTGD[..., None, :] - quantiser.codebook_GVD[0]).square().sum(-1)
        assert torch.equal(coded.codes_BTG, far_BTGV.argmin(-1))


@KINDS
def test_a_shared_codebook_learns_from_every_group(kind: type[Quantiser]) -> None:
    torch.manual_seed(0)
    apart, shared = (kind(6, num_groups=2, num_codes=5, combine_groups=one).eval() for one in (False, True))  # ty: ignore[missing-argument]
    shared.load_state_dict(apart.state_dict() | {"codebook_GVD": apart.codebook_GVD[:1].detach()})
    with torch.no_grad():
        apart.codebook_GVD[1] = apart.codebook_GVD[0]
    x = torch.randn(2, 7, 6)
    for quantiser in (apart, shared):
        coded = quantiser(x)
        (coded.vectors_BTC.square().sum() + coded.penalty).backward()
    assert apart.codebook_GVD.grad is not None
    assert shared.codebook_GVD.grad is not None
    torch.testing.assert_close(shared.codebook_GVD.grad, apart.codebook_GVD.grad.sum(0, keepdim=True))
