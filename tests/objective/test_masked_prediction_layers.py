from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.core.batch import Batch
from ossicle.core.errors import ConfigError
from ossicle.core.metrics import CodeUse
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.base import Encoder
from ossicle.encoder.hierarchical import Hierarchical
from ossicle.encoder.squeezed import Squeezed
from ossicle.encoder.transformer import Transformer
from ossicle.frontend.wave import Wave
from ossicle.layer.heads import CosineHead, LinearHead
from ossicle.layer.mask import EmbeddingMask
from ossicle.mixer.attention import Attention
from ossicle.objective.masked_prediction import MaskedPrediction
from ossicle.objective.masked_prediction_layers import MaskedPredictionLayers
from ossicle.ops.masking import masked_flags
from ossicle.target.kmeans import KMeansLabels

BatchMaker = Callable[..., Batch]
Part = Callable[[Batch, slice], Batch]
SIZES = {"dim": 16, "ffn_dim": 32, "position_kernel": 8, "position_groups": 4, "dropout": 0.0, "layer_drop": 0.0}
MIXER = partial(Attention, num_heads=2, dropout=0.0)


def flat() -> Encoder:
    return Transformer(MIXER, num_layers=3, **SIZES)


def staged() -> Encoder:
    return Hierarchical(MIXER, layers_by_group=(1, 1, 1), factors=(2,), **SIZES)


def squeezed() -> Encoder:
    return Squeezed(MIXER, num_layers=3, **(SIZES | {"position_kernel": 7}))


ENCODERS = pytest.mark.parametrize("encoder", [flat, staged, squeezed])


def model_of(encoder: Callable[[], Encoder]) -> Backbone:
    torch.manual_seed(0)
    return Backbone(Wave([(12, 400, 320)], gradient_scale=1.0), encoder(), 0.0)


def make(model: Backbone, **changes: object) -> MaskedPredictionLayers:
    torch.manual_seed(1)
    target = KMeansLabels(7, clock=model.clock, feature_dim=model.feature_dim)
    parts: dict[str, object] = {"head": LinearHead, "mask": EmbeddingMask, "layers": (1, 2), "penalty_weight": 0.0}
    built = MaskedPredictionLayers(target, model.dim, model.feature_dim, **(parts | changes))
    built.adopt(model)
    return built


def draw(rows: int, frames: int, masked: int) -> Tensor:
    keys = torch.rand(rows, frames, generator=torch.Generator().manual_seed(5))
    return keys.argsort(1)[:, :masked].sort(1).values


@ENCODERS
@pytest.mark.parametrize("unmasked_weight", [0.0, 0.4])
def test_each_layer_adds_the_cross_entropy_of_its_own_frames_by_a_loop_in_float64(
    encoder: Callable[[], Encoder], unmasked_weight: float, make_batch: BatchMaker
) -> None:
    model = model_of(encoder).double()
    objective = make(model, layer_weight=0.7, unmasked_weight=unmasked_weight).double()
    batch, masked = make_batch(2, 9, classes=7), draw(2, 9, 4)
    batch = Batch(batch.waveform_BS.double(), 0, batch.ids_B, batch.starts_B, batch.labels_BT)
    output = objective.predict(model, batch, masked, seed=0)
    flags = masked_flags(masked, 9)
    x = model.embed(model.normalise(model.local(batch.waveform_BS).features_BTC)).clone()
    x[flags] = objective.mask.vector_D  # ty: ignore[invalid-assignment]
    encoded = model.encode(x, layers=True)
    assert batch.labels_BT is not None
    layers = [(1.0, encoded.last_BTD, objective.head, 1)]
    for layer, head in zip((1, 2), objective.layer_heads, strict=True):
        at = {flat: 1, squeezed: 2, staged: (1, 2)[layer - 1]}[encoder]
        layers.append((0.7, encoded.layers[layer], head, at))
    total = 0.0
    for weight, frames, head, step in layers:
        for row in range(2):
            for t in range(0, 9, step):
                share = 1.0 if flags[row, t] else unmasked_weight
                scores = head.project.weight @ frames[row, t] + head.project.bias  # ty: ignore[unsupported-operator]
                exponentials = scores.detach().exp()
                total -= weight * share * float((exponentials[batch.labels_BT[row, t]] / exponentials.sum()).log())
    assert float(output.loss_sum.detach()) == pytest.approx(total, rel=1e-5)
    assert float(output.count) == (18 if unmasked_weight else 8)


def test_a_layer_below_the_output_gets_the_gradient_of_its_own_head_alone(make_batch: BatchMaker) -> None:
    model = model_of(flat)
    objective = make(model, layers=(1,))
    output = model.encode(torch.randn(2, 9, 16, requires_grad=True), layers=True)
    labels = make_batch(2, 9, classes=7).labels_BT
    assert labels is not None
    loss, _ = objective.judge_layers(output, labels, draw(2, 9, 4))
    loss.backward()
    blocks = [
        sum(float(p.grad.abs().sum()) for p in b.parameters() if p.grad is not None) for b in model.encoder.blocks
    ]
    assert blocks[0] > 0
    assert blocks[1:] == [0, 0]


