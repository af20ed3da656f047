from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.core.batch import EncoderOutput
from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.layer.mask import EmbeddingMask, NoiseMask
from ossicle.objective.contrastive_masked import ContrastiveMasked
from ossicle.ops.masking import masked_flags
from ossicle.target.gumbel import GumbelQuantiser
from tests.objective.teaching import DIM, FRAMES, small_batch, small_model, without_gradient

MASKED = torch.tensor([[2, 3, 4, 11, 20], [0, 1, 7, 8, 29]])


def make(model: Backbone, mask: type = EmbeddingMask, **changes: float) -> ContrastiveMasked:
    torch.manual_seed(1)
    target = GumbelQuantiser(model.clock, model.feature_dim, num_groups=2, num_codes=5, dim=8)
    numbers: dict[str, float] = {"contrastive_layer": 2, "num_negatives": 4, "final_dim": 6}
    objective = ContrastiveMasked(target, model.dim, model.feature_dim, mask=mask, **(numbers | changes))  # ty: ignore
    objective.adopt(model)
    return objective


def negatives() -> Tensor:
    drawn = torch.randint(1, 5, (2, 5, 4), generator=torch.Generator().manual_seed(4))
    return (torch.arange(5)[None, :, None] + drawn) % 5


def test_loss_is_w2v_berts_sum_computed_by_hand() -> None:
    model = small_model().eval()
    objective = make(model, contrastive_weight=0.7, prediction_weight=1.3).eval()
    batch, others = small_batch(), negatives()
    output = objective.compare(model, batch, MASKED, others, seed=0, step=0)

    normalised = model.normalise(model.local(batch.waveform_BS).features_BTC)
    flags = masked_flags(MASKED, FRAMES)
    hidden = normalised[flags].view(2, 5, -1)
    quantised = objective.target(hidden, seed=0, position=batch.position, step=0)
    x = model.embed(normalised).clone()
    x[flags] = objective.mask.vector_D
    encoded = model.encode(x, layers=True)
    context = objective.project_context(encoded.layers[2][flags].view(2, 5, -1)).double()
    targets = objective.project_quantised(quantised.vectors_BMD).double()
    scores = objective.head(encoded.last_BTD[flags].view(2, 5, -1)).double().view(2, 5, 2, 5)
    contrastive = prediction = torch.zeros((), dtype=torch.float64)
    for row in range(2):
        for place in range(5):
            c = context[row, place]
            codes = quantised.codes_BMG[row, place]
            wrong = [n for n in others[row, place].tolist() if (quantised.codes_BMG[row, n] != codes).any()]
            similar = torch.stack([c @ targets[row, n] / c.norm() / targets[row, n].norm() for n in [place, *wrong]])
            contrastive = contrastive - ((similar / 0.1).exp()[0] / (similar / 0.1).exp().sum()).log()
            for group in (0, 1):
                exponentials = scores[row, place, group].exp()
                prediction = prediction - (exponentials[codes[group]] / exponentials.sum()).log() / 2
    p = quantised.code_probabilities_GV.double()
    perplexities = (-(p * p.clamp_min(1e-30).log()).sum(-1)).exp()
    diversity = (10 - perplexities.sum()) / 10
    expected = 0.7 * (contrastive + 10 * 0.1 * diversity) + 1.3 * prediction
    torch.testing.assert_close(output.loss_sum.double(), expected, rtol=1e-5, atol=1e-4)
    assert float(output.count) == 10


def test_the_prediction_shapes_every_layer_and_never_the_quantiser() -> None:
    model = small_model()
    objective = make(model, contrastive_weight=0.0)
    objective(model, small_batch(), seed=0, step=0).loss_sum.backward()
    assert {name for name in without_gradient(objective) if name.startswith("target.")} == {
        name for name, _ in objective.named_parameters() if name.startswith("target.")
    }
    assert not without_gradient(model) - {"encoder.position.conv.bias"}


