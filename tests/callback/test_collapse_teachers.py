"""Models that learn from a teacher are made to collapse, each in its own way, and the guard catches them."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from ossicle.callback.collapse import CollapseGuard
from ossicle.core.errors import CollapseError
from ossicle.layer.decoder import ConvolutionDecoder
from ossicle.layer.mask import EmbeddingMask
from ossicle.layer.predictor import ConvolutionPredictor
from ossicle.objective.contrastive_teacher import ContrastiveTeacher
from ossicle.objective.masked_codebooks import LastLayerCodebooks
from ossicle.objective.regression import Regression
from ossicle.objective.regression_multimask import RegressionMultimask
from ossicle.ops.momentum import Linear
from ossicle.target.ema_teacher import EmaTeacher
from ossicle.target.online_codebook import OnlineCodebook
from tests.objective.teaching import DIM, small_model
from tests.system.toys import toy_run

TEACHER = partial(EmaTeacher, momentum=Linear(0.9, 0.9), top_layers=2)
CODEBOOK = partial(OnlineCodebook, momentum=Linear(0.9, 0.9), top_layers=2, num_codes=8, code_std=0.1)
REGRESSION = partial(Regression, mask=EmbeddingMask)
MULTIMASK = partial(
    RegressionMultimask, decoder=partial(ConvolutionDecoder, hidden_dim=8, groups=2, num_layers=1), num_masks=2
)
CODES = partial(LastLayerCodebooks, mask=EmbeddingMask)
SPIRAL = partial(ContrastiveTeacher, predictor=partial(ConvolutionPredictor, hidden_dim=8), num_negatives=5)


class Sabotage(Callback):
    """Does something to the system before every batch."""

    def __init__(self, act: Callable[[nn.Module], None]) -> None:
        super().__init__()
        self.act = act

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        with torch.no_grad():
            self.act(pl_module)


def silent_teacher(system: nn.Module) -> None:
    for block in system.objective.target.model.encoder.blocks:  # ty: ignore
        block.feed_forward.contract.weight.zero_()


def silent_head(system: nn.Module) -> None:
    system.objective.predict.weight.zero_()  # ty: ignore


def silent_decoder(system: nn.Module) -> None:
    system.objective.decoder.project.weight.zero_()  # ty: ignore


def silent_projection(system: nn.Module) -> None:
    system.objective.teacher_project.module.weight.zero_()  # ty: ignore


def dead_codes(system: nn.Module) -> None:
    system.objective.target.state_KVE[:, 1:, :-1] = 1e3  # ty: ignore


def turned_away(system: nn.Module) -> None:
    for mine, theirs in zip(system.objective.target.model.parameters(), system.model.parameters(), strict=True):  # ty: ignore
        mine.copy_(-theirs)


def nothing(system: nn.Module) -> None:
    del system


def train(tmp_path: Path, sabotage: Callable[[nn.Module], None], parts: Mapping[str, object], steps: int = 12) -> None:
    guard = partial(CollapseGuard, start_step=2, patience=2, min_over_chance=None, min_output_perplexity=None)
    toy_run(
        tmp_path,
        (lambda **_: Sabotage(sabotage), guard),
        model=lambda **_: small_model(),
        max_steps=steps,
        optim=partial(torch_adam, lr=1e-3),
        **parts,
    )


def torch_adam(module: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr)


@pytest.mark.parametrize(
    ("sabotage", "target", "objective", "sign"),
    [
        pytest.param(silent_teacher, TEACHER, REGRESSION, "targets are nearly constant", id="data2vec-target"),
        pytest.param(silent_head, TEACHER, REGRESSION, "predictions are nearly constant", id="data2vec-prediction"),
        pytest.param(silent_teacher, TEACHER, MULTIMASK, "targets are nearly constant", id="data2vec2-target"),
        pytest.param(silent_decoder, TEACHER, MULTIMASK, "predictions are nearly constant", id="data2vec2-prediction"),
        pytest.param(dead_codes, CODEBOOK, CODES, "hardly any codes", id="dinosr-codes"),
        pytest.param(silent_projection, TEACHER, SPIRAL, "targets are nearly constant", id="spiral-target"),
        pytest.param(turned_away, TEACHER, REGRESSION, "left its teacher behind", id="teacher-behind"),
        pytest.param(
            nothing, partial(TEACHER, momentum=Linear(0.0, 0.0)), REGRESSION, "student itself", id="teacher-is-student"
        ),
        pytest.param(
            nothing, partial(CODEBOOK, momentum=Linear(0.0, 0.0)), CODES, "student itself", id="dinosr-is-student"
        ),
        pytest.param(
            nothing, partial(TEACHER, momentum=Linear(0.0, 0.0)), SPIRAL, "student itself", id="spiral-is-student"
        ),
        pytest.param(turned_away, CODEBOOK, CODES, "left its teacher behind", id="dinosr-behind"),
        pytest.param(turned_away, TEACHER, SPIRAL, "left its teacher behind", id="spiral-behind"),
    ],
)
def test_a_model_that_is_made_to_collapse_is_stopped_with_the_sign_that_fits(
    tmp_path: Path, sabotage: Callable[[nn.Module], None], target: object, objective: object, sign: str
) -> None:
    with pytest.raises(CollapseError, match=sign):
        train(tmp_path, sabotage, {"target": target, "objective": objective})


@pytest.mark.parametrize(
    ("target", "objective"),
    [(TEACHER, REGRESSION), (TEACHER, MULTIMASK), (CODEBOOK, CODES), (TEACHER, SPIRAL)],
    ids=["data2vec", "data2vec2", "dinosr", "spiral"],
)
def test_a_healthy_model_passes(tmp_path: Path, target: object, objective: object) -> None:
    assert small_model().dim == DIM
    train(tmp_path, nothing, {"target": target, "objective": objective}, steps=10)
