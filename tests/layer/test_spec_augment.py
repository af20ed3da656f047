import pytest
import torch

from ossicle.core.errors import ConfigError
from ossicle.layer.spec_augment import SpecAugment


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


@pytest.mark.parametrize(
    "numbers", [{"num_bands": 7}, {"num_bands": 0}, {"time_frames": -1}, {"max_time_fraction": 1.5}]
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="spec_augment"):
        SpecAugment(160, **numbers)  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_as_one_graph(backend: str) -> None:
    torch._dynamo.reset()
    layer = SpecAugment(8, time_frames=5, band_width=3)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    hidden = compiled(torch.ones(4, 20, 8)) == 0
    assert torch.equal(hidden, hidden.all(2, keepdim=True) | hidden.all(1, keepdim=True))
    assert hidden.any()