def test_the_contrastive_loss_trains_the_layers_up_to_its_own() -> None:
    model = small_model()
    objective = make(model, prediction_weight=0.0)
    objective(model, small_batch(), seed=0, step=0).loss_sum.backward()
    assert not without_gradient(model.encoder.blocks[1])
    assert all(p.grad is None or not p.grad.any() for p in model.encoder.blocks[2].parameters())
    assert not {name for name in without_gradient(objective) if name.startswith("target.")}


def test_frames_that_are_not_masked_get_no_gradient_in_either_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    objective = make(model)
    last, *layers = (torch.randn(2, FRAMES, DIM, requires_grad=True) for _ in range(5))
    monkeypatch.setattr(model, "encode", lambda *_, **__: EncoderOutput(last, tuple(layers)))
    objective.compare(model, small_batch(), MASKED, negatives(), seed=0, step=0).loss_sum.backward()
    assert [n for n, layer in enumerate(layers) if layer.grad is not None] == [2]
    for heard in (last, layers[2]):
        assert heard.grad is not None
        assert torch.equal(heard.grad.any(-1), masked_flags(MASKED, FRAMES))


def test_two_halves_of_a_batch_add_up_to_the_whole_but_for_the_shared_diversity() -> None:
    model, batch = small_model().eval(), small_batch()
    objective = make(model, diversity_weight=0.0).eval()
    whole = objective.compare(model, batch, MASKED, negatives(), seed=0, step=0)
    halves = [
        objective.compare(
            model,
            replace(batch, waveform_BS=batch.waveform_BS[n : n + 1]),
            MASKED[n : n + 1],
            negatives()[n : n + 1],
            seed=0,
            step=0,
        )
        for n in (0, 1)
    ]
    torch.testing.assert_close(halves[0].loss_sum + halves[1].loss_sum, whole.loss_sum, rtol=1e-5, atol=1e-4)


def test_unused_codes_show_in_their_perplexity() -> None:
    model = small_model()
    objective = make(model)
    with torch.no_grad():
        objective.target.logits.bias[0] = objective.target.logits.bias[5] = 1e4
    logs = objective(model, small_batch(), seed=0, step=0).logs
    assert logs["target/codes"].read("c")["c_perplexity"] == pytest.approx(1.0)


def test_each_loss_logs_an_accuracy_of_its_own_and_the_contrastive_one_its_chance() -> None:
    model = small_model().eval()
    objective = make(model).eval()
    before = objective.compare(model, small_batch(), MASKED, negatives(), seed=0, step=0).logs
    assert before["objective/chance"].read("x")["x"] == pytest.approx(1 / 5)  # four negatives
    with torch.no_grad():
        objective.head.weight.zero_()
        objective.head.bias.fill_(-1.0).view(2, 5)[:, 3] = 1.0
    after = objective.compare(model, small_batch(), MASKED, negatives(), seed=0, step=0).logs
    hidden = model.normalise(model.local(small_batch().waveform_BS).features_BTC)[masked_flags(MASKED, FRAMES)]
    codes = objective.target(hidden.view(2, 5, -1), seed=0, position=3, step=0).codes_BMG
    assert after["objective/accuracy_masked"].read("x")["x"] == pytest.approx((codes == 3).float().mean().item())
    name = "objective/accuracy_contrastive"
    assert after[name].read("x") == before[name].read("x")  # the head has no part in it


def test_no_step_reads_a_value_on_the_host() -> None:
    model = small_model()
    objective, batch = make(model, partial(NoiseMask, std=0.1)), small_batch()  # ty: ignore[invalid-argument-type]
    objective.target.eval()  # fake tensors know no Gumbel noise
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective(model, batch, seed=0, step=0).loss_sum.backward()


@pytest.mark.parametrize("layer", [0, 3])
def test_a_layer_that_leaves_none_to_one_loss_is_refused(layer: int) -> None:
    with pytest.raises(ConfigError, match="contrastive_layer"):
        make(small_model(), contrastive_layer=layer)
