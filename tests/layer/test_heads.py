import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from ossicle.core.errors import ConfigError
from ossicle.layer.heads import CosineHead, LinearHead


@given(frames=st.integers(1, 20), dim=st.integers(1, 12), classes=st.integers(1, 9), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_cosine_logits_equal_huberts_equation_frame_by_frame(frames: int, dim: int, classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    head = CosineHead(dim, classes, final_dim=6, temperature=0.1)
    x = torch.randn(frames, dim)
    logits = head(x).detach()
    head.requires_grad_(False)
    projected = x.double() @ head.project.weight.double().t() + head.project.bias.double()
    for frame in range(frames):
        for label in range(classes):
            cosine = functional.cosine_similarity(projected[frame], head.classes_VF[label].double(), dim=0)
            assert float(logits[frame, label]) == pytest.approx(float(cosine) / 0.1, abs=2e-4)


def test_cosine_logits_do_not_depend_on_the_length_of_a_class_embedding() -> None:
    head, x = CosineHead(5, 3, final_dim=4), torch.randn(7, 5)
    before = head(x)
    with torch.no_grad():
        head.classes_VF.mul_(17)
    torch.testing.assert_close(head(x), before)


def test_cosine_logits_stay_float32_under_autocast_and_only_the_projection_is_bf16() -> None:
    torch.manual_seed(0)
    head, x = CosineHead(64, 50), torch.randn(30, 64)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(x)
        projected = head.project(x).float()
    exact = functional.normalize(projected, dim=-1) @ functional.normalize(head.classes_VF, dim=-1).t() / 0.1
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, exact, atol=1e-5, rtol=1e-5)


def test_linear_logits_are_one_linear_layer_in_float32() -> None:
    head, x = LinearHead(5, 3), torch.randn(7, 5)
    torch.testing.assert_close(head(x), x @ head.project.weight.t() + head.project.bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == torch.float32


@given(temperature=st.floats(0.05, 3.0), seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_a_temperature_divides_linear_logits_in_float32(temperature: float, seed: int) -> None:
    torch.manual_seed(seed)
    head, x = LinearHead(5, 3, temperature), torch.randn(4, 5)
    weight, bias = head.project.weight.detach(), head.project.bias.detach()
    for frame, logits in zip(x, head(x).detach(), strict=True):
        for label in range(3):
            exact = (float(frame.double() @ weight[label].double()) + float(bias[label])) / temperature
            assert float(logits[label]) == pytest.approx(exact, rel=1e-4, abs=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        logits, undivided = head(x), head.project(x).float()
    assert torch.equal(logits, undivided / temperature)


def test_a_linear_head_without_a_temperature_leaves_logits_alone_and_refuses_none() -> None:
    head, x = LinearHead(5, 3), torch.randn(7, 5)
    assert torch.equal(head(x), head.project(x))
    with pytest.raises(ConfigError, match="temperature=0"):
        LinearHead(5, 3, 0.0)
