"""Multiply-accumulates of a model, counted by torch on tensors without memory."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16 tensor-core peaks from NVIDIA's data sheets, FLOP/s. The longest name that fits a device is its own.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA A10": 125e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA H100": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
}


def peak_flops(device_name: str) -> float | None:
    """The dense bf16 peak of a device in FLOP/s, or None where the table does not know it."""
    words = device_name.split()
    for length in range(len(words), 0, -1):
        for name in (" ".join(words[:length]), " ".join(words[:length]).split("-")[0]):
            if name in PEAK_FLOPS:
                return PEAK_FLOPS[name]
    return None


def _added_product(_: object, left: Sequence[int], right: Sequence[int], *__: object, **___: object) -> int:
    """Operations of a product that is added to what is there, by shapes: torch counts the others alone."""
    return 2 * math.prod(left) * right[-1]


ADDED = {torch.ops.aten.addmm_: _added_product, torch.ops.aten.baddbmm_: _added_product}


def count_macs(call: Callable[[], object]) -> int:
    """Multiply-accumulates of the matrix products, convolutions and attention in a call.

    Attention is sent through its plain form, since torch counts its fused CPU kernel as nothing. Transforms (FFT) and
    elementwise work are not counted.
    """
    # Compiled blocks run as they are written, or the counter would see nothing of them.
    eager = torch.compiler.set_stance("force_eager")
    counter = FlopCounterMode(display=False, custom_mapping=ADDED)
    with torch.no_grad(), eager, sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return counter.get_total_flops() // 2


def meta_twin(module: nn.Module) -> nn.Module:
    """A copy of a module in evaluation mode whose parameters and buffers have shapes but no memory."""
    memo: dict[int, object] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in module.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return copy.deepcopy(module, memo).eval()


def macs_of_audio(model: nn.Module, num_samples: int) -> int:
    """Multiply-accumulates of one forward pass of a model over one waveform of ``num_samples`` samples."""
    twin = meta_twin(model)
    waveform_BS = torch.empty(1, num_samples, device="meta")
    return count_macs(lambda: twin(waveform_BS))


def macs_or_reason(model: nn.Module, num_samples: int) -> int | str:
    """:func:`macs_of_audio`, or why they cannot be counted: a kernel without a meta implementation, for one."""
    try:
        return macs_of_audio(model, num_samples)
    except RuntimeError as error:
        return f"the model does not run on the meta device: {str(error).splitlines()[0]}"


def macs_per_audio_s(macs: Mapping[int, int], crops: Mapping[int, int], rate_hz: int) -> float:
    """Multiply-accumulates a second of audio, over the lengths that a run really saw.

    Args:
        macs: Multiply-accumulates of one waveform of each length in samples.
        crops: Rows of each length in samples.
        rate_hz: Samples a second.
    """
    total = sum(rows * macs[num_samples] for num_samples, rows in crops.items())
    return total * rate_hz / sum(rows * num_samples for num_samples, rows in crops.items())
