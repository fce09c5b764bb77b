"""Speaks to a lab's supervisor through its control socket."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from testbed import errors
from testbed.errors import LabError
from testbed.lab.lines import LineSocket, Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from testbed.lab.directory import LabDirectory


def request(
    directory: LabDirectory,
    message: Message,
    *,
    timeout_s: float | None = None,
    on_event: Callable[[Message], None] | None = None,
    on_interrupt: Callable[[], None] | None = None,
) -> Message:
    """Send a command to the supervisor and wait for its result; events go to `on_event`.

    With `on_interrupt`, the first Ctrl-C calls it and asks the supervisor to cancel, and the
    result is still waited for; the second one is raised.

    Raises:
        LabError: there is no supervisor, or it ended, or it said nothing for `timeout_s`.
        TestbedError: what the supervisor answered as an error, of the same class there.
    """
    name = directory.name
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(directory.socket))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise LabError(
                f"reach the supervisor of lab {name!r}: {error.strerror};"
                f" 'testbed up' with the lab's file starts it again, 'testbed down {name}' ends it"
            ) from error
        lines = LineSocket(sock)
        try:
            lines.send(message)
            while True:
                try:
                    answer = lines.receive(timeout_s)
                except KeyboardInterrupt:
                    if on_interrupt is None:
                        raise
                    on_interrupt()
                    on_interrupt = None
                    sock.shutdown(socket.SHUT_WR)  # the supervisor sees that nobody asks any more
                    continue
                if answer is None:
                    raise LabError(
                        f"{message['command']} in lab {name!r}: no answer for {timeout_s:g} s;"
                        f" see {directory.log}"
                    )
                if "event" not in answer:
                    return _result(answer)
                if on_event is not None:
                    on_event(answer)
        except (EOFError, ConnectionError) as error:
            told = (
                f"its last words are in {directory.log}"
                if directory.log.exists()
                else "the lab has been taken down"
            )
            raise LabError(
                f"{message['command']} in lab {name!r}: the supervisor ended; {told}"
            ) from error


def _result(answer: Message) -> Message:
    """The result in a last answer.

    Raises:
        TestbedError: what the supervisor answered as an error.
    """
    if "error" in answer:
        raise _as_exception(answer["error"])
    result: Message = answer["result"]
    return result


def error_message(error: Exception) -> Message:
    """An exception as the supervisor answers it."""
    return {"error": {"type": type(error).__name__, "message": str(error)}}


def _as_exception(said: Message) -> errors.TestbedError:
    """The exception that `error_message` wrote; KernelError's parts are in its message."""
    kind = getattr(errors, said["type"], None)
    plain = {errors.LabError, errors.MigrationError, errors.InputError, errors.MeasurementError}
    return (kind if kind in plain else errors.LabError)(said["message"])
