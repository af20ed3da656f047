import importlib.util
import sys

import numpy as np
import pytest
import torch

from data_prep import vad
from data_prep.synthetic import SyntheticCorpus
from data_prep.vad import HOP, detector_version, speech_probabilities
from ossicle.core.errors import MissingExtraError

silero_vad = pytest.importorskip("silero_vad")


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """Three utterances with a second of silence after each."""
    corpus = SyntheticCorpus(hours=0.02, seed=4)
    parts = [corpus.load(source).pcm_S for source in list(corpus.sources())[:3]]
    return np.concatenate([np.concatenate([part, np.zeros(16_000, np.int16)]) for part in parts])


def probabilities(*blocks: np.ndarray) -> np.ndarray:
    return np.concatenate([found for found, _, _ in speech_probabilities(blocks)])


def test_answers_are_those_of_the_published_streaming_model(speech: np.ndarray) -> None:
    model = silero_vad.load_silero_vad()
    with torch.no_grad():
        theirs = model.audio_forward(torch.from_numpy(speech.astype(np.float32) / 32768), 16_000)[0].numpy()
    ours = probabilities(speech)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert ours.max() > 0.9
    assert ours[-25:].max() < 0.2


def test_answers_do_not_depend_on_how_a_recording_comes(speech: np.ndarray) -> None:
    long = np.tile(speech, 3)  # more than one call of the model
    whole = probabilities(long)
    np.testing.assert_array_equal(probabilities(*np.array_split(long, 37)), whole)
    assert len(whole) == -(-len(long) // HOP)


def test_levels_are_those_of_the_frames_and_the_last_one_is_filled() -> None:
    wave = np.full(HOP + HOP // 2, 3277, np.int16)
    [(_, levels, size)] = list(speech_probabilities([wave]))
    np.testing.assert_allclose(levels, [-20, -20 - 10 * np.log10(2)], atol=1e-3)
    assert size == len(wave)


def test_torch_is_left_as_it_was(speech: np.ndarray) -> None:
    vad._session.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    list(speech_probabilities([speech]))
    found = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert found == 2


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    vad._session.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match="onnxruntime") as caught:
        list(speech_probabilities([np.zeros(HOP, np.int16)]))
    assert "ossicle[vad]" in caught.value.mend
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="silero_vad"):
        list(speech_probabilities([np.zeros(HOP, np.int16)]))


def test_the_version_is_told() -> None:
    assert detector_version().startswith("silero-vad 6")
