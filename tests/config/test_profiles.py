"""Profile files: what is refused in them, their checklist, and the way back from a service."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mailbalancer.config import load as door
from mailbalancer.config import profiles
from mailbalancer.config.profiles import (
    ChecklistItem,
    Library,
    checklist,
    export,
    list_profiles,
    load_profile,
    search_dirs,
    substitute,
)
from mailbalancer.errors import ConfigError

HERE = Path(__file__).parent / "profiles"


def refusal(folder: Path, text: str, name: str = "p") -> list[str]:
    (folder / f"{name}.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_profile(name, [folder])
    return [problem.removeprefix(str(folder) + "/") for problem in caught.value.problems]


def test_found_in_order_and_listed_by_name(tmp_path: Path) -> None:
    (tmp_path / "later.yaml").write_text("profile: later\ntitle: mine\nservices: {a: {mode: tcp}}\n")
    (tmp_path / "not a name.yaml").write_text("{")
    found = list_profiles([tmp_path, HERE, tmp_path / "missing"])
    assert [(profile.name, profile.written.title) for profile in found] == [
        ("later", "mine"),
        ("little-mail", "A little mail server"),
    ]


def test_search_dirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAILBALANCER_PROFILES", "/a:/b")
    dirs = [str(folder) for folder in search_dirs()]
    assert dirs[:3] == ["/a", "/b", "/etc/mailbalancer/profiles"]
    assert dirs[3].endswith("shipped_profiles")
    monkeypatch.delenv("MAILBALANCER_PROFILES")
    assert len(search_dirs()) == 2


def test_the_folder_of_shipped_profiles_is_there() -> None:
    assert search_dirs()[-1].is_dir()


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("a-smtp", ("a", "smtp")),
        ("a-b-smtp", ("a-b", "smtp")),
        ("a/b-smtp", ("a", "b-smtp")),
        ("a-b", ("a-b", "one")),
        ("c", None),
        ("../a/smtp", None),
    ],
)
def test_references(tmp_path: Path, reference: str, found: tuple[str, str] | None) -> None:
    for name in ("a", "a-b"):
        (tmp_path / f"{name}.yaml").write_text(f"profile: {name}\ntitle: t\nservices: {{one: {{mode: tcp}}}}\n")
    assert Library([tmp_path]).find(reference) == found


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("profile: q\ntitle: t\nservices: {a: {}}\n", "p.yaml:1: profile: 'q' must be the file's name, 'p'"),
        ("profile: p\ntitle: t\n", "p.yaml:1: 'services' is missing"),
        ("profile: p\ntitle: t\nservices: {}\n", "p.yaml:3: services: is empty; name at least one"),
        ("profile: p\ntitle: t\nservices:\n  a:\n    x: ${hots}\n",
         "p.yaml:5: services.a.x: ${hots} is not a parameter of this profile"),
        ("profile: p\ntitle: t\nparameters: {listen: {description: d}}\nservices: {a: {}}\n",
         "p.yaml:3: parameters.listen: 'listen' cannot be a parameter, because it is a setting of services"),
        ("profile: p\ntitle: t\nparameters: {x: {description: d, type: hosst}}\nservices: {a: {}}\n",
         "p.yaml:3: parameters.x.type: 'hosst' is not a type (did you mean host?)"),
        ("profile: p\ntitle: t\nparameters: {x: {description: d, type: port, default: 70000}}\nservices: {a: {}}\n",
         "p.yaml:3: parameters.x: 70000 is not a port (1 to 65535)"),
        ("profile: p\ntitle: t\nservices: {a: {}}\nchecklist: [{title: t, why: w, platform: beos}]\n",
         "p.yaml:4: checklist[0].platform: 'beos' is not a platform"),
        ("profile: p\ntitle: t\nservices: {a: {}}\nchecklist: [{title: t, why: w, platform: dns, services: [b]}]\n",
         "p.yaml:4: checklist[0].services: 'b' is not a service of this profile"),
        ("profile: p\n\ttitle: t\n", "p.yaml:2: a tab indents this line"),
        ("profile: p\ntitle: t\nservices: {a: {}}\ndefault_services: [b]\n",
         "p.yaml:4: default_services: 'b' is not a service of this profile"),
        ("profile: p\ntitle: t\nparameters:\n  x: {description: d, default: '${y}'}\n  y: {description: d}\n"
         "services: {a: {}}\n", "p.yaml:4: parameters.x: ${y} is not a parameter that stands before this one"),
        ("profile: p\ntitle: t\nparameters: {x: {description: d, type: networks, default: '10.0.0.0/8,ten'}}\n"
         "services: {a: {}}\n", "p.yaml:3: parameters.x: 'ten' is not a network such as"),
    ],
    ids=range(13),
)  # fmt: skip
def test_refused(tmp_path: Path, text: str, line: str) -> None:
    found = refusal(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(line)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(ConfigError) as caught:
        load_profile("litle-mail", [HERE])
    assert caught.value.problems == ["there is no profile 'litle-mail' (did you mean little-mail?)"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${n}", (True, 330)),
        ("${host}", (True, "m.example")),
        ("a ${host} ${n}", (True, "a m.example 330")),
        ("$${host} ${host}", (True, "${host} m.example")),
        ("$${host}", (True, "${host}")),
        ("${none}", (False, None)),
        ("x ${none}", (False, None)),
        ("${tricky}", (True, "${host}")),
        ("$host $ {host}", (True, "$host $ {host}")),
        (5, (True, 5)),
    ],
)
def test_substitution(text: str | int, value: tuple[bool, object]) -> None:
    assert substitute(text, {"n": 330, "host": "m.example", "none": None, "tricky": "${host}"}) == value


def test_the_checklist_is_filled_in() -> None:
    profile = load_profile("little-mail", [HERE])
    assert checklist(profile, {"host": "m.example"}, service="in", vip="10.0.1.1") == (
        ChecklistItem(
            "MX of m.example",
            "senders must find in",
            "dns",
            ("smtp",),
            ("MX 10 m.example.", "${host} 10.0.1.1"),
            missing=("probe",),
        ),
        ChecklistItem("Names", "everybody needs them", "linux", (), ()),
    )
    assert [item.title for item in checklist(profile, {"host": "m.example"}, ["https"])] == ["Names"]


def test_a_checklist_needs_its_parameters() -> None:
    with pytest.raises(ConfigError) as caught:
        checklist(load_profile("little-mail", [HERE]), {"hosst": "m.example", "silence": "x"})
    assert caught.value.problems == [
        "'hosst' is not a parameter of profile little-mail (did you mean host?)",
        "profile little-mail needs 'host' (name that clients use), for example host: mail.example.com",
        "silence: 'x' is not a number",
    ]


def test_a_default_uses_what_stands_before_it(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        "profile: p\ntitle: t\nservices: {a: {}}\nparameters:\n  host: {description: d, type: host}\n"
        "  inside: {description: d, type: host, default: 'in.${host}'}\n  domain: {description: d, required: false}\n"
        "  auto: {description: d, default: 'auto.${domain}', required: false}\n"
        "checklist: [{title: t, why: w, platform: dns, commands: ['${inside}', '${auto} ${vip}']}]\n"
    )
    profile = load_profile("p", [tmp_path])
    (item,) = checklist(profile, {"host": "m.example"})
    assert (item.commands, item.missing) == (("in.m.example",), ("auto", "vip"))
    (item,) = checklist(profile, {"host": "m.example", "inside": "x.example", "domain": "d"}, vip="10.0.1.1")
    assert (item.commands, item.missing) == (("x.example", "auto.d 10.0.1.1"), ())


def test_the_name_in_a_server_s_certificate_becomes_the_host(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(
        "real_servers: {a: 10.0.0.1}\nservices:\n  imaps: {mode: tcp, listen: '10.0.1.1:993', real_servers: [a],"
        " check: {type: imap, tls: true, verify: {name: mail.example.com}}}\n"
    )
    written = yaml.safe_load(export(door.tree(tmp_path / "x.yaml", profile_dirs=[]), "imaps"))
    assert written["services"]["imaps"]["check"]["verify"] == {"name": "${host}"}
    assert written["parameters"]["host"]["example"] == "mail.example.com"


CONFIG = """
real_servers: {a: 10.0.0.1, b: 10.0.0.2}
services:
  web:
    mode: tls
    listen: ["10.0.1.1:443"]
    real_servers: {a: 8443, b: {port: 8443, weight: 3}}
    idle_timeout_s: 99
    routes:
      - {name: "owa", hosts: [mail.example.com, owa.example.com]}
    check: {type: https, host: mail.example.com, path: "/$/${x}"}
