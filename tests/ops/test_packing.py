import hypothesis
import torch
from hypothesis import strategies as st

from ossicle.ops.packing import pad_packed, unpad


@hypothesis.given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@hypothesis.settings(max_examples=30, deadline=None)
def test_padding_equals_torchs_pad_sequence_and_unpadding_undoes_it(lengths: list[int]) -> None:
    x_PD = torch.randn(sum(lengths), 3)
    cu_seqlens = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    padded_BTD, valid_BT = pad_packed(x_PD, cu_seqlens, max(lengths))
    expected = torch.nn.utils.rnn.pad_sequence(list(x_PD.split(lengths)), batch_first=True)
    assert torch.equal(padded_BTD, expected)
    assert valid_BT.sum(1).tolist() == lengths
    assert torch.equal(unpad(padded_BTD, cu_seqlens, sum(lengths)), x_PD)
