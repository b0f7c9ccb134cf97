"""What the documents hold: fenced blocks, commands, links, and what is said between backticks."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "roles").glob("*/README.md"))]
FENCE = re.compile(r"^([ ]*)```(\w*)\n(.*?)^[ ]*```$", re.MULTILINE | re.DOTALL)
# What a reader puts something of his own for, and what the tests put there.
STAND_INS = {
    "lightbox.mlops.NAME": "lightbox.mlops.site", "playbooks/NAME": "playbooks/site",
    "WHERE": "lab", "SYSTEM": "pneumonia", "PLAYBOOK": "site.yml", "HOST": "pneumonia-api", "UNIT": "lightbox-api",
    "ADDRESS": "198.51.100.7", "NAME": "mnist", "DIR": "films", "FILE": "report.json", "BUNDLE": "runs/latest",
    "VERSION": "20261121T110000Z-1a2b3c4d",
}  # fmt: skip
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what it is, what is in it."""

    where: str
    kind: str
    text: str


@dataclass(frozen=True)
class Command:
    """A simple command: where it stands, its words, and what stood before them for its environment."""

    where: str
    words: tuple[str, ...]
    environment: tuple[str, ...] = ()

    @property
    def program(self) -> str:
        return self.words[0]

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join(self.words)}"


def place(page: Path, text: str, position: int) -> str:
    """Return page and line of a position, as compilers name it."""
    return f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, position) + 1}"


def blocks() -> list[Block]:
    """Return every fenced block of the documents."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            found.append(Block(place(page, text, match.start()), match.group(2), textwrap.dedent(match.group(3))))
    return found


def prose(page: Path) -> str:
    """Return a document with its fenced blocks emptied, so that every line stays where it is."""
    return FENCE.sub(lambda match: "\n" * match.group().count("\n"), page.read_text())


def spans() -> list[Block]:
    """Return what stands between backticks in the text of the documents."""
    found = []
    for page in PAGES:
        text = prose(page)
        for match in re.finditer(r"`((?:[^`\n]|\n(?!\n))+)`", text):
            found.append(Block(place(page, text, match.start()), "span", re.sub(r"\s+", " ", match.group(1))))
    return found


def of_kind(kind: str) -> list[Block]:
    """Return the blocks of a kind."""
    return [block for block in blocks() if block.kind == kind]


def texts(*parts: str) -> str:
    """Return all that playbooks, roles or inventories say, as one text."""
    found = (path for part in parts for path in (ROOT / part).rglob("*") if path.suffix in (".yml", ".j2"))
    return "\n".join(path.read_text() for path in found if path.is_file() and not path.is_symlink())


def links() -> Iterator[tuple[Path, str, str]]:
    """Yield every link to a file or heading: the page it is on, the path and the anchor it names."""
    for page in PAGES:
        text = re.sub(r"`[^`\n]*`", "``", prose(page))
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"[a-z]+://|mailto:", target):
                path, _, anchor = target.partition("#")
                yield page, path, anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while (numbered := f"{anchor}-{number}" if number else anchor) in found:
            number += 1
        found.add(numbered)
    return found


def filled(word: str) -> str:
    """Return a word with something real in place of what a reader replaces."""
    return re.sub(rf"\b({'|'.join(STAND_INS)})\b(?!=)", lambda match: STAND_INS[match.group()], word)


def commands(where: str, script: str) -> list[Command]:
    """Return the simple commands of a script, those inside ``$(…)`` among them; raise ValueError for open quotes."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        words: list[str] = []
        redirected = False
        for token in [*lexer, ";"]:
            if token and set(token) <= set("();<>|&"):
                redirected = set(token) <= set("<>")
                if not redirected:
                    found += simple(where, words)
                    words = []
                elif words and words[-1].isdigit():
                    words.pop()  # 2>/dev/null
            elif redirected:
                redirected = False
            else:
                words.append(filled(token))
    return found


def simple(where: str, words: list[str]) -> list[Command]:
    """Return the command that words are, without those that only set its environment; none where all do."""
    count = next((number for number, word in enumerate(words) if not ASSIGNMENT.fullmatch(word)), len(words))
    return [Command(where, tuple(words[count:]), tuple(words[:count]))] if words[count:] else []
