"""The way of a client as a picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from ipaddress import ip_interface, ip_network

import pytest

from mailbalancer.l4.path_picture import svg
from mailbalancer.l4.paths import Known, Outcome, Path, explain
from mailbalancer.l4.way_back import Verdict, WayBack
from mailbalancer.model import L4, Endpoint, Forward, Member, Mode, Pool, PortRange, Service
from mailbalancer.network import Interface, Network, Route

_SVG = "{http://www.w3.org/2000/svg}"
LONG = "2001:db8:1234:5678:9abc:def0:1234:"
NETWORK = Network(
    (Interface("eth0", 2, addresses=(ip_interface("10.0.1.1/24"), ip_interface(f"{LONG}1/64"))),),
    (Route(ip_network("0.0.0.0/0"), "eth0"), Route(ip_network("::/0"), "eth0")),
)


def way(forward: Forward, client: str, known: Known) -> Path:
    ipv6 = ":" in client
    member = Member("s1", Endpoint(f"{LONG}11" if ipv6 else "10.0.1.11", 443))
    l4 = L4((PortRange(f"{LONG}100" if ipv6 else "10.0.1.100", 443, 443),), forward=forward)
    service = Service("mail", Mode.L4, (), Pool("mail", "", (member,)), l4=l4)
    return explain(service, client, member, NETWORK, known)


ODD = Known(True, way=WayBack(Verdict.UNKNOWN, 'a <b> & "c" ' + "that goes on and on " * 20))


@pytest.mark.parametrize("forward", list(Forward))
@pytest.mark.parametrize("client", ["192.0.2.7", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"])
@pytest.mark.parametrize("known", [ODD, Known(False)], ids=["odd", "down"])
def test_everything_is_in_the_picture(forward: Forward, client: str, known: Known) -> None:
    path = way(forward, client, known)
    root = ET.fromstring(svg(path))
    width, height = (int(root.attrib[name]) for name in ("width", "height"))
    arrows = [line for line in root.findall(f"{_SVG}line") if line.attrib["class"].startswith("arrow")]
    assert len(arrows) == len(path.hops)
    assert len(root.findall(f"{_SVG}path")) == (path.outcome is Outcome.FAILS)
    texts = root.findall(f"{_SVG}text")
    assert (
        path.sentence.split()
        == " ".join(t.text or "" for t in texts).split(f"{path.outcome}: ")[1].split()[: len(path.sentence.split())]
    )
    for text in texts:
        assert float(text.attrib["y"]) < height - 8
        small = 5.9 if text.attrib.get("class") == "tiny" else 7.2
        long = len(text.text or "") * small
        left = float(text.attrib["x"]) - (long / 2 if "text-anchor" in text.attrib else 0)
        assert left >= 0
        assert left + long <= width


def test_a_name_that_is_too_long_is_cut() -> None:
    path = way(Forward.SNAT, "192.0.2.7", Known(True))
    member_of_a_long_name = svg(Path(**{**_fields(path), "real_server": "x" * 60}))
    assert "x…" in member_of_a_long_name


def test_it_is_drawn_for_dark_pages_too() -> None:
    drawn = svg(way(Forward.SNAT, "192.0.2.7", Known(True)))
    assert "prefers-color-scheme: dark" in drawn
    light, _, dark = drawn.partition("prefers-color-scheme")
    for name in set(re.findall(r"\.(card|box|text|small|works|fails|unknown|beyond)\b", light)):
        assert f".{name}" in dark


def _fields(path: Path) -> dict[str, object]:
    return {name: getattr(path, name) for name in Path.__dataclass_fields__}
