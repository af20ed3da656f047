# ruff: noqa: RUF001  IPA letters look like others on purpose
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from data_prep import espeak
from data_prep.espeak import PAUSE, phonemise, phonemise_all, say, simplify
from data_prep.synthetic import LANGUAGES
from ossicle.core.errors import DataError, MissingExtraError

TEXTS = {
    "en-us": "The judge measured a thing for the boy's house, and the bottle broke.",
    "de": "Das Mädchen liest schöne Bücher, während der Hund schläft.",
    "es": "La niña come queso con jamón, y el perro salta.",
    "fr": "La jeune fille mange un bon pain, et le chien dort.",
    "it": "La ragazza mangia gli gnocchi, e il gatto dorme.",
    "pl": "Dziewczyna czyta książki, a źródło szumi.",
}
CHILD = """
import hashlib, sys
from data_prep.espeak import say
speech = say(sys.argv[1], "en-us+f3", rate=190, pitch=60, pitch_range=70, seed=5)
print(hashlib.sha256(speech.pcm_S.tobytes()).hexdigest())
"""


def test_an_utterance_is_the_same_whatever_was_said_before_it() -> None:
    settings = {"rate": 190, "pitch": 60, "pitch_range": 70, "seed": 5}
    first = say(TEXTS["en-us"], "en-us+f3", **settings)
    say(TEXTS["de"], "de+m3", rate=120, seed=9)
    phonemise(TEXTS["fr"], "fr")
    second = say(TEXTS["en-us"], "en-us+f3", **settings)
    np.testing.assert_array_equal(first.pcm_S, second.pcm_S)
    assert first.phones == second.phones


def test_an_utterance_is_the_same_in_another_process() -> None:
    command = [sys.executable, "-c", CHILD, TEXTS["en-us"]]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    here = say(TEXTS["en-us"], "en-us+f3", rate=190, pitch=60, pitch_range=70, seed=5)
    assert hashlib.sha256(here.pcm_S.tobytes()).hexdigest() == told


def test_every_argument_changes_the_sound() -> None:
    plain = {"rate": 170, "pitch": 50, "pitch_range": 50, "seed": 1}
    changes = [{}, {"rate": 200}, {"pitch": 70}, {"pitch_range": 90}, {"seed": 2}]
    said = {say(TEXTS["en-us"], "en-us+f3", **{**plain, **change}).pcm_S.tobytes() for change in changes}
    assert len(said) == len(changes)


@pytest.mark.parametrize("language", LANGUAGES)
def test_phones_cover_the_sound_without_a_gap(language: str) -> None:
    speech = say(TEXTS[language], language)
    assert speech.phones[0].start == 0
    assert speech.phones[-1].end == len(speech.pcm_S)
    assert all(left.end == right.start for left, right in zip(speech.phones, speech.phones[1:], strict=False))
    assert all(phone.end > phone.start for phone in speech.phones)


@pytest.mark.parametrize("language", LANGUAGES)
def test_phones_of_a_text_are_those_that_are_said(language: str) -> None:
    said = [phone.symbol for phone in say(TEXTS[language], language).phones if phone.symbol != PAUSE]
    told = phonemise(TEXTS[language], language)
    assert [symbol for symbol in told if symbol != PAUSE] == said
    assert told.count(PAUSE) == 1  # at the comma
    assert len(said) > 20


def test_pauses_are_quiet_and_fricatives_hiss() -> None:
    speech = say("See six shiny fish, a moon, a room, a noon, see six shoes.", "en-us")
    wave = speech.pcm_S / 32768

    def each(symbols: set[str]) -> list[np.ndarray]:
        return [wave[phone.start : phone.end] for phone in speech.phones if phone.symbol in symbols]

    def crossings(part: np.ndarray) -> float:
        return float(np.mean(np.diff(np.signbit(part)) != 0))

    assert np.mean([np.abs(part).mean() for part in each({PAUSE})]) < 0.002
    assert min(crossings(part) for part in each({"s", "ʃ"})) > 2 * max(crossings(part) for part in each({"u", "m"}))


def test_many_texts_are_phonemised_as_each_alone() -> None:
    pairs = [(text, language) for language, text in TEXTS.items()]
    assert phonemise_all(pairs) == [phonemise(text, language) for text, language in pairs]
    assert phonemise_all([("", "de"), ("...", "de")]) == [[], []]


def test_one_inventory_serves_all_languages() -> None:
    assert [simplify(symbol) for symbol in ("ˈɑː", "ˌiː", "əl", "tsː", "ˈɛ̃", "", "_", "ɾ")] == [
        "ɑ", "i", "l", "ts", "ɛ̃", PAUSE, PAUSE, "ɾ",
    ]  # fmt: skip
    inventory = {symbol for language, text in TEXTS.items() for symbol in phonemise(text, language)}
    assert not {mark for symbol in inventory for mark in symbol} & set("ˈˌː")
    assert len(inventory) < 70


def test_an_unknown_voice_and_an_empty_text_are_refused() -> None:
    with pytest.raises(DataError, match="no such voice"):
        say("hello", "klingon-x")
    with pytest.raises(DataError, match="no such voice"):
        phonemise("hello", "klingon-x")
    with pytest.raises(DataError, match="said nothing"):
        say("", "en-us")


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    espeak.engine.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r"pip install 'ossicle\[synth\]'"):
            say("hello", "en-us")
    finally:
        espeak.engine.cache_clear()
