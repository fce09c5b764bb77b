"""Root or not."""

from __future__ import annotations

import os

from testbed.errors import PrivilegeError


def require_root(command: str) -> None:
    """Refuse to go on without root.

    Raises:
        PrivilegeError: not root; the message has the command to use.
    """
    if os.geteuid() != 0:
        raise PrivilegeError(
            "this makes network namespaces and needs root;"
            f" run 'sudo $(command -v testbed) {command}'"
        )
