import random
from pathlib import Path

import pytest
import torch
import yaml

from ossicle.core.errors import ConfigError
from ossicle.layer.spec_augment import SpecAugment

CONF = Path(__file__).resolve().parents[2] / "conf" / "layer" / "spec_augment"


def built(option: str) -> SpecAugment:
    """What a YAML describes, for 128 bands."""
    node = yaml.safe_load((CONF / f"{option}.yaml").read_text(encoding="utf-8"))
    return SpecAugment(128, **{key: value for key, value in node.items() if not key.startswith("_")})


def test_evaluation_changes_nothing_and_training_sets_whole_frames_and_bands_to_zero() -> None:
    torch.manual_seed(0)
    layer, features = SpecAugment(12, time_frames=9, band_width=4), torch.rand(50, 40, 12) + 1
    assert layer.eval()(features) is features
    hidden = layer.train()(features) == 0
    frames, bands = hidden.all(2), hidden.all(1)
    assert torch.equal(hidden, frames[:, :, None] | bands[:, None])
    assert 0 < int(frames.sum(1).max()) <= 18
    assert 0 < int(bands.sum(1).max()) <= 8
    assert len({tuple(row.tolist()) for row in frames}) > 30  # each row draws for itself


def test_what_is_not_hidden_is_left_to_the_bit_with_its_gradient() -> None:
    torch.manual_seed(1)
    features = torch.randn(3, 20, 8, requires_grad=True)
    out = SpecAugment(8, time_frames=5, band_width=2)(features)
    out.sum().backward()
    hidden = out == 0
    assert torch.equal(out[~hidden], features[~hidden])
    assert torch.equal(features.grad, (~hidden).float())


def test_spectra_side_by_side_lose_the_same_bands() -> None:
    torch.manual_seed(2)
    hidden = SpecAugment(20, num_time_masks=0, band_width=5, num_bands=10)(torch.ones(30, 4, 20)) == 0
    assert torch.equal(hidden[..., :10], hidden[..., 10:])
    assert hidden.any()
    assert torch.equal(hidden[:, 0], hidden[:, 3])


def test_a_span_of_frames_is_bounded_by_its_share_of_the_row() -> None:
    torch.manual_seed(3)
    layer = SpecAugment(4, num_time_masks=1, time_frames=50, max_time_fraction=0.2, num_band_masks=0)
    counts = (layer(torch.ones(500, 30, 4)) == 0)[..., 0].sum(1)
    assert int(counts.max()) == 6


def test_the_default_generator_decides_so_that_a_batch_is_masked_alike_again() -> None:
    layer, features, masked = SpecAugment(8), torch.ones(4, 60, 8), []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        masked.append(layer(features))
    assert torch.equal(masked[0], masked[1])
    assert not torch.equal(masked[0], masked[2])


def authors(rows: int, size: int, probability: float) -> float:
    """The share that spans of 20 hide by SPIRAL's rule: a number rounded by chance, starts that differ."""
    total = 0
    for _ in range(rows):
        starts = random.sample(range(size - 20), int(probability * size / 20 + random.random()))
        total += len({start + place for start in starts for place in range(20)})
    return total / rows / size


@pytest.mark.parametrize("frames", [200, 800, 1562])
def test_spiral_hides_two_fifths_of_the_frames_at_every_length_as_its_authors_rule_does(frames: int) -> None:
    torch.manual_seed(4)
    random.seed(4)
    hidden = (built("spiral")(torch.ones(80_000 // frames, frames, 128)) != 1).all(2).float().mean()
    assert float(hidden) == pytest.approx(authors(1000, frames, 0.5), abs=0.02)
    assert 0.37 < float(hidden) < 0.43


def test_spiral_hides_a_third_of_the_bands_as_its_authors_rule_does() -> None:
    torch.manual_seed(5)
    random.seed(5)
    hidden = (built("spiral")(torch.ones(4000, 20, 128)) == 0).all(1).float().mean()
    assert float(hidden) == pytest.approx(authors(4000, 128, 0.4), abs=0.015)


def test_spirals_counts_of_spans_are_its_authors_probabilities_over_lengths() -> None:
    layer = built("spiral")
    assert layer.time_mask_share == pytest.approx(0.5 / 20)
    assert layer.num_band_masks == pytest.approx(0.4 * 128 / 20)


@pytest.mark.parametrize("frames", [200, 800, 1562])
def test_essl_hides_a_fifth_of_the_frames_at_every_length_as_its_authors_loop_does(frames: int) -> None:
    torch.manual_seed(5)
    random.seed(5)
    hidden = (built("essl")(torch.ones(100_000 // frames, frames, 128)) == 0).all(2).float().mean()
    total = 0
    for _ in range(500):
        row: set[int] = set()
        for _ in range(int(0.025 * frames)):
            start, length = random.randint(0, frames - 20), random.randint(0, 20)
            row |= set(range(start, start + length))
        total += len(row)
    assert float(hidden) == pytest.approx(total / 500 / frames, abs=0.015)


def test_one_vector_stands_in_all_hidden_frames_and_zeros_in_bands_of_these_too() -> None:
    def made(**changes: float) -> SpecAugment:
        return SpecAugment(64, time_mask_share=0.1, time_frames=5, band_width=9, fill_std=0.01, **changes)

    torch.manual_seed(6)
    layer, out = made(), made()(torch.ones(30, 80, 64))
    bands = (out == 0).all(1)
    frames = (out != 1).all(2)
    assert layer.fill_C is not None
    assert float(layer.fill_C.std()) == pytest.approx(0.01, rel=0.3)
    wanted = torch.where(frames[:, :, None], layer.fill_C, torch.ones(()))  # another layer's: they all have the same
    assert torch.equal(out, torch.where(bands[:, None], 0.0, wanted))
    assert frames.any()
    assert bands.any()
    assert layer.state_dict() == {}


def test_the_vector_takes_nothing_from_the_default_generator() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    SpecAugment(8, fill_std=0.01)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "numbers",
    [
        {"num_bands": 7}, {"num_bands": 0}, {"time_frames": -1}, {"max_time_fraction": 1.5}, {"time_mask_share": 2.0},
        {"band_mask_share": -0.1}, {"fill_std": -1.0},
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="spec_augment"):
        SpecAugment(160, **numbers)  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("by_share", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_as_one_graph(backend: str, by_share: bool) -> None:
    torch._dynamo.reset()
    share = {"time_mask_share": 0.12, "band_mask_share": 0.2, "fixed_length": True} if by_share else {}
    layer = SpecAugment(8, time_frames=5, band_width=3, **share)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    hidden = compiled(torch.ones(4, 20, 8)) == 0
    assert torch.equal(hidden, hidden.all(2, keepdim=True) | hidden.all(1, keepdim=True))
    assert hidden.any()
