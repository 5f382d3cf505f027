"""The end of a message: at every cut, under every policy, judged by what lenient servers behind would receive."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailbalancer.wire.smtp_answers import Answer
from mailbalancer.wire.smtp_data import BareNewlines, DataBody

REJECT, NORMALISE, PASS = BareNewlines.REJECT, BareNewlines.NORMALISE, BareNewlines.PASS
#: What some server has once taken, or could take, for the end of a message.
FALSE_ENDS = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r.\n",
    b"\n.\r",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n\0\n.\n",
    b"\r\0\n.\r\0\n",
    b"\n\n.\n\n",
    b"\n\r.\n\r",
    b"\r\n.\r\0\n",
]
#: A server that ends a message at any of them, with a dot that stands alone in anybody's view of lines.
LENIENT_END = re.compile(rb"(?:\A|[\r\n])\0*\.\0*(?:\r|\n)")
#: Bytes that matter, and one that does not.
alphabet = st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"\0", b"a", b"\r\n.", b"\n."]), max_size=24)


class Passage:
    """One stream fed to a message in the given pieces."""

    def __init__(self, stream: bytes, cuts: list[int], policy: BareNewlines, max_bytes: int = 0) -> None:
        self.body = DataBody(policy, max_bytes)
        self.sent = b""
        self.taken = 0
        edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
        for start, end in itertools.pairwise(edges):
            if not self.body.done:
                fed = self.body.feed(stream[start:end])
                self.sent += b"".join(fed.pieces)
                self.taken += fed.taken

    def facts(self) -> tuple[object, ...]:
        body = self.body
        return (self.taken if body.done else None, body.done, body.refused)


def ways(stream: bytes, policy: BareNewlines) -> Passage:
    """Whole, byte by byte, at every single cut, and with a command behind: all the same."""
    whole = Passage(stream, [], policy)
    variants = [[cut] for cut in range(1, len(stream))] + [list(range(1, len(stream)))]
    for cuts in variants:
        other = Passage(stream, cuts, policy)
        assert other.facts() == whole.facts(), cuts
        if whole.body.refused is None:
            assert other.sent == whole.sent, cuts
            assert other.body.strays == whole.body.strays
    if whole.body.done:
        trailing = Passage(stream + b"MAIL FROM:<a@b>\r\n", [], policy)
        assert (trailing.sent, trailing.taken) == (whole.sent, whole.taken)
    return whole


def lenient_messages(received: bytes) -> int:
    """How many messages the most lenient of all servers finds in what it was sent: the real end counts as one."""
    count, start = 0, 0
    while (found := LENIENT_END.search(received, start)) is not None:
        count += 1
        start = found.end()
        if received[start - 1 : start + 1] == b"\r\n":
            start += 1
    return count


@pytest.mark.parametrize("policy", list(BareNewlines))
@pytest.mark.parametrize(
    "message",
    [
        b".\r\n",
        b"\r\n.\r\n",
        b"Subject: x\r\n\r\nbody\r\n.\r\n",
        b"a\r\n..\r\n...\r\n.stuffed\r\nb.\r\n.\r\n",
        b"..\r\n.\r\n",
        "Grüße €\r\n".encode() + b"\x80\xff\r\n.\r\n",
        b"\r\n\r\n\r\n.\r\n",
        b"a" * 3000 + b"\r\n.\r\n",
    ],
)
def test_good_mail_passes_byte_for_byte(policy: BareNewlines, message: bytes) -> None:
    passage = ways(message, policy) if len(message) < 500 else Passage(message, [1000, 2999, 3001], policy)
    assert passage.sent == message
    assert passage.taken == len(message)
    assert passage.body.done
    assert passage.body.refused is None
    assert passage.body.size == len(message) - 3
    assert passage.body.strays == 0


@pytest.mark.parametrize("false_end", FALSE_ENDS)
@pytest.mark.parametrize("lead", [b"", b"x", b"x\r\n", b"\r\n", b"x."])
def test_reject_lets_no_end_through(false_end: bytes, lead: bytes) -> None:
    stream = lead + false_end + b"MAIL FROM:<evil@example.com>\r\nDATA\r\nsmuggled\r\n.\r\n"
    passage = ways(stream, REJECT)
    assert passage.body.refused is Answer.BARE_NEWLINE
    assert passage.body.done
    assert passage.taken == len(stream), "the client's end of the message is found all the same"
    assert not LENIENT_END.search(passage.sent)
    assert b"\r\n.\r\n" not in b"\r\n" + passage.sent


@pytest.mark.parametrize("false_end", FALSE_ENDS)
@pytest.mark.parametrize("lead", [b"", b"x", b"x\r\n", b"\r\n", b"x."])
def test_normalise_makes_one_message_of_it(false_end: bytes, lead: bytes) -> None:
    stream = lead + false_end + b"MAIL FROM:<evil@example.com>\r\nDATA\r\nsmuggled\r\n.\r\n"
    passage = ways(stream, NORMALISE)
    assert passage.body.refused is None
    assert passage.taken == len(stream)
    assert lenient_messages(passage.sent) == 1
    assert passage.sent.endswith(b"smuggled\r\n.\r\n")


def test_pass_changes_nothing_and_counts() -> None:
    stream = b"a\n.\nb\rc\0\r\n.\r\n"
    passage = ways(stream, PASS)
    assert passage.sent == stream
    assert (passage.body.bare_lf, passage.body.bare_cr, passage.body.nul) == (2, 1, 1)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"a\nb\n\r\n.\r\n", b"a\r\nb\r\n\r\n.\r\n"),
        (b"a\rb\r\n.\r\n", b"a b\r\n.\r\n"),
        (b"a\0b\r\n.\r\n", b"a b\r\n.\r\n"),
        (b"a\n.\nb\r\n.\r\n", b"a\r\n..\r\nb\r\n.\r\n"),
        (b".\n.\r\n.\r\n", b"..\r\n..\r\n.\r\n"),
        (b"a\n..b\r\n.\r\n", b"a\r\n..b\r\n.\r\n"),
        (b"a\r\n.\r\r\n.\r\n", b"a\r\n.. \r\n.\r\n"),
        (b"a\r\0\n.\r\0\n\r\n.\r\n", b"a  \r\n..  \r\n\r\n.\r\n"),
    ],
)
def test_normalise(stream: bytes, expected: bytes) -> None:
    assert ways(stream, NORMALISE).sent == expected


@pytest.mark.parametrize("policy", list(BareNewlines))
def test_bytes_behind_the_end_are_not_taken(policy: BareNewlines) -> None:
    body = DataBody(policy)
    fed = body.feed(b"x\r\n.\r\nQUIT\r\n\n.\n")
    assert b"".join(fed.pieces) == b"x\r\n.\r\n"
    assert fed.taken == 6
    assert body.strays == 0


@given(parts=alphabet, cuts=st.lists(st.integers(1, 60), max_size=8), policy=st.sampled_from(BareNewlines))
@example(parts=[b"\n.", b"\r\n", b"a"], cuts=[1, 2, 3], policy=NORMALISE)
def test_any_split_gives_the_same(parts: list[bytes], cuts: list[int], policy: BareNewlines) -> None:
    stream = b"".join(parts) + b"\r\n.\r\n"
    whole, split = Passage(stream, [], policy), Passage(stream, cuts, policy)
    assert whole.facts() == split.facts()
    if whole.body.refused is None:
        assert whole.sent == split.sent


@given(parts=alphabet, cuts=st.lists(st.integers(1, 60), max_size=8))
def test_lenient_servers_see_as_many_messages_as_were_passed_on(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts) + b"\r\n.\r\n"
    for policy in (REJECT, NORMALISE):
        passage = Passage(stream, cuts, policy)
        assert passage.body.done
        passed_on = 0 if passage.body.refused else 1
        assert lenient_messages(passage.sent) == passed_on, passage.sent
        assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", passage.sent)
        assert passage.taken == (b"\r\n" + stream).index(b"\r\n.\r\n") + 3


@given(parts=alphabet, policy=st.sampled_from([BareNewlines.NORMALISE, BareNewlines.PASS]))
def test_every_stray_is_counted(parts: list[bytes], policy: BareNewlines) -> None:
    content = b"".join(parts).replace(b"\r\n.\r\n", b"") + b"x"
    if content.startswith(b".\r\n"):
        content = b"x" + content
    body = DataBody(policy)
    body.feed(content)
    pairs = content.count(b"\r\n")
    if not body.done:
        assert body.bare_cr == content.count(b"\r") - pairs
        assert body.bare_lf == content.count(b"\n") - pairs
        assert body.nul == content.count(b"\0")


@pytest.mark.parametrize("policy", BareNewlines)
@pytest.mark.parametrize("content", [b"", b"hello\r\n", b"..\r\n" * 100])
def test_a_message_in_one_piece_goes_on_in_one_piece(policy: BareNewlines, content: bytes) -> None:
    fed = DataBody(policy).feed(content + b".\r\nQUIT\r\n")
    assert [bytes(piece) for piece in fed.pieces] == [content + b".\r\n"]


@given(text=st.binary(max_size=300), cuts=st.lists(st.integers(1, 300), max_size=5))
def test_clean_mail_of_any_bytes_passes(text: bytes, cuts: list[int]) -> None:
    lines = re.split(rb"[\r\n\0]+", text)
    stream = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"
    for policy in BareNewlines:
        passage = Passage(stream, cuts, policy)
        assert passage.sent == stream
        assert passage.body.strays == 0


@pytest.mark.parametrize("cuts", [[], list(range(1, 200)), [100, 101, 102]])
def test_too_big_never_ends(cuts: list[int]) -> None:
    stream = b"x" * 98 + b"\r\n" + b"y" * 20 + b"\r\n.\r\nQUIT\r\n"
    passage = Passage(stream, cuts, REJECT, max_bytes=110)
    assert passage.body.refused is Answer.TOO_BIG_CONTENT
    assert passage.body.done
    assert passage.taken == len(stream) - len(b"QUIT\r\n")
    assert len(passage.sent) <= 110
    assert b"\r\n.\r\n" not in passage.sent
    assert Passage(stream, cuts, REJECT, max_bytes=122).body.refused is None


@pytest.mark.parametrize("step", [1, 7, 999, 1000, 1001, 5000])
@pytest.mark.parametrize("lengths", [[998] * 5, [999], [10, 5000, 10, 998, 999, 10], [3000, 3000], [1] * 2000])
def test_lines_of_any_length_are_passed_on(lengths: list[int], step: int) -> None:
    stream = b"".join(b"x" * length + b"\r\n" for length in lengths) + b".\r\n"
    assert Passage(stream, list(range(step, len(stream), step)), REJECT).sent == stream


def test_views_and_byte_arrays_are_read_and_not_kept() -> None:
    buffer = bytearray(b"hello\r\n.\r\n")
    body = DataBody(REJECT)
    pieces = body.feed(memoryview(buffer)).pieces
    buffer[:] = b"overwritten"
    assert b"".join(pieces) == b"hello\r\n.\r\n"
