from functools import partial

import pytest
import torch

from ossicle.core.batch import Batch
from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.convolutional import Convolutional
from ossicle.frontend.quantised import Quantised
from ossicle.frontend.wave import WaveReLU
from ossicle.layer.heads import LinearHead
from ossicle.layer.mask import EmbeddingMask
from ossicle.layer.quantiser import GumbelCodes, KMeansCodes, Quantiser
from ossicle.meter.flops import macs_of_audio
from ossicle.mixer.attention import Attention
from ossicle.objective.contrastive_binary import ContrastiveBinary
from ossicle.objective.masked_prediction import MaskedPrediction
from ossicle.system.build import connect
from ossicle.target.frames import Frames
from ossicle.target.kmeans import KMeansLabels

THIN = ((8, 10, 5), (8, 8, 4), (8, 4, 2), (8, 4, 2), (8, 4, 2))
KINDS = pytest.mark.parametrize("kind", [GumbelCodes, KMeansCodes])


def parts(kind: type[Quantiser]) -> dict[str, object]:
    torch.manual_seed(0)
    quantiser = partial(kind, num_groups=2, num_codes=6)
    return {
        "frontend": partial(Quantised, partial(WaveReLU, THIN, gradient_scale=1.0), quantiser),
        "mixer": partial(Attention),
        "encoder": partial(Convolutional, dim=8, num_layers=2),
        "model": partial(Backbone, input_dropout=0.0),
    }


def batch(rows: int = 2) -> Batch:
    waveform = torch.randn(rows, 4000, generator=torch.Generator().manual_seed(1))
    return Batch(waveform, 3, torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


@KINDS
def test_context_and_targets_are_codes_and_the_penalty_enters_the_loss(kind: type[Quantiser]) -> None:
    model, objective = connect(**parts(kind), target=Frames, objective=partial(ContrastiveBinary, num_steps=2))
    model.eval()  # no noise, so that both passes draw alike
    local = model.local(batch().waveform_BS)
    assert local.penalty is not None
    assert local.code_counts_GV is not None
    frames = local.features_BTC.shape[1]
    assert len(local.features_BTC[..., :4].reshape(-1, 4).unique(dim=0)) <= 6
    assert local.code_counts_GV.sum(1).tolist() == [2 * frames] * 2
    output = objective(model, batch(), seed=0, step=0)
    values = {key: value for name, log in output.logs.items() for key, value in log.read(name).items()}
    assert values["objective/code_penalty"] == pytest.approx(float(local.penalty.detach()), rel=1e-5)
    assert values["objective/loss"] == pytest.approx(float(output.loss_sum.detach() / output.count), rel=1e-5)
    assert (values["objective/code_penalty"] > 0) == (kind is KMeansCodes)
    assert values["target/codes_perplexity"] >= 1


@KINDS
def test_every_parameter_is_trained(kind: type[Quantiser]) -> None:
    model, objective = connect(**parts(kind), target=Frames, objective=partial(ContrastiveBinary, num_steps=2))
    objective(model.train(), batch(4), seed=0, step=0).loss_sum.backward()
    for name, parameter in [*model.named_parameters(), *objective.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@KINDS
def test_the_penalty_is_a_mean_over_frames_and_counts_add_up(kind: type[Quantiser]) -> None:
    model, objective = connect(**parts(kind), target=Frames, objective=partial(ContrastiveBinary, num_steps=2))
    model.eval()  # no noise
    whole = batch(4)
    first = Batch(whole.waveform_BS[:2], 3, whole.ids_B[:2], whole.starts_B[:2])
    twice = Batch(first.waveform_BS.repeat(2, 1), 3, whole.ids_B, whole.starts_B)
    one, two = model.local(first.waveform_BS), model.local(twice.waveform_BS)
    assert one.penalty is not None
    assert two.penalty is not None
    assert one.code_counts_GV is not None
    assert two.code_counts_GV is not None
    torch.testing.assert_close(two.penalty, one.penalty)  # a mean a frame, so that count * penalty is a sum
    assert torch.equal(two.code_counts_GV, 2 * one.code_counts_GV)
    assert float(objective(model, twice, seed=0, step=0).count) == 2 * float(
        objective(model, first, seed=0, step=0).count
    )


def test_the_step_sets_the_temperature() -> None:
    model, _ = connect(**parts(GumbelCodes), target=Frames, objective=partial(ContrastiveBinary, num_steps=2))
    model.anneal(100_000)  # as the system does before each step
    quantiser = model.get_submodule("frontend.quantiser")
    assert isinstance(quantiser, GumbelCodes)
    assert quantiser.temperature_now == pytest.approx(2 * 0.999995**100_000)


def test_objectives_that_do_not_train_codes_are_refused() -> None:
    masked = partial(MaskedPrediction, head=LinearHead, mask=EmbeddingMask)
    with pytest.raises(ConfigError, match="does not train its codes"):
        connect(**parts(GumbelCodes), target=partial(KMeansLabels, 5), objective=masked)


@KINDS
def test_its_operations_are_counted_on_the_meta_device(kind: type[Quantiser]) -> None:
    model, _ = connect(**parts(kind), target=Frames, objective=partial(ContrastiveBinary, num_steps=2))
    assert macs_of_audio(model, 16_000) > 0


def test_codes_of_codes_are_refused() -> None:
    inner = partial(
        Quantised, partial(WaveReLU, THIN, gradient_scale=1.0), partial(KMeansCodes, num_groups=2, num_codes=6)
    )
    with pytest.raises(ConfigError, match="quantises them itself"):
        Quantised(inner, partial(KMeansCodes, num_groups=2, num_codes=6))
