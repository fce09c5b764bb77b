"""What every page has: one self-contained file that needs no network, and its tables."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING

from testbed.report.style import CSS, SCRIPT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page. It loads nothing, and works without its script; `parts` are HTML."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    body = "\n".join(parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
{body}
<script>{SCRIPT}</script>
</body>
</html>
"""


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    style: str = "",
    *,
    head: bool = True,
    stunned: Iterable[int] = (),
) -> str:
    """A table whose first column names the rows; `stunned` are the rows to mark."""
    marked = set(stunned)
    lines = ['<div class="scroll">', f'<table class="{style}">']
    if head:
        cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heads)
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    lines.append("<tbody>")
    for number, (first, *others) in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        mark = ' class="stunned"' if number in marked else ""
        lines.append(f'<tr{mark}><th scope="row">{escape(first)}</th>{cells}</tr>')
    lines.append("</tbody></table></div>")
    return "\n".join(lines)
