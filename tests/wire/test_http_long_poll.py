"""Which requests wait for news."""

from __future__ import annotations

import pytest

from mailbalancer.wire.http_long_poll import Wait, classify, in_body

EAS = b"/Microsoft-Server-ActiveSync"


@pytest.mark.parametrize(
    ("method", "path", "values", "wait"),
    [
        (b"POST", EAS + b"?Cmd=Ping", {}, Wait.ACTIVESYNC),
        (b"POST", EAS.lower() + b"?User=x&cmd=sync&DeviceId=1", {}, Wait.ACTIVESYNC),
        (b"POST", EAS + b"?Cmd=SyncX", {}, Wait.NOT),
        (b"POST", EAS + b"?XCmd=Sync", {}, Wait.NOT),
        (b"OPTIONS", EAS + b"?Cmd=Ping", {}, Wait.NOT),
        (b"POST", b"/mapi/emsmdb", {b"x-requesttype": [b"notificationwait"]}, Wait.MAPI),
        (b"POST", b"/mapi/emsmdb", {b"x-requesttype": [b"Execute"]}, Wait.NOT),
        (b"POST", b"/mapi/emsmdb", {}, Wait.NOT),
        (b"POST", b"/EWS/Exchange.asmx", {}, Wait.PERHAPS_EWS),
        (b"GET", b"/EWS/Exchange.asmx", {}, Wait.NOT),
        (b"RPC_IN_DATA", b"/rpc/rpcproxy.dll", {b"content-length": [b"1073741824"]}, Wait.RPC),
        (b"RPC_OUT_DATA", b"/rpc/rpcproxy.dll", {b"content-length": [b"76"]}, Wait.RPC),
        (b"RPC_OUT_DATA", b"/rpc/rpcproxy.dll", {b"content-length": [b"0"]}, Wait.NOT),
        (b"RPC_IN_DATA", b"/rpc/rpcproxy.dll", {}, Wait.NOT),
        (b"RPC_ECHO_DATA", b"/rpc/rpcproxy.dll", {b"content-length": [b"4"]}, Wait.NOT),
        (b"POST", b"/owa/", {}, Wait.NOT),
        (b"POST", b"", {}, Wait.NOT),
    ],
)
def test_by_head(method: bytes, path: bytes, values: dict[bytes, list[bytes]], wait: Wait) -> None:
    assert classify(method, path, values) is wait


@pytest.mark.parametrize(("code", "wait"), [(0, Wait.ACTIVESYNC), (18, Wait.ACTIVESYNC), (9, Wait.NOT)])
def test_by_command_code(code: int, wait: Wait) -> None:
    assert classify(b"POST", EAS + b"?base64", {}, bytes((141, code, 4, 9))) is wait


def test_by_body() -> None:
    assert in_body(memoryview(b"<m:GetStreamingEvents xmlns:m='x'>")) is Wait.EWS
    assert in_body(b"<m:GetFolder>") is Wait.NOT