def test_what_is_said_of_a_layers_classes_is_of_its_masked_frames_alone(make_batch: BatchMaker) -> None:
    model = model_of(staged)  # its second layer has every other frame
    objective = make(model, layers=(2,))
    batch, masked = make_batch(2, 9, classes=7), draw(2, 9, 4)
    assert batch.labels_BT is not None
    _, logs = objective.judge_layers(model.encode(torch.randn(2, 9, 16), layers=True), batch.labels_BT, masked)
    kept = masked_flags(masked, 9)[:, ::2]
    wanted, predicted = logs["objective/layer_2/wanted"], logs["objective/layer_2/codes"]
    assert isinstance(wanted, CodeUse)
    assert isinstance(predicted, CodeUse)
    assert torch.equal(wanted.counts, batch.labels_BT[:, ::2][kept].bincount(minlength=7).float())
    assert predicted.counts.sum() == kept.sum()


def test_frames_that_are_not_masked_get_no_gradient_from_a_layer(make_batch: BatchMaker) -> None:
    model = model_of(flat)
    objective = make(model, layers=(1,))
    frames = torch.randn(2, 9, 16, requires_grad=True)
    output = model.encode(torch.zeros(2, 9, 16), layers=True)
    labels, masked = make_batch(2, 9, classes=7).labels_BT, draw(2, 9, 4)
    assert labels is not None
    given = type(output)(output.last_BTD, (output.layers[0], frames, *output.layers[2:]))
    objective.judge_layers(given, labels, masked)[0].backward()
    assert frames.grad is not None
    assert torch.equal(frames.grad.abs().sum(-1) > 0, masked_flags(masked, 9))


@ENCODERS
def test_two_halves_of_a_batch_add_up_to_the_whole(
    encoder: Callable[[], Encoder], make_batch: BatchMaker, part: Part
) -> None:
    model = model_of(encoder)
    objective, batch, masked = make(model, unmasked_weight=0.5), make_batch(4, 21, classes=7), draw(4, 21, 9)
    whole = objective.predict(model, batch, masked, seed=0)
    halves = [objective.predict(model, part(batch, rows), masked[rows], seed=0) for rows in (slice(2), slice(2, 4))]
    torch.testing.assert_close(halves[0].loss_sum + halves[1].loss_sum, whole.loss_sum, rtol=1e-5, atol=1e-4)
    for name, log in whole.logs.items():
        added = (halves[0].logs[name] + halves[1].logs[name]).read(name)
        assert added == pytest.approx(log.read(name), rel=1e-5, abs=1e-6)


def test_without_its_layers_it_is_masked_prediction(make_batch: BatchMaker) -> None:
    model = model_of(flat)
    layered = make(model, head=partial(CosineHead, final_dim=8))
    target = KMeansLabels(7, clock=model.clock, feature_dim=12)
    plain = MaskedPrediction(
        target, 16, 12, head=partial(CosineHead, final_dim=8), mask=EmbeddingMask, penalty_weight=0.0
    )
    plain.load_state_dict(layered.state_dict(), strict=False)
    batch, masked = make_batch(2, 9, classes=7), draw(2, 9, 4)
    x = layered.predict(model, batch, masked, seed=0)
    output = model.encode(
        layered.mask(
            model.embed, model.normalise(model.local(batch.waveform_BS).features_BTC), masked, torch.Generator()
        ),
        layers=True,
    )
    assert batch.labels_BT is not None
    more, _ = layered.judge_layers(output, batch.labels_BT, masked)
    torch.testing.assert_close(x.loss_sum - more, plain.predict(model, batch, masked, seed=0).loss_sum)


def test_no_step_reads_a_value_on_the_host(make_batch: BatchMaker) -> None:
    model = model_of(staged)
    objective, batch = make(model, unmasked_weight=1.0), make_batch(2, 20, classes=7)
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective(model, batch, seed=0, step=0).loss_sum.backward()


def test_bf16_autocast_gives_a_finite_float32_loss(make_batch: BatchMaker) -> None:
    model = model_of(staged)
    objective, batch = make(model), make_batch(2, 20, classes=7)
    exact = objective(model, batch, seed=0, step=0).loss_sum
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(model, batch, seed=0, step=0).loss_sum
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("layers", [(), (1, 1)])
def test_no_layer_or_one_twice_is_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"objective\.layers"):
        make(model_of(flat), layers=layers)


@pytest.mark.parametrize("layer", [0, 3, 9])
def test_layers_that_the_encoder_does_not_have_below_its_output_are_refused(layer: int) -> None:
    with pytest.raises(ConfigError, match="below its last, 3"):
        make(model_of(flat), layers=(layer,))


def test_the_encoders_say_how_many_frames_a_layers_frame_stands_for() -> None:
    frames = torch.randn(1, 12, 16)
    for encoder in (flat(), staged(), squeezed()):
        for layer, output in enumerate(encoder.eval()(frames, layers=True).layers):
            factor = encoder.layer_factor(layer)
            groups = output[:, : 12 // factor * factor].unflatten(1, (-1, factor))
            assert torch.equal(groups, groups[:, :, :1].expand_as(groups))
            assert factor > 1 or not torch.equal(output[:, 0::2], output[:, 1::2])
