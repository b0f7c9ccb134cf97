"""What the documents tell people to type is understood by the programs that they type it to.

Nothing is trained, created or changed: make says what it would do, Ansible checks the syntax of playbooks, programs
read their arguments and end, and requests are looked up in what the API says of itself. What needs a host or an account
is named in `ELSEWHERE`, with the test that runs it there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.parse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from documents import ROOT, Command, blocks, commands, of_kind, spans, texts

sys.path.insert(0, str(ROOT))
from tests import run

ANSIBLE = {"ansible", "ansible-doc", "ansible-galaxy", "ansible-inventory", "ansible-playbook", "ansible-vault"}
# What cannot be run or looked up here: why, and the file that runs it, with the words it does so by.
ELSEWHERE = {
    "/opt/lightbox/trainer/current/bin/python": (
        "is on a training host", "molecule/jupyter/tests/test_jupyter.py", "-m jupyter nbconvert"
    ),
    "amtool": ("is on the monitor", "molecule/alertmanager/tests/test_alertmanager.py", "silence add"),
    "aws": ("asks an account, of which there is none", "", ""),
    "certbot": ("asks a public authority", "", ""),
    "promtool": ("asks Prometheus on the monitor", "molecule/prometheus/tests/test_prometheus.py", "promtool"),
    "redis-cli": ("asks a person for a password", "molecule/redis/tests/test_redis.py", "redis-cli --no-auth"),
}  # fmt: skip
# What every host has. The scripts around them are parsed, and the units and files that they name are looked for.
DEBIAN = {
    ".", "base64", "cat", "cp", "df", "du", "export", "free", "grep", "head", "journalctl", "ln", "mkdir", "nvidia-smi",
    "openssl", "printf", "ps", "python3", "sort", "systemctl", "tail", "timedatectl", "true", "uname", "uptime",
}  # fmt: skip
# What fetches and installs, or takes the collection as a whole: too much for a test of words.
TOOLS = {"ansible-builder", "ansible-test", "pip"}
FOREIGN_PORTS = {9090: "Prometheus", 9093: "Alertmanager"}
API_PORT = 5000
# Of a make that runs these tests nothing is handed on.
CLEAN = {key: os.environ[key] for key in ("HOME", "LANG", "PATH") if key in os.environ}
TYPED = re.compile(r"(make|ansible|ansible-[a-z]+|curl|systemctl|python -m|python [\w/]+\.py) ")


def typed() -> list[Command]:
    """Return every command of the documents: in blocks, between backticks, and those inside other commands."""
    found = []
    for block in blocks():
        lines = [line for line in block.text.splitlines() if TYPED.match(line)]
        found += commands(block.where, {"shell": block.text, "text": "\n".join(lines)}.get(block.kind, ""))
    for span in spans():
        text = span.text
        if playbook := re.match(r"(?:playbooks/)?(\w+\.yml)( -.*|$)", text):
            path = f"playbooks/{playbook[1]}"
            text = f"ansible-playbook {path}{playbook[2]}" if (ROOT / path).exists() else text
        if TYPED.match(text):
            found += commands(span.where, text)
    # The collection's playbooks are those of the checkout.
    found = [replace(one, words=tuple(checkout(word) for word in one.words)) for one in found]
    # What hosts are told to do, and what make does.
    for command in list(found):
        if command.program == "ansible" and "-a" in command.words:
            found += commands(command.where, command.words[command.words.index("-a") + 1])
        elif command.program == "make":
            found += made(command)
    return found


def checkout(word: str) -> str:
    """Return where a playbook that is named as the collection's is in the checkout; any other word as it is."""
    return re.sub(r"^lightbox\.mlops\.(\w+)$", r"playbooks/\1.yml", word)


DRY: dict[tuple[str, ...], subprocess.CompletedProcess[str]] = {}


