"""Combinations of parts that make no sense are refused when they are composed, with the reason and a mend."""

import pytest

from ossicle.core.errors import ConfigError
from ossicle.launch.config import compose
from ossicle.launch.experiment import check, resolved
from tests.launch.toy import TOY

PROGRESSIVE = (
    "encoder=progressive",
    "++encoder.input_dim=32",
    "++encoder.stages=[{convolutions: [[32, 5, 2]], num_layers: 2, ffn_dim: 64}]",
    "mixer.num_heads=2",
)
PLAIN = tuple(item for item in TOY if not item.startswith("++encoder"))
SENSELESS = {
    "an encoder that hears the future foresees it": (
        "cpc_tiny", ("encoder=transformer",), "would copy what it is to foresee", "encoder=recurrent"),
    "classes for a contrastive loss": (
        "wav2vec2_tiny", ("target=random_projection",), "RandomProjection quantises none", "target=gumbel"),
    "a quantiser for masked prediction": (
        "best_rq_tiny", ("target=gumbel",), "GumbelQuantiser has none", "target=kmeans"),
    "a quantiser where frames are foreseen": (
        "wav2vec_tiny", ("target=gumbel",), "not GumbelQuantiser", "target=frames"),
    "labels that nobody makes": ("best_rq_tiny", ("target=kmeans",), "nor does a stage make them", "ossicle label"),
    "labels for several sources": (
        "mhubert_tiny", ("data.sources={a:{shards:x},b:{shards:y}}",), "not those of another", "labels"),
    "an encoder that shortens under masks": (
        "best_rq_tiny", PROGRESSIVE, "the encoder shortens: its frames lie on", "frontend"),
    "an encoder that shortens under a contrastive loss": (
        "wav2vec2_tiny", PROGRESSIVE, "the encoder shortens: its frames lie on", "frontend"),
    "codebooks for an objective that reads frames": (
        "dinosr_tiny", ("objective=regression",), "codebooks of OnlineCodebook unused", "target=ema_teacher"),
    "codebooks for many maskings": (
        "data2vec2_tiny", ("target=online_codebook",), "codebooks of OnlineCodebook unused", "masked_codebooks"),
    "codebooks for frames told apart": (
        "dinosr_tiny", ("objective=contrastive_teacher",), "codebooks of OnlineCodebook unused", "target=ema_teacher"),
    "frames between the target's frames": (
        "best_rq_tiny", ("target.hop_ms=15",), "target.hop_ms", "divides the frontend's stride"),
    "an encoder without blocks": ("best_rq_tiny", ("encoder.num_layers=0",), "encodes nothing", "one block"),
    "crops longer than the longest": (
        "cpc_tiny", ("data.max_crop_s=1.28", "data.min_crop_s=2.0"), "seconds are impossible", "<= max_crop_s"),
    "a layer that is not there": (
        "fast_hubert_tiny", ("objective.layers=[7]",), "no layer 7", "from 1 to"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "overrides", "problem", "mend"), SENSELESS.values(), ids=SENSELESS)
def test_what_makes_no_sense_is_refused_with_the_reason(
    name: str, overrides: tuple[str, ...], problem: str, mend: str
) -> None:
    data = () if "mhubert" in name else ("data.shards=nowhere",)
    sizes = PLAIN if overrides is PROGRESSIVE else TOY
    config = resolved(compose("pretrain", [f"experiment={name}", *data, *sizes, *overrides]))
    with pytest.raises(ConfigError, match=problem) as caught:
        check(config)
    assert mend in caught.value.mend


IMPOSSIBLE = [
    ("hubert_tiny", ("objective.mask_start_probability=0",), "masks nothing"),
    ("hubert_tiny", ("objective.mask_start_probability=1.5",), "masks nothing"),
    ("hubert_tiny", ("objective.mask_length=0",), "masks nothing"),
    ("data2vec2_tiny", ("objective.mask_start_probability=1.0",), "or everything"),
    ("dinosr_tiny", ("objective.mask_length=0",), "masks nothing"),
    ("hubert_tiny", ("objective.head.temperature=0",), "temperature=0"),
    ("wav2vec2_tiny", ("objective.temperature=0",), "temperature=0"),
    ("wav2vec2_tiny", ("objective.num_negatives=0",), "num_negatives=0"),
    ("spiral_tiny", ("objective.temperature=0",), "temperature=0"),
    ("wav2vec2_tiny", ("target.num_groups=0",), "num_groups=0"),
    ("wav2vec2_tiny", ("target.temperature=0",), "temperature=0"),
    ("best_rq_tiny", ("target.num_classes=1",), "num_classes=1"),
    ("best_rq_tiny", ("encoder.position_kernel=0",), "position_kernel=0"),
    ("best_rq_tiny", ("encoder.position_groups=0",), "0 position groups"),
    ("data2vec_tiny", ("target.read=layers",), "target.read=layers is no choice"),
    ("hubert_tiny", ("frontend.norm=utterances",), "did you mean utterance"),
    ("wav2vec2_tiny", ("data.min_crop_s=0.03",), "0 encoded frame"),
    ("wav2vec2_tiny", ("data.min_crop_s=0.04",), "of the 1 frame"),
    ("cpc_tiny", ("data.min_crop_s=0.04",), "the objective needs 2"),
    ("hubert_tiny", ("optim.lr=-1",), "optim: Invalid learning rate: -1"),
    ("hubert_tiny", ("optim.betas=[0.9]",), "optim: not enough values"),
    ("hubert_tiny", ("precision=bf16",), "precision=bf16 is not one that runs take"),
    ("hubert_tiny", ("mixer=synthesizer_dense", "mixer.max_frames=50"), "max_frames=50"),
    ("hubert_tiny", ("mixer=synthesizer_random", "mixer.max_frames=50"), "max_frames=50"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "overrides", "problem"), IMPOSSIBLE)
def test_numbers_that_no_step_could_take_are_refused_before_one(
    name: str, overrides: tuple[str, ...], problem: str
) -> None:
    config = resolved(compose("pretrain", [f"experiment={name}", "data.shards=nowhere", *overrides]))
    with pytest.raises(ConfigError, match=problem):
        check(config)


def test_a_mixer_with_as_many_places_as_the_longest_crop_has_frames_passes() -> None:
    words = ["experiment=hubert_tiny", "data.shards=nowhere", "mixer=synthesizer_dense"]
    for encoder, most in (("transformer", 100), ("squeezed", 50)):
        check(resolved(compose("pretrain", [*words, f"encoder={encoder}", f"mixer.max_frames={most}"])))


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("hubert_tiny", ("objective=masked_prediction_layers", "objective.layers=[1]", "encoder=squeezed")),
        ("best_rq_tiny", ("frontend=wave", "encoder=conformer")),
        ("wav2vec2_tiny", ("frontend=logmel", "encoder=squeezed")),
        ("cpc_tiny", ("encoder=convolutional", "frontend=logmel")),
        ("mr_hubert_tiny", ("layer/head@objective.head=linear", "layer/mask@objective.mask=noise")),
    ],
)
def test_unusual_combinations_that_make_sense_are_built(name: str, overrides: tuple[str, ...]) -> None:
    sizes = [item for item in TOY if "num_layers" not in item]
    check(resolved(compose("pretrain", [f"experiment={name}", "data.shards=nowhere", *sizes, *overrides])))
