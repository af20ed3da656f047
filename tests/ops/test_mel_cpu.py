import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from ossicle.ops import mel_cpu, spectral
from ossicle.ops.filterbank import mel_filters, povey_window
from ossicle.ops.mel_cpu import mel_energies

native = pytest.mark.skipif(mel_cpu.CODE.refusal is not None, reason="no C++ compiler")


def tables(kernel: int, bands: int, rate_hz: int = 16_000) -> tuple[Tensor, Tensor]:
    size = 1 << (kernel - 1).bit_length()
    return povey_window(kernel, "cpu"), mel_filters(bands, size, rate_hz, low_hz=20.0, high_hz=0.0, device="cpu")


def drawn(rows: int, samples: int, seed: int = 0) -> Tensor:
    """Noise beside a tone, on a constant that a frame's mean takes away."""
    noise = torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))
    return 0.1 * noise + torch.sin(torch.arange(samples) * 0.13) + 0.5


@native
@hypothesis.given(
    rows=st.integers(1, 3),
    samples=st.integers(1, 6_000),
    kernel=st.sampled_from([200, 320, 399, 400, 512, 640]),
    stride=st.sampled_from([80, 160, 320, 701]),
    bands=st.sampled_from([23, 40]),
    threads=st.integers(1, 4),
)
@hypothesis.settings(max_examples=80, deadline=None)
def test_energies_are_those_of_plain_torch_in_float64(  # noqa: PLR0917  hypothesis hands them over
    rows: int, samples: int, kernel: int, stride: int, bands: int, threads: int
) -> None:
    waveform, (window, filters) = drawn(rows, samples, seed=samples), tables(kernel, bands)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = mel_energies(waveform, window, filters, stride)
    finally:
        torch.set_num_threads(before)
    theirs = spectral.mel_energies_reference(waveform.double(), window.double(), filters.double(), stride)
    assert ours.shape == theirs.shape
    if theirs.numel():  # the weakest of a frame's bands has what float32 leaves of the strongest
        strongest = theirs.amax(-1, keepdim=True)
        assert ((ours - theirs).abs() / (theirs + 1e-6 * strongest)).max() < 2e-3
        assert ((ours - theirs).abs() / strongest).max() < 2e-6


@native
def test_a_row_is_what_it_is_alone_and_a_view_what_its_copy_is() -> None:
    waveform, (window, filters) = drawn(3, 5_003), tables(400, 80)
    together = mel_energies(waveform, window, filters, 160)
    for row in range(3):
        assert torch.equal(together[row : row + 1], mel_energies(waveform[row : row + 1], window, filters, 160))
    wide = waveform.repeat_interleave(2, 1)
    assert torch.equal(mel_energies(wide[:, ::2], window, filters, 160), together)


@native
def test_threads_change_nothing() -> None:
    waveform, (window, filters) = drawn(2, 40_000), tables(400, 80)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(mel_energies(waveform, window, filters, 160))
    torch.set_num_threads(before)
    assert torch.equal(*found)


@native
def test_it_is_an_operator_that_compilers_know() -> None:
    window, filters = tables(400, 40)
    torch.library.opcheck(mel_energies, (drawn(2, 2_000), window, filters, 160))


@native
def test_what_is_not_float32_or_of_another_shape_is_refused() -> None:
    waveform, (window, filters) = drawn(2, 2_000), tables(400, 40)
    with pytest.raises(TypeError, match="float32"):
        mel_energies(waveform.double(), window, filters, 160)
    with pytest.raises(TypeError, match="float32"):
        mel_energies(waveform[0], window, filters, 160)
    with pytest.raises(TypeError, match="power of two"):
        mel_energies(waveform, window, filters[:-1], 160)
    with pytest.raises(TypeError, match="400 points or more"):
        mel_energies(waveform, window, filters[:129], 160)


def test_a_waveform_that_is_differentiated_by_takes_plain_torch_and_has_a_gradient() -> None:
    waveform = drawn(1, 2_000)
    plain = spectral.log_mel(waveform)
    waveform.requires_grad_()
    differentiated = spectral.log_mel(waveform)
    differentiated.sum().backward()
    assert waveform.grad is not None
    assert waveform.grad.abs().sum() > 0
    torch.testing.assert_close(plain, differentiated.detach(), atol=2e-3, rtol=1e-4)


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_plain_torch_serves_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    waveform, (window, filters) = drawn(2, 3_000), tables(400, 80)
    plain = spectral.mel_energies_reference(waveform, window, filters, 160)
    for _ in range(2):
        assert torch.equal(spectral.log_mel(waveform), plain.clamp(min=torch.finfo(torch.float32).eps).log())
    assert caplog.text.count("mel bands are torch's products: the C++ of a CPU cannot be built") == 1