"""


def test_a_service_becomes_a_profile_and_a_service_again(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(CONFIG)
    text = export(door.tree(file, profile_dirs=[]), "web")
    written = yaml.safe_load(text)
    assert written["parameters"] == {
        "host": {"description": "name that clients use", "type": "host", "example": "mail.example.com"},
        "host_2": {"description": "name that clients use", "type": "host", "example": "owa.example.com"},
    }
    assert "10.0." not in text
    (tmp_path / "web.yaml").write_text(text)
    again = "services: {web: {profile: web, vip: 10.0.1.1, real_servers: {a: , b: {weight: 3}}, "
    names = "host: mail.example.com, host_2: owa.example.com}}\nreal_servers: {a: 10.0.0.1, b: 10.0.0.2}\n"
    config = door.load_text(again + names, folder=tmp_path, profile_dirs=[tmp_path])
    (before,) = door.load(file).services
    (after,) = config.services
    assert (after.profile, after.line) == ("web-web", 1)
    changes = [str(change) for change in door.diff(door.load(file), config)]
    assert changes == ["service web: profile none -> web-web"]
    assert before.pool == after.pool


def test_export_of_nothing() -> None:
    root = door.read_yaml(CONFIG.encode(), "x.yaml", [])
    assert root is not None
    with pytest.raises(ConfigError) as caught:
        export(root, "wbe")
    assert caught.value.problems == ["there is no service 'wbe' in x.yaml (did you mean web?)"]


def test_every_profile_of_the_tests_is_right() -> None:
    assert len(list_profiles([HERE])) == 2
    assert profiles.BUILT_IN < profiles.RESERVED
