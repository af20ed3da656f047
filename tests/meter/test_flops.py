import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from ossicle.meter.flops import macs_of_audio, macs_or_reason, macs_per_audio_s, meta_twin, peak_flops

DIM, HEADS, KERNEL, STRIDE = 16, 4, 400, 320


class Small(nn.Module):
    """A convolution, one attention layer and a feed-forward layer: small enough to count by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.frontend = nn.Conv1d(1, DIM, KERNEL, STRIDE)
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.out = nn.Linear(DIM, DIM)
        self.blocks = nn.ModuleList([nn.Linear(DIM, 4 * DIM)])
        self.register_buffer("scale", torch.ones(DIM))

    @override
    def forward(self, waveform_BS: Tensor) -> Tensor:
        x_BTD = self.frontend(waveform_BS.unsqueeze(1)).transpose(1, 2) * self.scale
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x_BTD).chunk(3, -1))
        return self.blocks[0](self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)))


def macs_by_hand(num_samples: int) -> int:
    frames = (num_samples - KERNEL) // STRIDE + 1
    layers = KERNEL + 3 * DIM + DIM + 4 * DIM
    return frames * DIM * layers + 2 * frames * frames * DIM


def test_counted_macs_equal_those_counted_by_hand() -> None:
    assert macs_of_audio(Small(), 16_000) == macs_by_hand(16_000)


def test_compiled_blocks_are_counted_too() -> None:
    model = Small()
    model.blocks[0].compile(backend="eager")
    assert macs_of_audio(model, 16_000) == macs_by_hand(16_000)


def test_macs_a_second_weigh_lengths_by_how_often_they_came() -> None:
    crops = {16_000: 3, 32_000: 1}
    wanted = (3 * macs_by_hand(16_000) + macs_by_hand(32_000)) / 5
    macs = {num_samples: macs_of_audio(Small(), num_samples) for num_samples in crops}
    assert macs_per_audio_s(macs, crops, 16_000) == pytest.approx(wanted)


def test_a_model_that_does_not_run_on_the_meta_device_says_so() -> None:
    class Reading(Small):
        @override
        def forward(self, waveform_BS: Tensor) -> Tensor:
            return super().forward(waveform_BS * waveform_BS.sum().item())

    assert macs_or_reason(Small(), 16_000) == macs_by_hand(16_000)
    assert "does not run on the meta device: Tensor.item()" in str(macs_or_reason(Reading(), 16_000))


def test_a_meta_twin_takes_no_memory_and_leaves_the_model_as_it_was() -> None:
    model = Small().train()
    twin = meta_twin(model)
    assert all(t.device.type == "meta" for t in (*twin.parameters(), *twin.buffers()))
    assert all(t.device.type == "cpu" for t in (*model.parameters(), *model.buffers()))
    assert model.training
    assert not twin.training


def test_the_longest_name_that_fits_gives_the_peak() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.4e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA GeForce RTX 9999") is None
