"""The JSON Schema: well-formed, and of one mind with the program about what is right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailbalancer.config.schema import CHECK_MODELS, SERVICE_MODELS, Document, json_schema
from mailbalancer.model import Mode, Schedule

SCHEMA = json_schema()
TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "null": type(None),
}
#: Everything this validator understands; a keyword beyond it would be passed over in silence.
KEYWORDS = {
    "$defs", "$ref", "$schema", "additionalProperties", "anyOf", "const", "default", "description", "discriminator",
    "enum", "exclusiveMinimum", "items", "maxLength", "maximum", "minItems", "minLength", "minProperties", "minimum",
    "oneOf", "pattern", "properties", "required", "title", "type",
}  # fmt: skip


def valid(schema: dict[str, Any] | bool, value: Any) -> bool:
    """A validator for the keywords that our schema uses."""
    if isinstance(schema, bool):
        return schema
    assert set(schema) <= KEYWORDS, set(schema) - KEYWORDS
    if "$ref" in schema:
        return valid(SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], value)
    return _kind(schema, value) and _bounds(schema, value) and _alternatives(schema, value) and _parts(schema, value)


def _kind(schema: dict[str, Any], value: Any) -> bool:
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    wanted = schema.get("type")
    return wanted is None or (isinstance(value, TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool)))


def _bounds(schema: dict[str, Any], value: Any) -> bool:
    if isinstance(value, int | float):
        low, above, high = (schema.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
        too_low = (low is not None and value < low) or (above is not None and value <= above)
        return not too_low and (high is None or value <= high)
    if isinstance(value, str):
        return len(value) <= schema.get("maxLength", 10**9) and bool(re.search(schema.get("pattern", ""), value))
    return len(value or ()) >= max(schema.get("minItems", 0), schema.get("minProperties", 0))


def _alternatives(schema: dict[str, Any], value: Any) -> bool:
    if "anyOf" in schema and not any(valid(branch, value) for branch in schema["anyOf"]):
        return False
    return "oneOf" not in schema or sum(valid(branch, value) for branch in schema["oneOf"]) == 1


def _parts(schema: dict[str, Any], value: Any) -> bool:
    if isinstance(value, list):
        return all(valid(schema.get("items", True), entry) for entry in value)
    if not isinstance(value, dict):
        return True
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(key in value for key in schema.get("required", ())) and all(
        valid(known.get(key, others), entry) for key, entry in value.items()
    )


EXAMPLE = (Path(__file__).parent / "complete.yaml").read_text()


def test_it_is_json_and_every_reference_is_there() -> None:
    text = json.dumps(SCHEMA)
    references = set(re.findall(r'"#/\$defs/([^"]+)"', text))
    assert references <= set(SCHEMA["$defs"])
    assert SCHEMA["$schema"].endswith("2020-12/schema")


def test_it_accepts_the_complete_example() -> None:
    assert valid(SCHEMA, yaml.safe_load(EXAMPLE))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("least_connections", "leastconn"),
        ("ramp_s: 300", "ramp: 300"),
        ("mode: l4", "mode: layer4"),
        ("weight: 2", "weight: 0"),
        ("version: 1", "version: 2"),
        ("listen: 10.0.1.101:53, ", ""),
        ("starttls: offer", "starttls: maybe"),
        ("rise: 2", "rise: two"),
    ],
)
def test_it_refuses_what_the_program_refuses(old: str, new: str) -> None:
    assert old in EXAMPLE
    assert not valid(SCHEMA, yaml.safe_load(EXAMPLE.replace(old, new, 1)))


@pytest.mark.parametrize(
    "service",
    [
        "{mode: tcp, listen: ':25', real_servers: ex1, check: none, persist: source, queue: 5}",
        "{mode: tls, listen: ':443', routes: {a: {host: a.b, real_servers: [ex1]}}, unknown_sni: refuse}",
        "{mode: tls, listen: ':443', routes: [{hosts: [a.b], check: {type: https, status: [200, 301-302]}}]}",
        "{mode: http, listen: ':443', persist: {by: exchange, fallback: [cookie, source]}, client_tls: {certificate:"
        " [a, b], min_version: 1.3}, server_tls: {verify: {ca: ca.pem}}, routes: {owa: {path: [/owa, /ecp]},"
        " up: {host: a.b, redirect: 'https://a.b/'}}, sorry: sorry.html}",
        "{mode: smtp, listen: ':25', source: {classes: [{name: relay, clients: [10.1.20.0/24], address: 10.0.2.6},"
        " {name: internet, clients: any, address: 10.0.2.7}], per_source_limit: 20}, capabilities: {hide: X-EXPS},"
        " policy: {recipient_domains: ['*.example.com'], tarpit_s: 5}}",
        "{mode: imap, listen: ':143', client_tls: {starttls: require, certificate: a}, client_address: id}",
        "{mode: pop3, listen: ':995', server_tls: {starttls: implicit, verify: none}}",
        "{mode: l4, listen: ['10.0.0.1:5000-5010'], forward: tunnel, tunnel: {encapsulation: ipip}}",
    ],
    ids=range(8),
)
def test_every_mode_is_validated_by_program_and_editor_alike(service: str) -> None:
    data = yaml.safe_load(f"services: {{s: {service}}}\nreal_servers: {{ex1: 10.0.0.1}}\n")
    assert valid(SCHEMA, data)
    Document.model_validate(data)


def test_the_schema_knows_every_noun() -> None:
    assert set(SERVICE_MODELS) == {mode.value for mode in Mode}
    assert set(SCHEMA["$defs"]["TcpService"]["properties"]["schedule"]["enum"]) == {word.value for word in Schedule}
    assert set(CHECK_MODELS) == {"tcp", "tls", "http", "https", "smtp", "imap", "pop3", "dns", "none"}
