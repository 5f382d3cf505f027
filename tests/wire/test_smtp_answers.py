"""The table of own answers."""

from __future__ import annotations

import pytest

from mailbalancer.wire.smtp_answers import Answer, render_greeting
from mailbalancer.wire.smtp_reply import Replies


@pytest.mark.parametrize("answer", list(Answer))
def test_every_answer_is_one_sound_reply(answer: Answer) -> None:
    replies = Replies()
    replies.feed(answer.render())
    (reply,) = list(replies)
    assert reply.code == answer.code
    assert reply.enhanced == answer.enhanced, "its class is the code's"
    assert answer.text.encode() in reply.raw
    assert replies.clean


def test_no_answer_accepts_mail() -> None:
    assert not [answer for answer in Answer if 250 <= answer.code < 400]


def test_421_and_521_close() -> None:
    assert all(answer.closes for answer in Answer if answer.code in (421, 521, 221))


def test_words_of_others_stay_on_one_line() -> None:
    assert Answer.DENIED.render("no\r\n250 OK\x00é") == b"554 5.7.1 no??250 OK??\r\n"
    assert len(Answer.DENIED.render("x" * 10_000)) < 512
    assert render_greeting("mail.example.com\r\n") == b"220 mail.example.com?? ESMTP\r\n"
