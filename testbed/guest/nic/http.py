"""HTTP/1.1 as far as a web server of numbered files needs it (RFC 9112)."""

from __future__ import annotations

from typing import NamedTuple

_MOST_DIGITS = 18  # of a file's number, which is kept in a 64-bit word
_REASONS = {
    200: "OK",
    404: "Not Found",
    400: "Bad Request",
    501: "Not Implemented",
}


class Request(NamedTuple):
    """A request line: what to answer, for which file, and whether the connection then ends."""

    status: int
    file: int
    with_body: bool
    close: bool


def parse_request_line(line: bytes) -> Request:
    """What the first line of a request, without its end, asks for.

    A line that was cut is taken for what it is: a path that long names no file.
    """
    words = line.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        known = len(words) >= 2 and words[1].startswith(b"/")  # its version may have been cut
        return Request(404 if known else 400, 0, with_body=False, close=True)
    method, target, version = words
    close = version == b"HTTP/1.0"
    if method not in {b"GET", b"HEAD"}:
        return Request(501, 0, with_body=False, close=True)  # a body would follow, unread
    digits = target[1:]
    if target[:1] != b"/" or not digits.isdigit() or len(digits) > _MOST_DIGITS:
        return Request(404, 0, with_body=False, close=close)
    return Request(200, int(digits), with_body=method == b"GET", close=close)


def asks_to_close(field: bytes) -> bool:
    """Whether a header field, one line, says that the connection is to end."""
    name, _, value = field.partition(b":")
    return name.lower() == b"connection" and b"close" in value.lower()


def response_head(status: int, content_bytes: int, *, close: bool) -> bytes:
    """The status line and header of a response with so many bytes of content."""
    return (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\n"
        "Content-Type: application/octet-stream\r\n"
        f"Content-Length: {content_bytes}\r\n" + ("Connection: close\r\n" if close else "") + "\r\n"
    ).encode()
