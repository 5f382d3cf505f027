"""Single values: what is taken, in which form, and what is said of everything else."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbalancer.config import values
from mailbalancer.model import Endpoint


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (values.listen, "10.0.1.100:25", (Endpoint("10.0.1.100", 25),)),
        (values.listen, "[2001:DB8::1]:25", (Endpoint("2001:db8::1", 25),)),
        (values.listen, "*:25", (Endpoint("0.0.0.0", 25), Endpoint("::", 25))),
        (values.listen, ":25", (Endpoint("0.0.0.0", 25), Endpoint("::", 25))),
        (values.listen, "0.0.0.0:25", (Endpoint("0.0.0.0", 25),)),
        (values.listen_range, "10.0.1.101:53", ("10.0.1.101", 53, 53)),
        (values.listen_range, "[::1]:5000-5010", ("::1", 5000, 5010)),
        (values.real_server_address, "2001:0db8:0::5", "2001:db8::5"),
        (values.network, "10.1.20.0/24", ipaddress.ip_network("10.1.20.0/24")),
        (values.network, "10.1.20.7", ipaddress.ip_network("10.1.20.7/32")),
        (values.host_name, "Mail.Example.com.", "mail.example.com"),
        (values.host_pattern, "*.Example.com", "*.example.com"),
        (values.dns_name, ".", "."),
        (values.statuses, 200, (200,)),
        (values.statuses, "301-303", (301, 302, 303)),
        (values.sha256, "AA:" * 31 + "bb", "aa" * 31 + "bb"),
        (values.mailbox, "<check@example.com>", "check@example.com"),
        (values.mailbox, "<>", "<>"),
        (values.helo, "[192.0.2.1]", "[192.0.2.1]"),
        (values.helo, "[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
        (values.target, "/owa/healthcheck.htm", "/owa/healthcheck.htm"),
        (values.moment, "2026-11-28 22:00", datetime(2026, 11, 28, 22, 0)),  # noqa: DTZ001
        (values.moment, "Sunday 01:30", datetime(2001, 1, 7, 1, 30)),  # noqa: DTZ001
    ],
)
def test_taken(parse: Callable[[object], object], text: object, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (values.moment, "2026-11-31 22:00", "is not a time such as 2026-11-28 22:00, or sunday 01:00"),
        (values.moment, "sunday 24:00", "is not a time"),
        (values.moment, "sonntag 01:00", "is not a time"),
        (values.moment, "sunday ٠1:00", "is not a time"),
        (values.listen, "10.0.1.100", "has no port; write 10.0.1.100:25"),
        (values.listen, "10.0.1.100:0", "'0' is not a port (1 to 65535)"),
        (values.listen, "10.0.1.100:65536", "'65536' is not a port"),
        (values.listen, "10.0.1.100:²5", "'²5' is not a port"),
        (values.listen, "10.0.1.100:+25", "'+25' is not a port"),
        (values.listen, "10.0.1.100: 25", "is not a port"),
        (values.listen, "2001:db8::1:25", 'in brackets and quotes: "[2001:db8::1]:25"'),
        (values.listen, "[2001:db8::1]25", 'write "[2001:db8::1]:25" in quotes'),
        (values.listen, "mail:25", "'mail' is not an IP address; write the address to listen on"),
        (values.listen, "[fe80::1%eth0]:25", "has a zone"),
        (values.listen, "10.0.01.1:25", "is not an IP address"),
        (values.listen_range, "10.0.0.1:20-10", "ends before it begins"),
        (values.real_server_address, "ex1.example.com", "a load balancer must not depend on DNS"),
        (values.real_server_address, "10.0.0.256", "is not an IP address"),
        (values.real_server_address, "0.0.0.0", "is not the address of one machine"),
        (values.real_server_address, "ff02::1", "is not the address of one machine"),
        (values.real_server_address, "::ffff:10.0.0.1", "write 10.0.0.1"),
        (values.real_server_address, "fe80::1%eth0", "has a zone"),
        (values.network, "10.0.0.5/24", "write 10.0.0.0/24 for the network or 10.0.0.5 for the host"),
        (values.network, "2001:db8::5/64", "write 2001:db8::/64 for the network"),
        (values.network, "lan", "is not a network such as"),
        (values.host_name, "müller.example", "write the xn-- form"),
        (values.host_name, "a..b", "is not a host name"),
        (values.host_name, "a" * 64 + ".com", "is not a host name"),
        (values.host_pattern, "a*.example.com", "only for the whole first label"),
        (values.host_pattern, "*", "only for the whole first label"),
        (values.statuses, "2xx", "is not an HTTP status"),
        (values.statuses, "299-200", "is not an HTTP status"),
        (values.sha256, "aa", "64 hexadecimal digits"),
        (values.pattern, "(", "is not a regular expression"),
        (values.method, "GET /", "is not an HTTP method"),
        (values.target, "/a b", "has no spaces"),
        (values.target, "owa", "begins with /"),
        (values.target, "/a\r\nHost: b", "is not a path"),
        (values.mailbox, "a@b>\r\nRCPT TO:<c@d", "is not a mail address"),
        (values.mailbox, "<a@b", "is not a mail address"),
        (values.mailbox, "nobody", "is not a mail address"),
        (values.helo, "a\r\nQUIT", "is not a host name"),
        (values.name, "../x", "cannot be a name"),
        (values.name, "a" * 65, "cannot be a name"),
        (values.name, "a\n", "cannot be a name"),
        (values.user, "a b", "is not a user name"),
        (values.file_path, "", "is not the path of a file"),
        (values.file_path, "a\0b", "is not the path of a file"),
    ],
)
def test_refused(parse: Callable[[object], object], text: object, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse(text)


_EVERY = [
    values.name,
    values.port,
    values.address,
    values.real_server_address,
    values.listen,
    values.listen_range,
    values.endpoint,
    values.network,
    values.host_name,
    values.host_pattern,
    values.dns_name,
    values.statuses,
    values.sha256,
    values.pattern,
    values.method,
    values.target,
    values.mailbox,
    values.helo,
    values.user,
    values.file_path,
]


@given(st.text(max_size=40) | st.from_regex(r"[\[\]0-9a-fA-F:.*/%<>@-]{0,30}", fullmatch=True))
def test_any_text_is_taken_or_refused(text: str) -> None:
    for parse in _EVERY:
        try:
            parse(text)
        except ValueError as error:
            assert str(error)  # noqa: PT017


@given(st.ip_addresses(), st.integers(1, 65535))
def test_an_endpoint_reads_back_what_it_writes(host: object, port: int) -> None:
    if getattr(host, "ipv4_mapped", None) is None:
        endpoint = Endpoint(str(host), port)
        if "%" not in str(host):
            assert values.endpoint(str(endpoint)) == endpoint