def dry(words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Return what make would do."""
    if words not in DRY:
        DRY[words] = subprocess.run(
            ["make", "--dry-run", "--no-print-directory", *words],
            cwd=ROOT, env=CLEAN, text=True, check=False, capture_output=True,
        )  # fmt: skip
    return DRY[words]


def made(command: Command) -> list[Command]:
    """Return what a make command runs of ours."""
    found = []
    for line in dry(command.words[1:]).stdout.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word != "sudo"]
        program = Path(words[0]).name if words else ""
        if program in ANSIBLE or (program == "python" and "pip" not in words):
            found.append(Command(command.where, (program, *words[1:])))
    return found


@pytest.fixture(scope="module")
def every_command() -> list[Command]:
    return typed()


def test_every_script_can_be_parsed() -> None:
    for block in of_kind("shell"):
        parsed = subprocess.run(["bash", "-n"], input=block.text, text=True, check=False, capture_output=True)
        assert parsed.returncode == 0, f"{block.where}: {parsed.stderr}"


def test_every_program_has_a_rule(every_command: list[Command]) -> None:
    ruled = ANSIBLE | DEBIAN | TOOLS | set(ELSEWHERE) | {"curl", "make", "python"}
    assert [str(command) for command in every_command if command.program not in ruled] == []
    programs = {command.program for command in every_command}
    assert {"ansible", "ansible-playbook", "curl", "make", "python"} <= programs
    assert set(ELSEWHERE) - programs == set(), "no document has these any more"
    for program, (_, path, words) in ELSEWHERE.items():
        assert not path or words in (ROOT / path).read_text(), f"{program} is not run in {path}"


def test_commands_inside_others_are_found() -> None:
    script = "A=b C=d \\\n  one -x 'two | three' 2>/dev/null | four > file # five\nid=$(six \"$(seven)\")"
    found = commands("here", script)
    assert [command.words for command in found] == [("one", "-x", "two | three"), ("four",), ("six", "$(seven)")]
    assert found[0].environment == ("A=b", "C=d")


# --- make and Ansible -------------------------------------------------------------------------------------------------


def test_make_does_what_is_asked_of_it(every_command: list[Command]) -> None:
    wrong = []
    for words in sorted({command.words[1:] for command in every_command if command.program == "make"}):
        done = dry(words)
        if done.returncode != 0:
            wrong.append(f"make {' '.join(words)}: {done.stderr}")
        for word in words:
            # A variable that changes nothing is none.
            if "=" in word and dry(tuple(other for other in words if other != word)).stdout == done.stdout:
                wrong.append(f"make {' '.join(words)}: {word} changes nothing")
    assert wrong == []


def test_a_target_or_variable_that_make_does_not_know_is_found() -> None:
    assert dry(("no-such-target",)).returncode != 0
    assert dry(("up", "SYSTM=mnist")).stdout == dry(("up",)).stdout != dry(("up", "SYSTEM=mnist")).stdout


def ask(program: str, words: list[tuple[str, ...]], python: Path = Path(sys.executable)) -> list[str]:
    """Return what is wrong with each command line, by a program beside this file."""
    done = subprocess.run(
        [python, Path(__file__).parent / program], input=json.dumps(words),
        cwd=ROOT, env=CLEAN, text=True, check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def values(command: Command, *names: str) -> list[str]:
    """Return the values that an option has in a command."""
    pairs = zip(command.words, command.words[1:], strict=False)
    return [value for name, value in pairs if name in names]


def extra_variables(command: Command) -> set[str]:
    """Return the names of the extra variables of a command."""
    found: set[str] = set()
    for value in values(command, "-e", "--extra-vars"):
        found |= set(json.loads(value) if value.startswith("{") else {value.partition("=")[0]})
    return found


def test_ansible_understands_its_commands(every_command: list[Command]) -> None:
    given = [command for command in every_command if command.program in ANSIBLE]
    words = sorted({command.words for command in given})
    said = dict(zip(words, ask("ansible_words.py", words), strict=True))
    assert [f"{command}: {said[command.words]}" for command in given if said[command.words]] == []
    groups = set(yaml.safe_load((ROOT / "inventories/pneumonia/groups.yml").read_text())["all"]["children"])
    assert {command.words[1] for command in given if command.program == "ansible"} <= groups | {"pneumonia-api"}


def test_what_ansible_does_not_understand_is_found() -> None:
    option, module = ask(
        "ansible_words.py", [("ansible-playbook", "site.yml", "--chek"), ("ansible", "api", "-m", "no_such_module")]
    )
    assert "unrecognized arguments" in option
    assert module == "there is no module no_such_module"


def test_playbooks_pass_the_syntax_check_as_they_are_given(every_command: list[Command]) -> None:
    playbooks: dict[tuple[str, ...], set[str]] = {}
    arguments: dict[tuple[str, ...], dict[str, None]] = {}
    for command in every_command:
        if command.program == "ansible-playbook":
            inventories = tuple(values(command, "-i", "--inventory"))
            assert [path for path in inventories if not (ROOT / path).is_dir()] == [], command
            named = {word for word in command.words[1:] if word.endswith(".yml")}
            assert named or "--version" in command.words, command
            playbooks.setdefault(inventories, set()).update(named)
            arguments.setdefault(inventories, {}).update(dict.fromkeys(values(command, "-e", "--extra-vars")))
    assert {"site.yml", "playbooks/verify.yml"} <= playbooks[()]
    for inventories, named in playbooks.items():
        extra = [part for value in arguments[inventories] for part in ("-e", value)]
        where = [part for path in inventories for part in ("-i", path)]
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "--syntax-check", *where, *extra, *sorted(named)],
            cwd=ROOT, env=CLEAN, text=True, check=False, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(map(str, done.args))}\n{done.stdout}{done.stderr}"


def tags_of(data: Any) -> set[str]:
    """Return every tag in a playbook or a list of tasks."""
    if isinstance(data, list):
        return {tag for item in data for tag in tags_of(item)}
    if not isinstance(data, dict):
        return set()
    own = data.get("tags", [])
    return {*([own] if isinstance(own, str) else own), *(tag for value in data.values() for tag in tags_of(value))}


def test_extra_variables_and_tags_are_some_that_something_asks_for(every_command: list[Command]) -> None:
    asked = texts("playbooks", "roles", "inventories")
    tags = {tag for path in (ROOT / "playbooks").rglob("*.yml") for tag in tags_of(yaml.safe_load(path.read_text()))}
    wrong = []
    for command in [one for one in every_command if one.program == "ansible-playbook"]:
        wrong += [f"{command}: {name}" for name in extra_variables(command) if not re.search(rf"\b{name}\b", asked)]
        given = {tag for value in values(command, "-t", "--tags") for tag in value.split(",")}
        wrong += [f"{command}: {tag}" for tag in given - tags]
    assert wrong == []


# --- programs in Python -----------------------------------------------------------------------------------------------


def test_python_programs_understand_their_arguments(every_command: list[Command]) -> None:
    apart: dict[Path, list[tuple[str, ...]]] = {}
    wrong = []
    for words in sorted({command.words[1:] for command in every_command if command.program == "python"}):
        if words[:2] == ("-m", "pytest") or words[0].startswith("docs/"):
            wrong += [word for word in words if "/" in word and not (ROOT / word).exists()]
        elif words[0] == "tests/run.py":
            assert run.selected(words[1] if len(words) > 1 else "")
        else:
            source = words[1] if words[0] == "-m" else (ROOT / words[0]).read_text()
            python = ROOT / (".venv-app" if "lightbox." in source else ".venv") / "bin/python"
            apart.setdefault(python, []).append(words)
    for python, lines in apart.items():
        said = ask("python_words.py", lines, python)
        wrong += [f"python {shlex.join(line)}: {answer}" for line, answer in zip(lines, said, strict=True) if answer]
    assert wrong == []
    assert len(apart) == 2


def test_an_argument_that_a_program_does_not_know_is_found() -> None:
    (said,) = ask("python_words.py", [("-m", "lab", "ssh", "--kye", "x")])
    assert "usage: lab" in said
    wrong: list[tuple[str, ...]] = [("--architecture", "compcat"), ("--dta", "x"), ("--recalibrate", "0.95")]
    assert all(
        ask("python_words.py", [("-m", "lightbox.cnn", *words) for words in wrong], ROOT / ".venv-app/bin/python")
    )


def test_variables_of_the_environment_are_some_that_programs_read(every_command: list[Command]) -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "app/src").rglob("*.py"))
    names = {pair.partition("=")[0] for command in every_command for pair in command.environment}
    assert names and {name for name in names if name not in sources} == set()


# --- units and files --------------------------------------------------------------------------------------------------


def test_units_that_are_looked_at_are_there(every_command: list[Command]) -> None:
    # The distribution's own, which nothing here touches.
    known = texts("playbooks", "roles", "inventories") + "apt-daily-upgrade"
    wrong = []
    for command in every_command:
        named = values(command, "-u", "--unit") if command.program == "journalctl" else []
        if command.program == "systemctl":
            named = [word for word in command.words[2:] if not word.startswith("-")]
        wrong += [f"{command}: {unit}" for unit in named if unit not in known]
    assert wrong == []


def test_secrets_are_where_the_documents_say(every_command: list[Command]) -> None:
    read = {word for command in every_command if command.program == "cat" for word in command.words[1:]}
    shown = {word for word in read if "secrets" in word}
    made_once = (ROOT / "inventories/common/secrets.yml").read_text()
    assert shown and {path for path in shown if f"secrets_dir ~ '/{Path(path).name}'" not in made_once} == set()
    assert {path for path in shown if not re.fullmatch(r"\.(lab/)?secrets/(pneumonia|mnist)/\w+", path)} == set()


# --- requests ---------------------------------------------------------------------------------------------------------

ROUTES = """
import json, sys
from starlette.routing import Match
from lightbox.api.app import app as api
from lightbox.ui.app import app as ui

def answered(path):
    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": [], "query_string": b""}
    return any(route.matches(scope)[0] is Match.FULL for route in ui.routes)

print(json.dumps({"api": api.openapi(), "ui": [path for path in json.load(sys.stdin) if answered(path)]}))
"""


def address_of(command: Command) -> urllib.parse.SplitResult:
    """Return the address that a curl command asks."""
    (address,) = [word for word in command.words if re.match("https?://", word)]
    return urllib.parse.urlsplit(address)


@pytest.fixture(scope="module")
def served(every_command: list[Command]) -> dict[str, Any]:
    """What the API says of itself, and those paths of the documents that the pages answer."""
    paths = [address_of(command).path for command in every_command if command.program == "curl"]
    done = subprocess.run(
        [ROOT / ".venv-app/bin/python", "-c", ROUTES], input=json.dumps([*paths, "/pages"]),
        cwd=ROOT, env=CLEAN, text=True, check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def operation(document: dict[str, Any], path: str, method: str) -> dict[str, Any] | None:
    """Return what OpenAPI says of a request; the most exact path comes first."""
    for template in sorted(document["paths"], key=lambda one: one.count("{")):
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            found: dict[str, Any] | None = document["paths"][template].get(method)
            return found
    return None


def refusal(served: dict[str, Any], command: Command) -> str:
    """Return why a request of the documents is none that is answered, or nothing."""
    url = address_of(command)
    if url.port in FOREIGN_PORTS:
        ours = re.search(rf"{url.path}(?![\w/])", texts("playbooks", "roles"))
        return "" if ours else f"nothing of ours asks {FOREIGN_PORTS[url.port]} for {url.path}"
    if url.port != API_PORT:
        return "" if url.path in served["ui"] else f"no page has the path {url.path}"
    # For Prometheus, and no part of the description.
    if url.path == "/metrics":
        return ""
    sends = [value for name in ("-F", "-d", "--data-binary") for value in values(command, name)]
    method = (values(command, "-X") or ["POST" if sends else "GET"])[0].lower()
    found = operation(served["api"], url.path, method)
    if found is None:
        return f"the API has no {method} {url.path}"
    parameters = {parameter["name"] for parameter in found.get("parameters", [])}
    asked = {name for name, _ in urllib.parse.parse_qsl(url.query)}
    body = json.dumps(found.get("requestBody", {}))
    schemas = served["api"]["components"]["schemas"]
    body += json.dumps([schemas[name] for name in re.findall(r"#/components/schemas/(\w+)", body)])
    fields = {value.partition("=")[0] for value in values(command, "-F")}
    fields |= {name for value in values(command, "-d") for name in json.loads(value)}
    strange = sorted(asked - parameters) + sorted(field for field in fields if f'"{field}"' not in body)
    return f"the API does not know {', '.join(strange)} there" if strange else ""


def test_requests_are_answered(every_command: list[Command], served: dict[str, Any]) -> None:
    requests = [command for command in every_command if command.program == "curl"]
    assert len(requests) > 10
    assert [f"{command}: {why}" for command in requests if (why := refusal(served, command))] == []


@pytest.mark.parametrize(
    "line",
    [
        "curl http://127.0.0.1:5000/v1/prediction",
        "curl -X PUT http://127.0.0.1:5000/v1/cases",
        "curl 'http://127.0.0.1:5000/v1/cases?seize=1'",
        "curl -F fiel=@a.png http://127.0.0.1:5000/v1/predictions",
        "curl http://127.0.0.1:9090/api/v1/rule",
        "curl https://198.51.100.7/pages",
    ],
)
def test_requests_that_are_not_answered_are_found(served: dict[str, Any], line: str) -> None:
    (command,) = commands("here", line)
    assert refusal(served, command)


def test_answers_in_the_documents_have_the_fields_of_the_api(served: dict[str, Any]) -> None:
    schemas = served["api"]["components"]["schemas"]
    known = {name for schema in schemas.values() for name in schema.get("properties", {})}
    for block in of_kind("json"):
        if block.where.startswith("docs/api.md"):
            assert set(json.loads(block.text)) - {"…"} <= known, block.where
