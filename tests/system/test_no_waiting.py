"""In a step nothing is read from the device, whatever the parts: on a CPU, by the operations that would read it."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ossicle.launch.bench.bare import BareStep
from ossicle.launch.bench.steps import StepWork
from ossicle.launch.config import compose, groups
from ossicle.launch.experiment import resolved
from tests.launch.toy import TOY, on, shrunk

WORK = StepWork(batch=2, samples=16_000, rate_hz=16_000, device="cpu", threads=1, seed=3, warmup=0)
SIZES = [item for item in TOY if not item.startswith(("precision", "batch_s", "data.", "wandb", "log_every"))]
WAITS = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::equal", "aten::bincount", "aten::repeat_interleave",
    "aten::histc", "aten::_linalg_check_errors",
}  # fmt: skip
ELASTIC = (
    "encoder=elastic", "encoder.dims=[32,48]", "encoder.heads=[2,3]", "encoder.ffn_ratios=[2.0,4.0]",
    "encoder.depths=[2,3]", "encoder.position_kernel=8", "encoder.position_groups=3", "mixer.num_heads=3",
)  # fmt: skip
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
"""Operations that look for what is true where they are given flags in the place of numbers."""


class Watch(TorchDispatchMode):
    """Notes which operations make the host wait for the device, and that there were any at all."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: set[str] = set()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> object:  # noqa: ANN001
        del types
        name = func._schema.name
        self.products += name in {"aten::mm", "aten::addmm", "aten::bmm", "aten::convolution"}
        flags = name in INDEXED and any(isinstance(i, Tensor) and i.dtype in {torch.bool, torch.uint8} for i in args[1])
        lengths = name == "aten::repeat_interleave" and func._overloadname == "self_int"  # as many of each: no waiting
        if (name in WAITS and not lengths) or flags:
            self.waits.add(f"{name} with flags" if flags else name)
        return func(*args, **(kwargs or {}))


def waits(experiment: str, *overrides: str) -> set[str]:
    """What makes the host wait in the second step of a composition."""
    words = [f"experiment={experiment}", *on("null", experiment)[:1], *SIZES, *overrides]
    bare = BareStep(shrunk(resolved(compose("pretrain", words))), WORK)
    bare.step()
    with Watch() as watch:
        bare.step()
    assert watch.products
    return watch.waits


MIXERS = [name for name in groups()["mixer"] if name not in {"pattern", "reused_attention"}]


@pytest.mark.parametrize("mixers", [MIXERS[:8], MIXERS[8:16], MIXERS[16:], ["reused_attention"] * 2], ids=",".join)
def test_no_mixer_is_waited_for(mixers: list[str]) -> None:
    assert waits("best_rq_tiny", f"mixer=[{','.join(mixers)}]", f"encoder.num_layers={len(mixers)}") == set()


@pytest.mark.parametrize("encoder", ["conformer", "branchformer", "squeezed", "hierarchical", "recurrent"])
def test_no_encoder_is_waited_for(encoder: str) -> None:
    assert waits("best_rq_tiny", f"encoder={encoder}") == set()


@pytest.mark.parametrize("augmentation", ["mixing", "noise", "reverberation", "speed", "gain", "wavlm"])
def test_no_augmentation_is_waited_for(augmentation: str) -> None:
    assert waits("best_rq_tiny", f"augmentation={augmentation}") == set()


@pytest.mark.parametrize(
    "words",
    [
        ("hubert_tiny", "layer/head@objective.head=linear", "layer/mask@objective.mask=noise"),
        ("hubert_tiny", "objective=masked_prediction_layers", "objective.layers=[1]"),
        ("wav2vec2_tiny", "frontend=wave", "frontend.convolutions=[[8,10,5],[8,64,64]]"),
        ("dinosr_tiny", "target.masked_only=true"),
        ("hubert_tiny", "recompute.blocks=1", "clip_norm=null"),
        ("best_rq_tiny", *ELASTIC),
    ],
)
def test_no_other_choice_of_parts_is_waited_for(words: tuple[str, ...]) -> None:
    assert waits(*words) == set()


def test_what_would_wait_is_seen() -> None:
    kept = torch.tensor([True, False])
    with Watch() as watch:
        torch.ones(2)[kept]
        torch.ones(2)[kept] = 0
        kept.nonzero()
        torch.ones(2).repeat_interleave(torch.tensor([1, 2]))
        torch.ones(2).repeat_interleave(2)
        torch.ones(2).sum().item()
    assert watch.waits >= {
        "aten::index with flags", "aten::index_put_ with flags", "aten::nonzero", "aten::repeat_interleave",
        "aten::_local_scalar_dense",
    }  # fmt: skip
