import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import jaxtyped
from torch import Tensor

from ossicle.core.shapes import Bool, Float


@jaxtyped(typechecker=beartype)
def masked(x_BTD: Float[Tensor, "B T D"], valid_BT: Bool[Tensor, "B T"]) -> Tensor:
    return x_BTD * valid_BT[..., None]


def test_annotations_can_be_checked() -> None:
    assert masked(torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)).shape == (2, 3, 4)
    with pytest.raises(Exception, match="valid_BT") as caught:
        masked(torch.ones(2, 3, 4), torch.ones(2, 5, dtype=torch.bool))
    assert caught.type is not BeartypeCallHintParamViolation or "valid_BT" in str(caught.value)
