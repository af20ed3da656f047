import torch
from torchaudio.compliance import kaldi

from ossicle.ops.filterbank import cosine_transform, mel_filters, povey_window


def test_the_window_is_kaldis() -> None:
    theirs = kaldi._feature_window_function("povey", 400, 0.42, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(povey_window(400, "cpu"), theirs)


def test_tables_are_real_even_where_modules_are_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        tables = (
            mel_filters(31, 512, 16_000, low_hz=20.0, high_hz=0.0, device="cpu"),
            cosine_transform(11, 31, 22.0, "cpu"),
            povey_window(333, "cpu"),
        )
    for table in tables:
        assert table.device.type == "cpu"
        assert table.abs().sum() > 0


def test_every_one_of_eighty_bands_sees_at_least_one_bin() -> None:
    assert (mel_filters(80, 512, 16_000, low_hz=20.0, high_hz=0.0, device="cpu").sum(0) > 0).all()
