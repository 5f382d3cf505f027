"""The channel: messages with descriptors over a stream socket pair between the supervisor and one worker.

Decides: framing (length, descriptor count, payload) and how descriptors travel (SCM_RIGHTS, at most 200 a frame, well
below the kernel's 253). Reading and writing never block; what could not be written waits here.
Refuses to know: event loops (the owner calls `receive` when readable and `flush` when writable) and messages.
"""

from __future__ import annotations

import array
import socket
import struct
from collections import deque

_HEAD = struct.Struct("!II")
FDS_PER_FRAME = 200
#: A frame larger than this is a fault, not a configuration: 4,096 members pickle to well under 4 MB.
MAX_FRAME_BYTES = 64 * 1024 * 1024


class ChannelClosed(Exception):
    """The other process is gone."""


class Channel:
    """One end. Owns its socket and, until they are taken, the descriptors that arrived."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._in = bytearray()
        self._fds_in: deque[int] = deque()
        self._out: deque[tuple[memoryview, list[int]]] = deque()

    @staticmethod
    def pair() -> tuple[Channel, Channel]:
        """A connected pair; call before fork and close the other end in each process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        return Channel(ours), Channel(theirs)

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def wants_write(self) -> bool:
        return bool(self._out)

    def send(self, payload: bytes, fds: list[int] | None = None) -> None:
        """Queue one frame and write what fits now. The descriptors must stay open until `wants_write` is false.

        Raises:
            ValueError: more descriptors than one frame carries.
            ChannelClosed: the other end is gone.
        """
        fds = fds or []
        if len(fds) > FDS_PER_FRAME:
            raise ValueError(f"{len(fds)} descriptors in one frame, at most {FDS_PER_FRAME}")
        self._out.append((memoryview(_HEAD.pack(len(payload), len(fds)) + payload), fds))
        self.flush()

    def flush(self) -> None:
        """Write as much as the socket takes."""
        while self._out:
            data, fds = self._out[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self.sock.sendmsg([data], rights)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if sent == len(data):
                self._out.popleft()
            else:  # the descriptors went with the first byte
                self._out[0] = (data[sent:], [])

    def receive(self) -> list[tuple[bytes, list[int]]]:
        """Every whole frame that has arrived, each with its descriptors.

        Raises:
            ChannelClosed: the other end is gone; frames already returned stay valid.
            ValueError: the frame announced is too large to be ours.
        """
        frames: list[tuple[bytes, list[int]]] = []
        closed = False
        while True:
            try:
                data, ancillary, _flags, _ = self.sock.recvmsg(
                    262144, socket.CMSG_SPACE(FDS_PER_FRAME * 4), socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                closed = True
                break
            for level, kind, rights in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds = array.array("i")
                    fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
                    self._fds_in.extend(fds)
            if not data:
                closed = True
                break
            self._in += data
        while len(self._in) >= _HEAD.size:
            length, count = _HEAD.unpack_from(self._in)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"frame of {length} bytes on the channel")
            if len(self._in) < _HEAD.size + length or len(self._fds_in) < count:
                break
            payload = bytes(self._in[_HEAD.size : _HEAD.size + length])
            del self._in[: _HEAD.size + length]
            frames.append((payload, [self._fds_in.popleft() for _ in range(count)]))
        if closed and not frames:
            raise ChannelClosed("end of file")
        return frames

    def close(self) -> None:
        self.sock.close()
        while self._fds_in:
            socket.close(self._fds_in.popleft())
