import traceback

import pytest
import torch

from ossicle.core.seeds import derive_seed, generator, numpy_generator, seed_default_generators


def draw(*args: int | str) -> list[float]:
    seed, step, rank, purpose = args
    return torch.rand(4, generator=generator(int(seed), int(step), int(rank), str(purpose))).tolist()


def test_the_same_purpose_draws_the_same() -> None:
    assert draw(0, 3, 1, "mask") == draw(0, 3, 1, "mask")


def test_seed_step_rank_and_purpose_each_matter() -> None:
    base = (0, 3, 1, "mask")
    others = [(1, 3, 1, "mask"), (0, 4, 1, "mask"), (0, 3, 2, "mask"), (0, 3, 1, "crop"), (0, 31, 0, "mask")]
    assert all(draw(*other) != draw(*base) for other in others)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    draw(0, 0, 0, "mask")
    assert torch.equal(torch.rand(3), expected)


def test_seeds_are_those_of_every_machine() -> None:
    assert derive_seed(0, "mask", 0, 0) == derive_seed(0, "mask", 0, 0)
    assert 0 <= derive_seed(12, "a", 5) < 2**63
    assert derive_seed(1, "a", 11) != derive_seed(11, "a", 1)


def test_numpy_draws_by_its_parts() -> None:
    assert numpy_generator(0, "order", 1).random() == numpy_generator(0, "order", 1).random()
    assert numpy_generator(0, "order", 1).random() != numpy_generator(0, "order", 2).random()


def test_default_generators_draw_as_torch_would_seed_them_and_no_stack_is_written_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(2**62 + 5)
    expected = torch.rand(3)
    monkeypatch.setattr(traceback, "format_stack", lambda *_: pytest.fail("a stack was written down"))
    seed_default_generators(2**62 + 5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_default_generator_is_seeded_too() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3, device="cuda")
    seed_default_generators(11, torch.device("cuda"))
    assert torch.equal(torch.rand(3, device="cuda"), expected)
