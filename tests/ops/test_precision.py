import torch
from torch.nn import functional

from ossicle.ops.precision import without_autocast


def test_autocast_leaves_products_as_they_are_inside() -> None:
    x = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with without_autocast(x):
            assert functional.linear(x, x).dtype == torch.float32
        assert functional.linear(x, x).dtype == torch.bfloat16


def test_a_device_without_storage_may_ask() -> None:
    with without_autocast(torch.empty(2, device="meta")):
        assert functional.linear(torch.empty(2, 2, device="meta"), torch.empty(2, 2, device="meta")).shape == (2, 2)
