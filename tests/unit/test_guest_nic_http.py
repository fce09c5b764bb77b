"""Requests for numbered files, and what else comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.guest.nic.http import Request, asks_to_close, parse_request_line, response_head


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"GET /0 HTTP/1.1", Request(200, 0, with_body=True, close=False)),
        (b"GET /17 HTTP/1.0", Request(200, 17, with_body=True, close=True)),
        (b"HEAD /17 HTTP/1.1", Request(200, 17, with_body=False, close=False)),
        (b"GET /" + b"9" * 18 + b" HTTP/1.1", Request(200, 10**18 - 1, True, False)),
        (b"GET /" + b"9" * 19 + b" HTTP/1.1", Request(404, 0, False, False)),
        (b"GET / HTTP/1.1", Request(404, 0, False, False)),
        (b"GET /-1 HTTP/1.1", Request(404, 0, False, False)),
        (b"GET /index.html HTTP/1.1", Request(404, 0, False, False)),
        (b"GET /" + b"x" * 59, Request(404, 0, False, True)),  # cut
        (b"POST /1 HTTP/1.1", Request(501, 0, False, True)),
        (b"hello", Request(400, 0, False, True)),
        (b"GET /1 SMTP/1.1", Request(404, 0, False, True)),
        (b"", Request(400, 0, False, True)),
    ],
)
def test_request_lines(line: bytes, expected: Request) -> None:
    assert parse_request_line(line) == expected


@given(st.binary(max_size=64))
def test_any_line_has_an_answer(line: bytes) -> None:
    found = parse_request_line(line)
    assert response_head(found.status, 0, close=found.close)
    assert 0 <= found.file < 2**63


@pytest.mark.parametrize(
    ("field", "closes"),
    [
        (b"Connection: close", True),
        (b"connection: Keep-Alive, Close", True),
        (b"Connection: keep-alive", False),
        (b"X-Connection: close", False),
        (b"close", False),
    ],
)
def test_the_field_that_ends_a_connection(field: bytes, closes: bool) -> None:
    assert asks_to_close(field) is closes


def test_a_head_says_how_much_comes() -> None:
    head = response_head(200, 1234, close=True)
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert {b"Content-Length: 1234", b"Connection: close"} < set(lines)
    assert lines[-2:] == [b"", b""]
    assert b"Connection" not in response_head(404, 0, close=False)
