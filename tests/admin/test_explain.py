"""Which way a connection goes, asked through the door."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from tests.admin.door import open_door


def test_in_words_and_as_a_picture(tmp_path: Path) -> None:
    with open_door(tmp_path) as door:
        ways = door.get("/explain?client=127.0.0.1&service=smtp")["ways"]
        assert [way["real_server"] for way in ways] == ["ex1", "ex2"]
        assert {(way["outcome"], way["seen_as"], way["takes"]) for way in ways} == {("works", "127.0.0.1", "everybody")}
        assert [hop["outcome"] for hop in ways[0]["hops"]] == ["works"] * 4
        assert ways[0]["text"].startswith("127.0.0.1 -> smtp -> ex1 127.0.0.3:9: works")
        picture = door.ask("GET", "/api/v1/explain.svg?client=127.0.0.1&service=smtp&real_server=ex2")
        assert (picture.status, picture.headers["Content-Type"]) == (200, "image/svg+xml")
        assert "ex2" in "".join(ET.fromstring(picture.body).itertext())
        for wrong in ("client=mail.example.com&service=smtp", "client=127.0.0.1&service=smtp&real_server=ex9"):
            answer = door.ask("GET", f"/api/v1/explain?{wrong}")
            assert answer.status == 409
            assert answer.json["remedy"]
