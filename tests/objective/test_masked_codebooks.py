from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.core.batch import EncoderOutput
from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.base import Encoder
from ossicle.encoder.hierarchical import Hierarchical
from ossicle.encoder.squeezed import Squeezed
from ossicle.encoder.transformer import Transformer
from ossicle.frontend.logmel_conv import LogMelConv
from ossicle.layer.mask import EmbeddingMask
from ossicle.mixer.attention import Attention
from ossicle.objective.masked_codebooks import LastLayerCodebooks, LayerwiseCodebooks, MaskedCodebooks
from ossicle.ops.masking import masked_flags
from ossicle.ops.momentum import Linear
from ossicle.target.online_codebook import OnlineCodebook
from tests.objective.stand_in import encodes
from tests.objective.teaching import FRAMES, small_batch, small_model, step, without_gradient

MASKED = torch.tensor([[2, 3, 4, 11, 20], [0, 1, 7, 8, 29]])
KINDS = pytest.mark.parametrize("kind", [LastLayerCodebooks, LayerwiseCodebooks], ids=["dinosr", "spidr"])
CODES = 6


def make(kind: type[MaskedCodebooks], model: Backbone, **changes: float) -> MaskedCodebooks:
    torch.manual_seed(1)
    target = OnlineCodebook(
        model.clock, model.feature_dim, momentum=Linear(0.5, 0.5), num_codes=CODES, top_layers=2, code_std=0.1
    )
    objective = kind(target, model.dim, model.feature_dim, mask=EmbeddingMask, **changes)
    objective.adopt(model)
    return objective


def scores_by_hand(objective: MaskedCodebooks, layers: tuple[Tensor, ...], number: int) -> Tensor:
    """Logits of the last two teacher's layers' codes for all frames (B, T, V)."""
    if isinstance(objective, LastLayerCodebooks):
        weight = objective.heads.weight[number * CODES : (number + 1) * CODES]
        return layers[-1] @ weight.T + objective.heads.bias[number * CODES : (number + 1) * CODES]
    head = objective.heads[number]
    return layers[-2 + number] @ head.weight.T + head.bias


@KINDS
@pytest.mark.parametrize("unmasked_weight", [0.0, 0.25])
def test_loss_is_the_papers_cross_entropy_computed_by_hand(kind: type[MaskedCodebooks], unmasked_weight: float) -> None:
    model = small_model()
    objective = make(kind, model, unmasked_weight=unmasked_weight).eval()
    step(model)
    batch = small_batch()
    output = objective.predict(model, batch, MASKED, seed=0)
    wanted = objective.target.codes(batch)
    x = model.embed(model.normalise(model.local(batch.waveform_BS).features_BTC)).clone()
    flags = masked_flags(MASKED, FRAMES)
    x[flags] = objective.mask.vector_D
    layers = model.encode(x, layers=True).layers
    total = torch.zeros((), dtype=torch.float64)
    for number in (0, 1):
        scores = scores_by_hand(objective, layers, number).double()
        for row in range(2):
            for frame in range(FRAMES):
                weight = 1.0 if flags[row, frame] else unmasked_weight
                exponentials = scores[row, frame].exp()
                right = exponentials[wanted[number, row, frame]] / exponentials.sum()
                total = total - weight * right.log() / 2
    torch.testing.assert_close(output.loss_sum.double(), total, rtol=1e-5, atol=1e-4)
    assert float(output.count) == (2 * FRAMES if unmasked_weight else MASKED.numel())


@KINDS
def test_the_target_gets_no_gradient_and_all_else_is_trained(kind: type[MaskedCodebooks]) -> None:
    model = small_model()
    objective = make(kind, model)
    objective(model, small_batch(), seed=0, step=0).loss_sum.backward()
    names = {name for name, _ in objective.named_parameters()}
    assert without_gradient(objective) == {name for name in names if name.startswith("target.")} != set()
    assert not without_gradient(model) - {"encoder.position.conv.bias"}
    assert not objective.target.state_KVE.requires_grad


