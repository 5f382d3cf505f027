"""The corpus, judged by what a server (or client) behind us would receive."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailbalancer.wire.hop_by_hop import read_connection
from mailbalancer.wire.http_body import open_body, request_framing, response_framing
from mailbalancer.wire.http_head import BadMessage, RequestReader, ResponseReader
from tests.wire.damage import edited, edits
from tests.wire.http_corpus import EMPTY, MORE, REQUESTS, RESPONSES, Case, Ok, request

REQUEST_READER = RequestReader()
RESPONSE_READER = ResponseReader()


class Behind:
    """Reads a stream of messages as it arrives and keeps what would have been passed on, as the http mode does."""

    def __init__(self, case: Case, answers: bool) -> None:
        self._case = case
        self._answers = answers
        self._waiting = bytearray()
        self._seen = 0
        self._body = None
        self.bodies: list[bytes] = []
        self.refused = 0

    def feed(self, data: bytes) -> None:
        self._waiting += data
        try:
            while self._waiting and not self.refused and self._step():
                pass
        except BadMessage as bad:
            self.refused = bad.status

    @property
    def verdict(self) -> Ok | int:
        under_way = self._body is not None and not self._body.done
        if self.refused:
            complete = tuple(self.bodies[:-1] if under_way else self.bodies)
            return Ok(complete, self.refused) if complete or under_way else self.refused
        waits = self._waiting or under_way or not self.bodies
        return Ok(tuple(self.bodies), MORE if waits else 0)

    def _step(self) -> bool:
        if self._body is None or self._body.done:
            return self._read_head()
        fed = self._body.feed(bytes(self._waiting))
        self.bodies[-1] += b"".join(fed.pieces)
        del self._waiting[: fed.taken]
        return self._body.done

    def _read_head(self) -> bool:
        reader = RESPONSE_READER if self._answers else REQUEST_READER
        head = reader.read(self._waiting, self._seen)
        self._seen = 0 if head else len(self._waiting)
        if head is None:
            return False
        if self._answers:
            framing = response_framing(head, self._case.method, self._case.upgrading)
            read_connection(head, 502)
        else:
            framing = request_framing(head)
            read_connection(head)
        del self._waiting[: head.length]
        self._body = open_body(framing, decode=True, status=502 if self._answers else 400)
        self.bodies.append(b"")
        return True


def judged(case: Case, answers: bool, step: int = 0, trailing: bytes = b"") -> Ok | int:
    behind = Behind(case, answers)
    data = case.data + trailing
    for start in range(0, len(data), step or max(len(data), 1)):
        behind.feed(data[start : start + (step or len(data))])
    return behind.verdict


def ids(cases: list[Case]) -> list[str]:
    return [case.name for case in cases]


def test_there_are_enough():
    assert len(REQUESTS) + len(RESPONSES) >= 300
    names = ids(REQUESTS) + ids(RESPONSES)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", REQUESTS, ids=ids(REQUESTS))
def test_request_whole(case):
    assert judged(case, answers=False) == case.verdict


@pytest.mark.parametrize("case", REQUESTS, ids=ids(REQUESTS))
def test_request_in_pieces(case):
    assert judged(case, answers=False, step=1 if len(case.data) < 3000 else 501) == case.verdict


@pytest.mark.parametrize("case", REQUESTS, ids=ids(REQUESTS))
def test_request_with_another_behind_it(case):
    found = judged(case, answers=False, trailing=request(b"GET /next HTTP/1.1"))
    if isinstance(case.verdict, Ok) and case.verdict.then == 0:
        assert found == Ok((*case.verdict.bodies, *EMPTY.bodies))
    elif isinstance(case.verdict, int) or case.verdict.then > 0:
        assert found == case.verdict


@pytest.mark.parametrize("case", RESPONSES, ids=ids(RESPONSES))
def test_response_whole(case):
    assert judged(case, answers=True) == case.verdict


@pytest.mark.parametrize("case", [case for case in RESPONSES if isinstance(case.verdict, Ok)])
def test_which_responses_end_with_their_connection(case):
    head = RESPONSE_READER.read(case.data)
    body = open_body(response_framing(head, case.method, case.upgrading))
    assert body.ends_at_close is case.closed


@pytest.mark.parametrize("case", RESPONSES, ids=ids(RESPONSES))
def test_response_in_pieces(case):
    assert judged(case, answers=True, step=1 if len(case.data) < 3000 else 501) == case.verdict


SMALL = [(case, False) for case in REQUESTS if len(case.data) < 2000]
SMALL += [(case, True) for case in RESPONSES if len(case.data) < 2000 and not case.closed]


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(SMALL), edits, st.integers(1, 60))
def test_a_damaged_message_has_one_verdict_at_any_split(case_and_side, changes, step):
    case, answers = case_and_side
    damaged = Case(case.name, edited(case.data, changes), case.verdict, case.method, case.upgrading)
    assert judged(damaged, answers, step) == judged(damaged, answers)
