"""Speech with exact phone times, and phones of any text, from the eSpeak NG library that espeakng-loader carries.

The library keeps state from one call to the next (its noise generator, its resonators), so that even with a seed an
utterance depends on what was said before it. Here each utterance is said by a fork of an engine that has never spoken:
its sound is a function of the arguments alone, in any order and in any process.
"""

# ruff: noqa: RUF001  IPA letters look like others on purpose

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ossicle.core.errors import DataError, MissingExtraError
from ossicle.data.utterance import Phone

PAUSE = "_"
"""The symbol of silence."""

_SYNCHRONOUS = 2
_PHONEME_EVENTS, _IPA_EVENTS, _NO_EXIT = 0x0001, 0x0002, 0x8000
_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_LIST_TERMINATED, _PHONEME = 0, 7
_IPA_TEXT, _SEPARATOR = 0x02, "_"
_QUIET = 0.003
_NO_VOICE = 3
_HEADER = struct.Struct("<II")
_EVENT = struct.Struct("<I8s")

# one inventory for all languages: IPA without stress, length, palatalisation, syllabicity and other fine marks; nasal
# vowels stay, since they contrast; vowels coloured by r that one language alone writes as one become their head
_MARKS = "ˈˌːˑʲ-.‿^|!?#*'\u0303\u0329\u031d\u030a\u0325\u031e\u031f\u0320\u032a\u032f\u0361\u0306\u02de"
_STRIP = str.maketrans(dict.fromkeys(_MARKS.replace("\u0303", "")))
_ALIASES = {
    "əl": "l",
    "aɪɚ": "aɪ",
    "aɪə": "aɪ",
    "aʊɚ": "aʊ",
    "ɪɹ": "ɪ",
    "iə": "i",
    "ɛɹ": "ɛ",
    "ʊɹ": "ʊ",
    "ɔːɹ": "ɔ",
    "ɔɹ": "ɔ",
    "oɹ": "o",
    "ɑɹ": "ɑ",
    "ɔø": "ɔɪ",
    "ɐ̃ʊ̃": "ɐ̃ʊ",
    "ʊɐ": "ʊ",
    "ss": "s",
    "ɭ": "l",
    "ja": "a",
    "ju": "u",
}


class _Id(ctypes.Union):
    _fields_: ClassVar = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_: ClassVar = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Loader(Protocol):
    @staticmethod
    def get_library_path() -> str: ...

    @staticmethod
    def get_data_path() -> str: ...


@dataclass(frozen=True, slots=True)
class Speech:
    """What the engine said.

    Args:
        pcm_S: Mono samples, int16, shape (S,).
        rate_hz: Samples a second: 22050.
        phones: Phones in samples at that rate; they cover the sound without a gap. Where the engine fuses an English
            vowel with the l after it, the vowel's span holds both.
    """

    pcm_S: NDArray[np.int16]
    rate_hz: int
    phones: tuple[Phone, ...]


