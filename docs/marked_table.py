"""A table that stands in a document below a mark, and is written there by a program."""

from __future__ import annotations

import re


def put(text: str, mark: str, table: str, page: str) -> str:
    """Return a document with a table below a mark, in place of the one that may stand there.

    Args:
        text: the document.
        mark: the line above the table.
        table: its lines.
        page: what the document is called when it lacks the mark, or has it twice.
    """
    if text.count(mark) != 1:
        raise SystemExit(f"{page} must have this line once, above its table: {mark}")
    before, after = text.split(mark)
    rest = re.sub(r"\A\s*(\|[^\n]*\n)*\n*", "", after)
    return f"{before}{mark}\n\n{table}\n\n{rest}"
