import ctypes
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ossicle.layer.dropout import Dropout
from ossicle.ops import dropout_cpu
from ossicle.ops.dropout import _compiled, dropout
from ossicle.ops.dropout_hash import draw_seed, draw_seeds, keep_mask, keep_places
from ossicle.ops.native import build

native = pytest.mark.skipif(dropout_cpu.CODE.refusal is not None, reason="no C++ compiler")
DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 2**-8)]


@native
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", [(7,), (3, 5, 16), (40, 1100)])
def test_the_native_dropout_is_that_of_the_hash_there_and_back(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    torch.manual_seed(3)
    kept = keep_mask(draw_seed(), math.prod(shape[:-1]), shape[-1], 0.3).view(shape)
    torch.manual_seed(3)
    found = dropout_cpu.Dropout.apply(x, draw_seed(), 0.3)
    torch.testing.assert_close(found.double(), x.detach().double() * kept / 0.7, atol=0, rtol=tolerance)
    (back,) = torch.autograd.grad(found, x, torch.ones_like(found))
    torch.testing.assert_close(back.double(), kept.double() / 0.7, atol=0, rtol=tolerance)


@native
def test_float32_and_bfloat16_on_a_cpu_are_served_natively_and_nothing_else_is() -> None:
    for dtype, name in (("bfloat16", "Dropout"), ("float32", "Dropout"), ("float64", "Mul")):
        out = dropout(torch.randn(4, dtype=getattr(torch, dtype), requires_grad=True), 0.5)
        assert type(out.grad_fn).__name__.startswith(name)
    assert dropout(torch.empty(3, device="meta"), 0.5).is_meta


@native
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_a_compiled_graph_drops_natively_what_the_hash_says_there_and_back(
    dtype: torch.dtype, tolerance: float
) -> None:
    x = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    torch.library.opcheck(dropout_cpu.compiled, (x, torch.tensor(-7), 0.3))
    found = torch.compile(lambda x: dropout_cpu.compiled(x.mT, torch.tensor(-7), 0.3), fullgraph=True)(x)
    kept = keep_mask(torch.tensor(-7), 4 * 32, 6, 0.3).view(4, 32, 6)
    torch.testing.assert_close(found.double(), x.mT.detach().double() * kept / 0.7, atol=0, rtol=tolerance)
    (back,) = torch.autograd.grad(found, x, torch.ones_like(found))
    torch.testing.assert_close(back.double(), kept.mT.double() / 0.7, atol=0, rtol=tolerance)


def test_what_is_not_contiguous_is_taken_as_it_lies() -> None:
    x = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) + 1
    out = dropout(x.mT, 0.5)
    torch.testing.assert_close(out[out != 0], 2 * x.mT[out != 0])


def test_it_is_one_graph_when_compiled() -> None:
    x = torch.randn(8, 8)
    out = torch.compile(dropout, backend="aot_eager", fullgraph=True)(x, 0.5)
    torch.testing.assert_close(out[out != 0], (2 * x)[out != 0])


def test_places_are_kept_by_the_hash_in_words_of_32_bits() -> None:
    def hashed(place: int, first: int, second: int) -> int:
        x = place ^ first
        x = ((x ^ (x >> 16)) * 0x21F0AAAD) % 2**32
        x = ((x ^ (x >> 15) ^ second) * 0x735A2D97) % 2**32
        return x ^ (x >> 15)

    torch.manual_seed(0)
    for _ in range(3):
        seeds = draw_seeds(torch.device("cpu"))
        first, second = (word % 2**32 for word in seeds.tolist())
        # as a signed word: half of all words are below zero, and so below every threshold from there on
        words = [hashed(place, first, second) for place in range(200)]
        wanted = [(word - 2**32 if word >= 2**31 else word) >= round(0.3 * 2**32) - 2**31 for word in words]
        assert keep_places(seeds, 200, 0.3).tolist() == wanted


def test_what_is_kept_does_not_tell_what_else_is() -> None:
    torch.manual_seed(0)
    places, dropout = 2**20, 0.1
    one, other = (~keep_places(draw_seeds(torch.device("cpu")), places, dropout) for _ in range(2))
    near = [(one[shift:] & one[:-shift]).double().mean().item() for shift in (1, 2, 16, 768)]
    for both in (*near, (one & other).double().mean().item()):
        assert both == pytest.approx(dropout**2, abs=5 * (dropout**2 / places) ** 0.5)
    assert one.double().mean().item() == pytest.approx(dropout, abs=5 * (dropout / places) ** 0.5)


@pytest.mark.parametrize("drop", [dropout, _compiled])  # the second is what a GPU has, or who has no compiler of C++
def test_a_compiled_graph_draws_at_every_place_anew_and_drops_on_the_way_back_what_it_dropped(
    drop: Callable[[torch.Tensor, float], torch.Tensor],
) -> None:
    def twice(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return drop(x, 0.5), drop(x, 0.5)

    call = torch.compile(twice, fullgraph=True)
    x = torch.rand(64, 96, generator=torch.Generator().manual_seed(0)).add_(1).requires_grad_()
    torch.manual_seed(5)
    one, other = call(x)
    later, _ = call(x)
    torch.manual_seed(5)
    again, _ = call(x)
    assert torch.equal(one, again)
    for different in (other, later):
        assert ((one == 0) & (different == 0)).float().mean().item() == pytest.approx(0.25, abs=0.03)
    (grad,) = torch.autograd.grad(one.sum() + 3 * other.sum(), x)
    torch.testing.assert_close(grad, 2.0 * (one != 0) + 6.0 * (other != 0))


def test_the_module_drops_while_training_alone() -> None:
    module = Dropout(0.5)
    x = torch.ones(1000)
    assert module.eval()(x) is x
    assert (module.train()(x) == 0).sum().item() == pytest.approx(500, abs=80)


def test_without_dropout_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert dropout(x, 0.0) is x
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_torchs_own_serve_and_the_reason_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(100, 10).bfloat16()
    for _ in range(2):
        assert (dropout(x, 0.5) == 0).any()
    said = [record.message for record in caplog.records if "no C++ compiler" in record.message]
    assert len(said) == 1
    assert said[0].startswith("dropout is torch's own")


def test_a_header_is_part_of_what_is_compiled(tmp_path: Path) -> None:
    if dropout_cpu.CODE.refusal is not None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "one.cpp"
    source.write_text('#include "number.hpp"\nextern "C" int number() { return value; }\n')
    found = []
    for value in (1, 2):
        (tmp_path / "number.hpp").write_text(f"constexpr int value = {value};\n")
        built = build(source)
        built.number.restype = ctypes.c_int
        found.append(built.number())
    assert found == [1, 2]
