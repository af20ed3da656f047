import torch

from ossicle.core.seeds import derive_seed, generator, numpy_generator


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
