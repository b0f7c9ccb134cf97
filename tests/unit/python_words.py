"""Read command lines from standard input, JSON, with the programs' own parsers; write what is wrong with each.

A program is run until it has read its arguments, and no further.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

ROOT = Path(__file__).parents[2]
# Programs that look at values after argparse has, each with the function that does.
READERS = {"lightbox.cnn": "parse"}
PARSE = argparse.ArgumentParser.parse_args


class Read(BaseException):
    """The arguments have been read."""


def parse_and_end(*arguments: Any, **named: Any) -> NoReturn:
    """Parse arguments as argparse does, and end the program there."""
    PARSE(*arguments, **named)
    raise Read


def run(words: list[str]) -> None:
    """Run a program until it has read its arguments; `Read` says that it has."""
    sys.argv = words[1:] if words[0] == "-m" else words
    if words[0] == "-m" and words[1] in READERS:
        getattr(importlib.import_module(words[1]), READERS[words[1]])(words[2:])
        raise Read
    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_end):
        if words[0] == "-m":
            sys.path[0] = str(ROOT)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str((ROOT / words[0]).parent)
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def wrong(words: list[str]) -> str:
    """Return what a program says of its arguments, or nothing."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            run(words)
    except Read:
        return ""
    except SystemExit as end:
        return "" if end.code in (0, None) else said.getvalue() or str(end)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "it does not read its arguments"


if __name__ == "__main__":
    json.dump([wrong(words) for words in json.load(sys.stdin)], sys.stdout)