class Engine:
    """The library in one process. Not safe for threads: it has one global state.

    Raises:
        MissingExtraError: The extra synth is not installed.
        DataError: The library does not start.
    """

    def __init__(self) -> None:
        loader = _import_loader()
        self._library = library = ctypes.CDLL(loader.get_library_path())
        _declare(library)
        parent = str(Path(loader.get_data_path()).parent).encode()
        options = _PHONEME_EVENTS | _IPA_EVENTS | _NO_EXIT
        self.rate_hz: int = library.espeak_Initialize(_SYNCHRONOUS, 0, parent, options)
        if self.rate_hz <= 0:
            problem = f"eSpeak NG does not start with the data in {parent.decode()}"
            raise DataError(problem, "pip install --force-reinstall espeakng-loader")
        self._pcm: list[NDArray[np.int16]] = []
        self._events: list[tuple[int, bytes]] = []
        self._callback = _Callback(self._receive)  # the library keeps no reference of its own
        library.espeak_SetSynthCallback(self._callback)

    def say(self, text: str, voice: str, *, rate: int, pitch: int, pitch_range: int, seed: int) -> Speech:
        """Say a text in a fork of this engine, so that the sound is a function of the arguments alone.

        Args:
            text: What to say.
            voice: Language, and perhaps a variant: "de", "en-us+f3".
            rate: Words a minute, 80 to 450.
            pitch: Base pitch, 0 to 100.
            pitch_range: How lively the melody is, 0 to 100.
            seed: Seed of the noise in fricatives and breath.

        Raises:
            DataError: There is no such voice, or nothing was said.
        """
        settings = {_RATE: rate, _PITCH: pitch, _RANGE: pitch_range}
        answer = self._in_fork(lambda: self._synthesise(text, voice, settings, seed), f"saying {text!r} as {voice!r}")
        num_events, num_samples = _HEADER.unpack_from(answer)
        start = _HEADER.size + num_events * _EVENT.size
        events = [_EVENT.unpack_from(answer, _HEADER.size + i * _EVENT.size) for i in range(num_events)]
        pcm_S = np.frombuffer(answer, np.int16, num_samples, start)
        named = [(sample, symbol.rstrip(b"\0").decode("utf-8", "replace")) for sample, symbol in events]
        phones = _timed_phones(named, pcm_S)
        if all(phone.symbol == PAUSE for phone in phones):
            raise DataError(f"eSpeak NG said nothing for the text {text!r}", "give a text with words in it")
        return Speech(pcm_S, self.rate_hz, phones)

    def phonemise(self, texts: Sequence[tuple[str, str]]) -> list[list[str]]:
        """Phones of many texts, each with its language; see :func:`phonemise`. One fork serves them all."""
        first = ", ".join(sorted({language for _, language in texts}))
        answer = self._in_fork(lambda: self._transcribe(texts), f"phonemising texts in {first}")
        return [line.split() for line in answer.decode().split("\n")[:-1]]

    def _in_fork(self, work: Callable[[], bytes], what: str) -> bytes:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:  # this branch must end here, and never return into the parent's code
            code = 1
            try:
                os.close(reading)
                with os.fdopen(writing, "wb") as pipe:
                    pipe.write(work())
                code = 0
            except DataError:
                code = _NO_VOICE
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == _NO_VOICE:
            raise DataError(f"{what}: eSpeak NG has no such voice", "name a language such as 'de' or 'en-us+f3'")
        if code:
            raise DataError(f"{what}: eSpeak NG failed with code {code}", "leave this text out")
        return answer

    def _synthesise(self, text: str, voice: str, settings: dict[int, int], seed: int) -> bytes:
        self._set_voice(voice)
        self._library.espeak_ng_SetRandSeed(seed)
        for parameter, value in settings.items():
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        pcm_S = np.concatenate([np.zeros(0, np.int16), *self._pcm])
        events = b"".join(_EVENT.pack(sample, symbol) for sample, symbol in self._events)
        return _HEADER.pack(len(self._events), len(pcm_S)) + events + pcm_S.tobytes()

    def _transcribe(self, texts: Sequence[tuple[str, str]]) -> bytes:
        return "".join(" ".join(self._transcribe_one(*pair)) + "\n" for pair in texts).encode()

    def _transcribe_one(self, text: str, language: str) -> list[str]:
        self._set_voice(language)
        buffer = ctypes.create_string_buffer(text.encode("utf-8", "replace"))
        place = ctypes.c_void_p(ctypes.addressof(buffer))
        symbols: list[str] = []
        mode = _IPA_TEXT | ord(_SEPARATOR) << 8
        while place.value:
            clause = self._library.espeak_TextToPhonemes(ctypes.byref(place), _UTF8, mode).decode("utf-8", "replace")
            parts = clause.replace(" ", _SEPARATOR).split(_SEPARATOR)
            found = [symbol for part in parts if (symbol := simplify(part)) != PAUSE]
            if found and symbols:
                symbols.append(PAUSE)
            symbols.extend(found)
        return symbols

    def _set_voice(self, voice: str) -> None:
        if self._library.espeak_SetVoiceByName(voice.encode("utf-8", "replace")):
            raise DataError(f"eSpeak NG has no voice {voice!r}", "name a voice such as 'de' or 'en-us+f3'")

    def _receive(self, wave: "ctypes._Pointer[ctypes.c_short]", count: int, events: "ctypes._Pointer[_Event]") -> int:
        if wave and count > 0:
            self._pcm.append(np.ctypeslib.as_array(wave, (count,)).copy())
        place = 0
        while events[place].type != _LIST_TERMINATED:
            event = events[place]
            if event.type == _PHONEME:
                self._events.append((event.sample, event.id.string))
            place += 1
        return 0


