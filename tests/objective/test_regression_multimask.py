from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ossicle.core.batch import Frames
from ossicle.core.errors import ConfigError
from ossicle.encoder.backbone import Backbone
from ossicle.encoder.recurrent import Recurrent
from ossicle.frontend.logmel import LogMel
from ossicle.launch.config import compose
from ossicle.launch.experiment import build_on_meta, resolved
from ossicle.layer.decoder import ConvolutionDecoder
from ossicle.objective.regression_multimask import RegressionMultimask
from ossicle.ops.masking import masked_flags
from tests.objective.teaching import DIM, FRAMES, small_batch, small_model, small_teacher, step, without_gradient

DECODER = partial(ConvolutionDecoder, hidden_dim=8, kernel=3, groups=2, num_layers=2, dropout=0.0)


def make(model: Backbone, num_masks: int = 3, **changes: float) -> RegressionMultimask:
    torch.manual_seed(1)
    objective = RegressionMultimask(
        small_teacher(model), model.dim, model.feature_dim, decoder=DECODER, num_masks=num_masks, **changes
    )
    objective.adopt(model)
    return objective


def masks(rows: int, masked: int = 12) -> Tensor:
    keys = torch.rand(rows, FRAMES, generator=torch.Generator().manual_seed(4))
    return keys.argsort(1)[:, :masked].sort(1).values


def test_loss_is_the_mean_square_of_each_masking_encoded_and_decoded_alone() -> None:
    model = small_model()
    objective = make(model)
    step(model, 0.02)
    batch, masked = small_batch(), masks(6)
    output = objective.regress(model, batch, masked, seed=0)
    wanted = objective.target(batch).double()
    embedded = model.embed(model.normalise(model.local(batch.waveform_BS).features_BTC))
    noise = torch.Generator().manual_seed(0)
    flags = masked_flags(masked, FRAMES)
    objective.decoder.noise_std = 0.0
    total = torch.zeros((), dtype=torch.float64)
    for number in range(6):
        row, hidden = number // 3, flags[number]
        x = embedded[row : row + 1].clone()
        x[:, hidden] = 0
        x = (x + model.encoder.position(x))[:, ~hidden]  # the blocks see the others alone
        x = model.encoder.norm(x)
        for block in model.encoder.blocks:
            x = block(x)
        kept = (~hidden).nonzero().T
        predicted = objective.decoder(x, kept, FRAMES, noise)[0]
        total = total + ((predicted[hidden].double() - wanted[row, hidden]) ** 2).sum() / DIM**0.5
    objective.decoder.noise_std = 0.0
    exact = objective.regress(model, batch, masked, seed=0)
    torch.testing.assert_close(exact.loss_sum.double(), total, rtol=1e-5, atol=1e-4)
    assert float(exact.count) == masked.numel()
    assert abs(float(output.loss_sum) - float(total)) < 0.02 * float(total)  # with the decoder's noise of 0.01


def test_the_frontend_and_the_teacher_hear_an_utterance_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    objective = make(model, num_masks=4)
    heard: list[int] = []
    for part in (model, objective.target.model):
        plain = part.frontend.forward

        def counted(waveform: Tensor, lengths: Tensor | None = None, *, plain: object = plain) -> Frames:
            heard.append(len(waveform))
            return plain(waveform, lengths)  # ty: ignore[call-non-callable]

        monkeypatch.setattr(part.frontend, "forward", counted)
    objective(model, small_batch(), seed=0, step=0)
    assert heard == [2, 2]


def test_frames_that_every_masking_hides_get_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    objective = make(model)
    features = model.local(small_batch().waveform_BS).features_BTC.detach().requires_grad_()
    monkeypatch.setattr(model, "local", lambda _waveform: Frames(features))
    masked = masks(6)
    objective.regress(model, small_batch(), masked, seed=0).loss_sum.backward()
    hidden = masked_flags(masked, FRAMES).view(2, 3, FRAMES).all(1)
    assert features.grad is not None
    assert torch.equal(features.grad.abs().sum(-1) > 0, ~hidden)


def test_the_teacher_gets_no_gradient_and_all_else_is_trained() -> None:
    model = small_model()
    objective = make(model)
    objective(model, small_batch(), seed=0, step=0).loss_sum.backward()
    names = {name for name, _ in objective.named_parameters()}
    assert without_gradient(objective) == {name for name in names if name.startswith("target.")} != set()
    assert not without_gradient(model)


def test_two_halves_of_a_batch_add_up_to_the_whole() -> None:
    model, batch = small_model(), small_batch(rows=2)
    objective = make(model)
    objective.decoder.noise_std = 0.0  # drawn by batch, not by row
    masked = masks(6)
    whole = objective.regress(model, batch, masked, seed=0)
    halves = [
        objective.regress(model, replace(batch, waveform_BS=batch.waveform_BS[n : n + 1]), rows, seed=0)
        for n, rows in enumerate(masked.split(3))
    ]
    torch.testing.assert_close(halves[0].loss_sum + halves[1].loss_sum, whole.loss_sum, rtol=1e-5, atol=1e-4)
    assert float(halves[0].count + halves[1].count) == float(whole.count)


def test_a_collapsed_teacher_shows_in_the_targets_deviation() -> None:
    model = small_model()
    objective = make(model)
    with torch.no_grad():
        for block in objective.target.model.encoder.blocks:
            nn.init.zeros_(block.feed_forward.contract.weight)
    assert objective(model, small_batch(), seed=0, step=0).logs["target/std"].read("s")["s"] < 1e-3


def test_no_step_reads_a_value_on_the_host() -> None:
    model = small_model()
    objective, batch = make(model), small_batch()
    with FakeTensorMode(allow_non_fake_inputs=True):
        objective(model, batch, seed=0, step=0).loss_sum.backward()
        objective.after_step(model, seed=0, step=1)


def test_an_encoder_that_needs_every_frame_is_refused() -> None:
    model = Backbone(LogMel(num_mels=12), Recurrent(partial(nn.Identity), dim=DIM))
    with pytest.raises(ConfigError, match="encodes unmasked frames alone"):
        make(model)


@pytest.mark.parametrize(
    ("words", "can"),
    [
        (["mixer=convolution"], False),
        (["mixer=relative_attention"], True),
        (["mixer=disentangled_attention"], True),
        (["mixer=summary"], True),
        (["mixer=summary", "+mixer.decay=0.9"], False),
        (["encoder=conformer"], False),
        (["mixer=rotary"], True),
    ],
)
def test_mixers_that_would_take_frames_that_are_left_for_neighbours_are_refused(words: list[str], can: bool) -> None:
    config = resolved(compose("pretrain", ["experiment=data2vec2_tiny", "data=shards", "data.shards=null", *words]))
    if can:
        build_on_meta(config)
        return
    with pytest.raises(ConfigError, match="would take those that are left for neighbours"):
        build_on_meta(config)


def test_no_masking_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_masks=0"):
        make(small_model(), num_masks=0)
