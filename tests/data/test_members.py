"""Tars from anywhere: whatever is wrong with one, its good members come, and what is wrong is said."""

import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossicle.data.members import audio_members

PLAIN = ("a.flac", "b.txt", "folder/c.wav", "d.seg1.FLAC", "e.json")
AUDIO = ["a.flac", "folder/c.wav", "d.seg1.FLAC"]


def tar_of(*entries: tuple[str, bytes], kind: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=kind) as tar:  # ty: ignore[no-matching-overload]
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def content(name: str) -> bytes:
    return name.encode() * 200


WHOLE = tar_of(*((name, content(name)) for name in PLAIN))


def found_in(data: bytes, max_bytes: int = 1 << 20) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of good members, whose bytes are held against what was written, and what is wrong with the others."""
    members = list(audio_members(io.BytesIO(data), max_bytes))
    good = [member for member in members if not member.problem]
    assert all(member.data == content(member.name) for member in good)
    assert all(member.data is None for member in members if member.problem)
    return [member.name for member in good], [(m.name, m.problem) for m in members if m.problem]


@pytest.mark.parametrize("kind", ["w", "w:gz", "w:xz", "w:bz2"])
def test_audio_members_come_in_order_out_of_plain_and_compressed_tars(kind: str) -> None:
    assert found_in(tar_of(*((name, content(name)) for name in PLAIN), kind=kind)) == (AUDIO, [])


@settings(max_examples=80, deadline=None)
@given(st.integers(0, len(WHOLE) - 1))
def test_a_tar_that_is_cut_off_anywhere_gives_what_stands_before_and_says_so(length: int) -> None:
    good, bad = found_in(WHOLE[:length])
    assert good == AUDIO[: len(good)]
    end_of_last = 512 + -(-len(content("e.json")) // 512) * 512 + WHOLE.index(b"e.json" + bytes(10))
    assert bad or length >= end_of_last  # without its end mark alone it may still be whole
    assert [name for name, _ in bad] in ([], [""])
    if length >= end_of_last:
        assert good == AUDIO


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_a_changed_byte_never_passes_for_an_end_unsaid(place: int, change: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[place] ^= change
    members = list(audio_members(io.BytesIO(bytes(damaged)), 1 << 20))
    whole = [m.name for m in members if not m.problem]
    in_a_header_of_no_use = any(name not in AUDIO for name in whole) or len(whole) == len(AUDIO)
    assert in_a_header_of_no_use or any(m.problem for m in members) or len(whole) == len(AUDIO) - 1


def test_paths_that_climb_are_names_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["../../outside.flac", "/etc/absolute.flac", "a/../../b.flac", "ünicode/" + "語" * 90 + ".flac"]
    assert found_in(tar_of(*((name, content(name)) for name in names)))[0] == names
    assert list(tmp_path.iterdir()) == []
    assert not (tmp_path.parent.parent / "outside.flac").exists()
    assert not Path("/etc/absolute.flac").exists()


def test_links_duplicates_empty_and_oversized_members_are_named_and_the_rest_comes() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("a.flac", "a.flac", "big.flac", "none.flac", "z.flac"):
            info = tarfile.TarInfo(name)
            data = bytes(9_000) if name == "big.flac" else b"" if name == "none.flac" else content(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind in (("link.flac", tarfile.SYMTYPE), ("pipe.flac", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        folder = tarfile.TarInfo("folder.flac")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    good, bad = found_in(buffer.getvalue(), max_bytes=8_000)
    assert good == ["a.flac", "z.flac"]
    assert dict(bad) == {
        "a.flac": "has the name of a member before it",
        "big.flac": "has 9000 bytes, more than data.max_member_mb allows",
        "none.flac": "is empty",
        "link.flac": "is a link or a device",
        "pipe.flac": "is a link or a device",
    }


def test_a_header_that_claims_more_than_there_is_comes_to_an_end() -> None:
    info = tarfile.TarInfo("a.flac")
    info.size = 1 << 40
    good, bad = found_in(info.tobuf() + bytes(2_000), max_bytes=1 << 41)
    assert good == []
    assert len(bad) == 1


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, os.urandom(4_096)])
def test_what_is_no_tar_is_said(data: bytes) -> None:
    good, bad = found_in(data)
    assert good == []
    assert [name for name, _ in bad] == [""]
