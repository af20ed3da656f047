"""Compositions whose objectives read masked frames alone: the same loss and gradients, whatever the encoder makes."""

import pytest
import torch
from torch import Tensor

from ossicle.launch.bench.bare import BareStep
from ossicle.launch.bench.steps import StepWork
from ossicle.launch.config import compose
from ossicle.launch.experiment import resolved
from tests.launch.toy import TOY, on, shrunk

WORK = StepWork(batch=2, samples=16_000, rate_hz=16_000, device="cpu", threads=1, seed=3, warmup=0)
SIZES = [item for item in TOY if not item.startswith(("precision", "batch_s", "data.", "wandb", "log_every"))]
STILL = [
    "++encoder.dropout=0",
    "++encoder.activation_dropout=0",
    "++encoder.layer_drop=0",
    "++mixer.dropout=0",
    "model.input_dropout=0",
]
READING = {
    "hubert_tiny": ["objective.unmasked_weight=0"],
    "wavlm_tiny": ["objective.unmasked_weight=0"],
    "fast_hubert_tiny": [
        "objective=masked_prediction",
        "layer/head@objective.head=linear",
        "objective.unmasked_weight=0",
    ],
    "best_rq_tiny": ["objective.unmasked_weight=0"],
    "wav2vec2_tiny": [],
    "data2vec_tiny": [],
    "dinosr_tiny": ["objective.unmasked_weight=0"],
}
"""Experiments whose objectives read masked frames of the last layer and no others, with what makes them do so."""
NOT_READING = {
    "hubert_tiny": ["objective.unmasked_weight=0.5"],
    "best_rq_tiny": ["objective.unmasked_weight=0.5"],
    "dinosr_tiny": ["objective.unmasked_weight=0.5"],
    "data2vec_tiny": ["objective.unmasked_weight=0.5"],
    "spidr_tiny": ["objective.unmasked_weight=0"],
    "fast_hubert_tiny": ["objective.unmasked_weight=0"],
    "w2v_bert_tiny": [],
}


def taken(experiment: str, overrides: list[str], *, selects: bool) -> tuple[float, dict[str, Tensor], list[bool]]:
    """Loss and gradients of a step of a composition, and whether each of the encoder's passes was told what is read."""
    words = [f"experiment={experiment}", *on("null", experiment)[:1], *SIZES, *STILL, *overrides]
    bare = BareStep(shrunk(resolved(compose("pretrain", words))), WORK)
    model = bare.system.model
    told: list[bool] = []
    forward = model.encoder.forward

    def recorded(*arguments: Tensor | None, **options: Tensor | bool | None) -> object:
        told.append(options.get("read_BM") is not None)
        return forward(*arguments, **options)

    model.encoder.forward = recorded
    model.encoder.selects = selects
    torch.manual_seed(0)
    output = bare.system.objective(model, bare.batch, seed=3, step=0)
    output.loss_sum.backward()
    gradients = {name: p.grad for name, p in bare.system.named_parameters() if p.grad is not None}
    return float(output.loss_sum.detach() / output.count), gradients, told


@pytest.mark.parametrize("experiment", READING)
def test_a_loss_on_masked_frames_alone_is_that_of_all_frames(experiment: str) -> None:
    alone, alone_gradients, told = taken(experiment, READING[experiment], selects=True)
    whole, whole_gradients, told_not = taken(experiment, READING[experiment], selects=False)
    assert (told, told_not) == ([True], [False])
    assert alone == pytest.approx(whole, rel=1e-5)
    assert alone_gradients.keys() == whole_gradients.keys()
    for name, gradient in whole_gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(alone_gradients[name], gradient, atol=1e-4 * scale + 1e-9, rtol=0, msg=name)


@pytest.mark.parametrize("experiment", NOT_READING)
def test_who_reads_more_asks_for_all_frames(experiment: str) -> None:
    _, _, told = taken(experiment, NOT_READING[experiment], selects=True)
    assert told == [False]
