"""Sound in and out beside a video: packets as they are where an mp4 can hold them, AAC where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import av.container
import av.error

from kiwi.media.limits import MediaError
from kiwi.media.opening import opened
from kiwi.media.streaming import STREAMING_LIMITS, Reel

COPIED = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "flac", "opus"})
BIT_RATE = 192_000
Handling = Literal["none", "copied", "encoded"]


def handling(reel: Reel) -> Handling:
    """What becomes of the reel's sound in an mp4."""
    if not reel.audio_tracks:
        return "none"
    with opened(reel.path, STREAMING_LIMITS, str(reel.path), threads=1) as video:
        return "copied" if all(_is_copied(stream) for stream in video.container.streams.audio) else "encoded"


@dataclass
class Soundtrack:
    """The sound of one file on its way into another, kept in step with the pictures."""

    tracks: dict[int, Any]  # the output's stream by the index of the input's
    start: float
    name: str
    _packets: Iterator[tuple[float, list[av.Packet]]]
    _next: tuple[float, list[av.Packet]] | None = None

    def mux_until(self, seconds: float, output: av.container.OutputContainer) -> None:
        """Writes what sounds before `seconds` of the output; infinity writes all."""
        while True:
            self._next = self._next or next(self._packets, None)
            if self._next is None or self._next[0] > seconds:
                return
            output.mux(self._next[1])
            self._next = None


@contextmanager
def soundtrack(reel: Reel, output: av.container.OutputContainer) -> Iterator[Soundtrack | None]:
    """Adds the reel's audio tracks to an output that has not begun yet. None where it has none.

    The output's clock begins with the first picture, so each packet is moved by the reel's `start`.

    Raises MediaError for sound that cannot be read.
    """
    if not reel.audio_tracks:
        yield None
        return
    with opened(reel.path, STREAMING_LIMITS, str(reel.path), threads=1) as video:
        streams = list(video.container.streams.audio)
        tracks = {stream.index: _added(stream, output) for stream in streams}
        packets = _packets(video.container, streams, tracks, reel)
        yield Soundtrack(tracks, reel.start, str(reel.path), packets)


def _is_copied(stream: Any) -> bool:
    return stream.codec_context.name in COPIED or stream.codec.canonical_name in COPIED


def _added(stream: Any, output: av.container.OutputContainer) -> Any:
    if _is_copied(stream):
        added: Any = output.add_stream_from_template(stream)
        added.time_base = stream.time_base
    else:
        added = output.add_stream("aac", rate=stream.codec_context.sample_rate)
        added.codec_context.layout = "mono" if stream.codec_context.channels == 1 else "stereo"
        added.codec_context.bit_rate = BIT_RATE
    if "language" in stream.metadata:
        added.metadata["language"] = stream.metadata["language"]
    return added


def _packets(
    container: av.container.InputContainer, streams: list[Any], tracks: dict[int, Any], reel: Reel
) -> Iterator[tuple[float, list[av.Packet]]]:
    """Packets for the output with their times in it, seconds."""
    try:
        for packet in container.demux(streams):
            target = tracks[packet.stream.index]
            if _is_copied(packet.stream):
                if packet.dts is not None and packet.size:
                    yield _moved(packet, target, reel.start)
                continue
            for frame in packet.decode():
                seconds = float(frame.time or 0.0) - reel.start
                frame.pts = round(seconds * frame.sample_rate)
                frame.time_base = Fraction(1, frame.sample_rate)
                yield seconds, target.encode(frame)
        for index, target in tracks.items():
            if not _is_copied(container.streams[index]):
                yield float("inf"), target.encode(None)
    except av.error.FFmpegError as error:
        said = f"{reel.path}: the sound breaks off ({error.strerror})"
        raise MediaError("unreadable", said, "repair the sound, or leave it out") from error


def _moved(packet: av.Packet, target: Any, start: float) -> tuple[float, list[av.Packet]]:
    base = packet.time_base or Fraction(1, 1000)
    shift = round(start / float(base))
    packet.dts = None if packet.dts is None else packet.dts - shift
    packet.pts = None if packet.pts is None else packet.pts - shift
    seconds = float((packet.dts or 0) * base)
    packet.stream = target
    return seconds, [packet]
