"""BDAT: messages in counted chunks (RFC 3030).

Decides: the size of a chunk and whether it is the last, from the command's argument.
Refuses to know: what is in a chunk. It is binary, so no byte of it ends anything, and nothing in it is looked at.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from mailbalancer.wire.smtp_answers import Answer
from mailbalancer.wire.smtp_command import BadCommand, Command

# 18 digits stay below 2**63. What is no plain decimal number here may be one to another reader.
_ARGUMENT: Final = re.compile(rb"(0|[1-9][0-9]{0,17})(?: +([Ll][Aa][Ss][Tt]))? *")


class Chunk(NamedTuple):
    """What a BDAT command announces."""

    size: int
    last: bool


def parse_bdat(command: Command) -> Chunk:
    """The chunk that follows a BDAT command.

    Raises:
        BadCommand: no plain number. Nobody knows where the next command begins then: answer and close.
    """
    match = _ARGUMENT.fullmatch(command.argument)
    if match is None:
        raise BadCommand(Answer.BAD_CHUNK, f"BDAT {command.argument[:60]!r}")
    return Chunk(int(match[1]), match[2] is not None)


class ChunkBody:
    """The bytes of one chunk; `remaining` of them are still to come (and may be moved past Python)."""

    __slots__ = ("remaining",)

    def __init__(self, chunk: Chunk) -> None:
        self.remaining = chunk.size

    @property
    def done(self) -> bool:
        """Further bytes are the next command's."""
        return not self.remaining

    def take(self, length: int) -> int:
        """How many of `length` bytes that are here belong to the chunk; they count as passed on."""
        taken = min(length, self.remaining)
        self.remaining -= taken
        return taken
