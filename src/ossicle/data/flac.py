"""Where a crop lies in a FLAC stream, found by the numbers that frames carry: nothing is decoded to get there.

FLAC: RFC 9639, sections 8.2 (streaminfo) and 9.1 (frame header). libFLAC seeks by decoding frames on the way and begins
anew after each jump; a stream that holds the wanted frames alone is read from its beginning to its end.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Reader = Callable[[int, int], bytes]
"""``read(first, size)``: that many bytes of the encoded audio from the first one on; fewer at its end."""

HEAD_BYTES = 4096
"""What is read first: the blocks of metadata that libFLAC writes, and the first frame's header."""

_STREAMINFO_END = 42  # "fLaC", a block's header of 4 bytes, and its 34 bytes
_LAST_BLOCK = 0x80
_FIXED = b"\xff\xf8"  # sync code of frames that all have one length, numbered one by one
_LONGEST_HEADER = 16
_TRIES = 12
# bytes that a header has after the frame's number, by the code of its length and of its rate
_LENGTH_BYTES = {6: 1, 7: 2}
_RATE_BYTES = {12: 1, 13: 2, 14: 2}


def _crc8_table() -> bytes:
    table = np.arange(256, dtype=np.int64)
    for _ in range(8):
        table = np.where(table & 0x80, (table << 1) ^ 0x107, table << 1)
    return bytes(table.tolist())


_CRC8 = _crc8_table()


@dataclass(frozen=True, slots=True)
class Layout:
    """What the head of a mono FLAC stream with frames of one length tells.

    Args:
        head: Signature and streaminfo, so marked that frames may follow at once.
        mark: First four bytes of every frame but a shorter last one.
        first_frame: Place of the first frame, in bytes.
        num_bytes: Size of the stream.
        num_samples: Length of the audio.
        frame_samples: Samples of every frame but the last.
        largest_frame: Most bytes of a frame.
    """

    head: bytes
    mark: bytes
    first_frame: int
    num_bytes: int
    num_samples: int
    frame_samples: int
    largest_frame: int

    @classmethod
    def of(cls, head: bytes, num_bytes: int) -> "Layout | None":
        """Read a stream's head.

        Args:
            head: The first bytes, HEAD_BYTES of them where there are as many.
            num_bytes: Size of the whole stream.

        Returns:
            The layout; None where the stream is another one than this module can cut.
        """
        first_frame = _end_of_metadata(head)
        if first_frame is None:
            return None
        shortest, longest = int.from_bytes(head[8:10], "big"), int.from_bytes(head[10:12], "big")
        largest_frame = int.from_bytes(head[15:18], "big")
        packed = int.from_bytes(head[18:26], "big")  # rate 20 bits, channels - 1 in 3, bits - 1 in 5, samples in 36
        is_mono = (packed >> 41) & 7 == 0
        mark = head[first_frame : first_frame + 4]
        if not (shortest == longest > 0 and largest_frame and is_mono and mark[:2] == _FIXED):
            return None
        bare = bytes((*head[:4], _LAST_BLOCK, *head[5:_STREAMINFO_END]))
        return cls(bare, mark, first_frame, num_bytes, packed & (1 << 36) - 1, longest, largest_frame)

    @property
    def num_frames(self) -> int:
        """How many frames there are."""
        return -(-self.num_samples // self.frame_samples)


def cut(read: Reader, layout: Layout, start: int, num_samples: int) -> tuple[bytes, int] | None:
    """The frames that hold a crop, as a stream of their own.

    Args:
        read: Reads the stream.
        layout: What its head says.
        start: First sample of the crop.
        num_samples: Its length; the crop lies within the audio.

    Returns:
        The stream, and how many samples it has before the crop; None where the frames are not found: something is
        damaged, which a decoder is to say.
    """
    # a last frame that is shorter has another mark: it is reached from the one before
    frame = max(0, min(start // layout.frame_samples, layout.num_frames - 2))
    place = _place_of(read, layout, frame)
    if place is None:
        return None
    num_frames = -(-(start + num_samples) // layout.frame_samples) - frame
    frames = read(place, min(num_frames * layout.largest_frame, layout.num_bytes - place))
    return layout.head + frames, start - frame * layout.frame_samples


def _place_of(read: Reader, layout: Layout, frame: int) -> int | None:
    """The first byte of a frame, by interpolation between frames whose places are known."""
    low, low_place = 0, layout.first_frame
    high, high_place = layout.num_frames, layout.num_bytes
    window = 2 * layout.largest_frame + _LONGEST_HEADER
    for _ in range(_TRIES):
        if low == frame:
            return low_place
        mean = (high_place - low_place) / (high - low)
        # aimed half a window before the frame, so that a guess may be wrong either way; never before what is known
        guess = max(low_place + 1, int(low_place + (frame - low) * mean) - window // 2)
        found = _numbers(read(guess, min(window, high_place + _LONGEST_HEADER - guess)), layout)
        for number, offset in found:
            if low < number <= frame:
                low, low_place = number, guess + offset
            elif frame < number < high:
                high, high_place = number, guess + offset
        if not found:
            return None
    return None


def _numbers(data: bytes, layout: Layout) -> list[tuple[int, int]]:
    """Every frame header in some bytes: the frame's number, and its offset."""
    found: list[tuple[int, int]] = []
    offset = data.find(layout.mark)
    while offset >= 0:
        number = frame_number(data[offset : offset + _LONGEST_HEADER])
        if number is not None and number < layout.num_frames:
            found.append((number, offset))
        offset = data.find(layout.mark, offset + 1)
    return found


def frame_number(header: bytes) -> int | None:
    """The number that a frame header carries, or None where its checksum says that it is no header.

    Args:
        header: The header's bytes and any that follow.
    """
    if len(header) < 6:
        return None
    lead = header[4]
    ones = 8 - (lead ^ 0xFF).bit_length()  # the number is coded as UTF-8 codes characters
    more = max(0, ones - 1)
    number = lead & (0x7F >> ones)
    for byte in header[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    end = 5 + more + _LENGTH_BYTES.get(header[2] >> 4, 0) + _RATE_BYTES.get(header[2] & 15, 0)
    crc = 0
    for byte in header[: end + 1]:
        crc = _CRC8[crc ^ byte]
    return number if crc == 0 and ones != 1 and end < len(header) else None


def _end_of_metadata(head: bytes) -> int | None:
    """Where the first frame begins, or None where the head does not reach it."""
    if head[:4] != b"fLaC" or head[4:8] not in {b"\x00\x00\x00\x22", b"\x80\x00\x00\x22"}:
        return None
    place = 4
    while place + 4 <= len(head):
        is_last = head[place] & _LAST_BLOCK
        place += 4 + int.from_bytes(head[place + 1 : place + 4], "big")
        if is_last:
            return place if place + 4 <= len(head) else None
    return None