@KINDS
@pytest.mark.parametrize("unmasked_weight", [0.0, 0.5])
def test_frames_of_weight_zero_get_no_gradient(
    kind: type[MaskedCodebooks], unmasked_weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    objective = make(kind, model, unmasked_weight=unmasked_weight)
    last, *layers = (torch.randn(2, FRAMES, 16, requires_grad=True) for _ in range(5))
    monkeypatch.setattr(model, "encode", encodes(lambda _: last, tuple(layers)))  # frames do not meet
    objective.predict(model, small_batch(), MASKED, seed=0).loss_sum.backward()
    flags = masked_flags(MASKED, FRAMES)
    expected = torch.ones_like(flags) if unmasked_weight else flags
    below = [layers[-2]] if kind is LayerwiseCodebooks else []
    for heard in (last, *below):
        assert heard.grad is not None
        assert torch.equal(heard.grad.any(-1), expected)
    assert sum(layer.grad is not None for layer in layers) == len(below)


@KINDS
@pytest.mark.parametrize("encoder", [Transformer, Squeezed, Hierarchical])
def test_all_of_an_encoder_is_trained_where_norms_stand_first_or_the_rate_is_lower(
    kind: type[MaskedCodebooks], encoder: type[Encoder]
) -> None:
    torch.manual_seed(0)
    depth = {"layers_by_group": [1, 1, 1]} if encoder is Hierarchical else {"num_layers": 3}
    built = encoder(
        partial(Attention, num_heads=2), dim=16, ffn_dim=32, norm_first=True, layer_drop=0.0,
        position_kernel=4, position_groups=2, **depth,
    )  # fmt: skip
    model = Backbone(LogMelConv([[12, 3, 2]], num_mels=12, low_hz=100.0), built)
    make(kind, model)(model, small_batch(), seed=0, step=0).loss_sum.backward()
    assert not without_gradient(model)


def test_spidrs_last_head_scores_what_the_encoder_returns_and_the_one_below_the_block_below() -> None:
    objective = make(LayerwiseCodebooks, small_model())
    last, *layers = (torch.randn(2, FRAMES, 16) for _ in range(5))
    logits_KPV = objective.logits(EncoderOutput(last, tuple(layers)), MASKED)
    for head, heard, scores in zip(objective.heads, (layers[-2], last), logits_KPV, strict=True):
        at = torch.stack([heard[row, frame] for row in range(2) for frame in MASKED[row]])
        torch.testing.assert_close(scores, at @ head.weight.T + head.bias)


def test_each_of_spidrs_heads_trains_the_layers_up_to_its_own() -> None:
    model = small_model()
    objective = make(LayerwiseCodebooks, model)
    for parameter in objective.heads[1].parameters():
        nn.init.zeros_(parameter)  # the upper head passes nothing down
    objective(model, small_batch(), seed=0, step=0).loss_sum.backward()
    assert not without_gradient(model.encoder.blocks[1])
    assert all(p.grad is None or not p.grad.any() for p in model.encoder.blocks[2].parameters())


@KINDS
@pytest.mark.parametrize("masked_only", [False, True])
def test_codebooks_hear_of_the_masked_frames(kind: type[MaskedCodebooks], masked_only: bool) -> None:
    model = small_model()
    objective = make(kind, model)
    objective.target.masked_only = masked_only
    objective.predict(model, small_batch(), MASKED, seed=0)
    counted_K = objective.target.pending_KVE[..., -1].sum(1).tolist()
    assert counted_K == [MASKED.numel() if masked_only else 2 * FRAMES] * 2


@KINDS
def test_two_halves_of_a_batch_add_up_to_the_whole(kind: type[MaskedCodebooks]) -> None:
    model, batch = small_model(), small_batch(rows=2)
    objective = make(kind, model, unmasked_weight=0.5)
    whole = objective.predict(model, batch, MASKED, seed=0)
    halves = [
        objective.predict(model, replace(batch, waveform_BS=batch.waveform_BS[n : n + 1]), MASKED[n : n + 1], seed=0)
        for n in (0, 1)
    ]
    torch.testing.assert_close(halves[0].loss_sum + halves[1].loss_sum, whole.loss_sum, rtol=1e-5, atol=1e-4)
    for name, log in whole.logs.items():
        assert (halves[0].logs[name] + halves[1].logs[name]).read(name) == pytest.approx(log.read(name), rel=1e-4)


@KINDS
def test_codes_that_die_show_in_their_perplexity(kind: type[MaskedCodebooks]) -> None:
    model = small_model()
    objective = make(kind, model)
    healthy = objective(model, small_batch(), seed=0, step=0).logs["target/codes"].read("c")
    with torch.no_grad():
        objective.target.state_KVE[:, 1:, :-1] = 1e3  # all but one lie far from everything
    dead = objective(model, small_batch(), seed=0, step=0).logs["target/codes"].read("c")
    assert healthy["c_perplexity"] > 2
    assert dead["c_perplexity"] == pytest.approx(1.0)


@KINDS
def test_a_few_steps_learn_codes_that_stand_still(kind: type[MaskedCodebooks]) -> None:
    model = small_model()
    objective = make(kind, model)
    optimiser = torch.optim.Adam([*model.parameters(), *objective.heads.parameters()], 1e-2)
    losses = []
    for _ in range(30):
        output = objective.predict(model, small_batch(), MASKED, seed=0)
        optimiser.zero_grad()
        (output.loss_sum / output.count).backward()
        optimiser.step()
        losses.append(float(output.loss_sum.detach() / output.count))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(("kind", "asked"), [(LastLayerCodebooks, False), (LayerwiseCodebooks, True)])
def test_every_layers_output_is_kept_only_where_it_is_read(
    kind: type[MaskedCodebooks], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    objective, heard, forward = make(kind, model), [], model.encoder.forward

    def recorded(*arguments: Tensor | None, **options: object) -> object:
        heard.append(options.get("layers", False))
        return forward(*arguments, **options)

    monkeypatch.setattr(model.encoder, "forward", recorded)  # the teacher's is another
    objective(model, small_batch(), seed=0, step=0)
    assert heard == [asked]


@KINDS
def test_no_step_reads_a_value_on_the_host(kind: type[MaskedCodebooks]) -> None:
    model = small_model()
    objective, batch = make(kind, model, unmasked_weight=1.0), small_batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective(model, batch, seed=0, step=0).loss_sum.backward()
        objective.after_step(model, seed=0, step=1)


def test_a_target_without_codebooks_is_refused() -> None:
    with pytest.raises(ConfigError, match="target=online_codebook"):
        LastLayerCodebooks(nn.Identity(), 4, 4, mask=EmbeddingMask)  # ty: ignore[invalid-argument-type]