@cache
def engine() -> Engine:
    """This process's engine, which never speaks itself. Made at the first call."""
    return Engine()


def say(text: str, voice: str, *, rate: int = 175, pitch: int = 50, pitch_range: int = 50, seed: int = 1) -> Speech:
    """Say a text; see :meth:`Engine.say`."""
    return engine().say(text, voice, rate=rate, pitch=pitch, pitch_range=pitch_range, seed=seed)


def phonemise(text: str, language: str) -> list[str]:
    """Phones of a text in the inventory of :func:`say`, with a pause between clauses.

    Raises:
        DataError: There is no such language.
    """
    return phonemise_all([(text, language)])[0]


def phonemise_all(texts: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Phones of many texts, each given with its language; much faster than one call a text."""
    return engine().phonemise(texts)


def simplify(symbol: str) -> str:
    """The inventory's symbol for one that the library names in IPA; a pause where nothing is left."""
    bare = symbol.translate(_STRIP)
    return _ALIASES.get(bare, bare) or PAUSE


def _timed_phones(events: list[tuple[int, str]], pcm_S: NDArray[np.int16]) -> tuple[Phone, ...]:
    """Phones that cover the sound: neighbouring pauses are one, and nameless sound belongs to the phone after it."""
    if not events or events[0][0] > 0:
        events = [(0, ""), *events]
    ends = [sample for sample, _ in events[1:]] + [len(pcm_S)]
    quiet = _QUIET * 32768
    phones: list[Phone] = []
    pending: int | None = None
    for (start, name), end in zip(events, ends, strict=True):
        if end <= start:
            continue
        symbol = simplify(name)
        if symbol == PAUSE and float(np.abs(pcm_S[start:end]).mean()) > quiet:
            pending = start if pending is None else pending
            continue
        begin = start if pending is None or symbol == PAUSE else pending
        if pending is not None and symbol == PAUSE and phones:
            phones[-1] = replace(phones[-1], end=start)
        pending = None
        if symbol == PAUSE and phones and phones[-1].symbol == PAUSE:
            phones[-1] = replace(phones[-1], end=end)
        else:
            phones.append(Phone(begin, end, symbol))
    if phones:
        phones[0], phones[-1] = replace(phones[0], start=0), phones[-1]
        phones[-1] = replace(phones[-1], end=len(pcm_S))
    return tuple(phones)


def _declare(library: ctypes.CDLL) -> None:
    integer, text, pointer = ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
    library.espeak_Initialize.argtypes = [integer, integer, text, integer]
    library.espeak_SetVoiceByName.argtypes = [text]
    library.espeak_SetParameter.argtypes = [integer, integer, integer]
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(pointer), integer, integer]
    library.espeak_TextToPhonemes.restype = text
    position = [ctypes.c_uint, integer, ctypes.c_uint, ctypes.c_uint]
    library.espeak_Synth.argtypes = [text, ctypes.c_size_t, *position, pointer, pointer]


def _import_loader() -> _Loader:
    try:
        import espeakng_loader  # noqa: PLC0415  an extra
    except ImportError as error:
        raise MissingExtraError("espeakng_loader", "synth", "synthetic speech") from error
    return espeakng_loader
