"""Action plugin: show what the hosts' journals say, collected on one host, line by line in the order of time."""

from __future__ import annotations

import base64
import json
import re
import shlex
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Any, NoReturn

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

FIELDS = (
    "_HOSTNAME",
    "_SYSTEMD_UNIT",
    "UNIT",
    "SYSLOG_IDENTIFIER",
    "MESSAGE",
    "_BOOT_ID",
    "_SOURCE_REALTIME_TIMESTAMP",
)
ID = re.compile(r"[A-Za-z0-9._:-]{8,128}")
# What the columns show already, and what every line has.
SHOWN = frozenset({"time", "level", "message", "method", "path", "status"})
# Seconds between two looks while following.
PAUSE = 2.0
# Seconds by which a busy host's journal may be late.
LATE = 60.0

display = Display()


def query(directory: str, args: dict[str, str], hostname: str) -> list[str]:
    """Return journalctl's arguments for what is asked for.

    Args:
        directory: where the receiver collects.
        args: `service`, `id`, `since`.
        hostname: the name the wanted host calls itself; empty for every host.
    """
    command = ["journalctl", f"--directory={directory}", "--output=json", "--quiet", "--no-pager"]
    command.append(f"--output-fields={','.join(FIELDS)}")
    if args["since"]:
        command.append(f"--since={args['since']}")
    if args["id"]:
        command += [f"--grep={re.escape(args['id'])}", "--case-sensitive=true"]
    of_host = [f"_HOSTNAME={hostname}"] if hostname else []
    if not args["service"]:
        return command + of_host
    # What systemd says of a unit is its line too. Some come from no unit of their own: those of sudo, of the kernel.
    unit = args["service"] if "." in args["service"] else f"{args['service']}.service"
    for match in (f"_SYSTEMD_UNIT={unit}", f"UNIT={unit}", f"SYSLOG_IDENTIFIER={args['service']}"):
        command += [*of_host, match, "+"]
    return command[:-1]


def text_of(value: Any) -> str:
    """Return a field's text: journalctl gives bytes that are no text as a list of numbers."""
    if isinstance(value, list):
        return bytes(number for number in value if isinstance(number, int)).decode("utf-8", "replace")
    return "" if value is None else str(value)


def written(fields: dict[str, Any], arrived: float) -> float:
    """Return when a line was written, as it says itself, in seconds since 1970: the journal may hear of it late.

    A line was written when it arrived if it tells no time, one that cannot be, or whole seconds alone, as Nginx does.
    """
    text = str(fields.get("time", ""))
    try:
        told = datetime.fromisoformat(text).timestamp()
    except ValueError:
        return arrived
    return told if "." in text and 0 <= arrived - told <= LATE else arrived


def entry_of(raw: dict[str, Any], hosts: dict[str, str]) -> dict[str, Any]:
    """Return a journal entry as it is shown: `moment` and `begun` (seconds), `host`, `service`, `message`, `key`."""
    said = text_of(raw.get("MESSAGE"))
    moment = int(raw.get("_SOURCE_REALTIME_TIMESTAMP") or raw["__REALTIME_TIMESTAMP"]) / 1e6
    begun, message = moment, said
    try:
        fields = json.loads(said) if said.startswith("{") else None
    except ValueError:
        fields = None
    if isinstance(fields, dict):
        asked = [str(fields[name]) for name in ("method", "path", "status") if name in fields]
        words = " ".join(asked) if len(asked) == 3 else str(fields.get("message", ""))
        rest = [
            f"{name}={value}" for name, value in fields.items() if name not in SHOWN and value not in (None, "", "-")
        ]
        message = " ".join([words, *rest]).strip()
        moment = written(fields, moment)
        if isinstance(fields.get("seconds"), int | float):
            begun = moment - fields["seconds"]
            # Nginx's clock goes in steps of a millisecond, at both ends of what it measures.
            begun -= 0.002 if "upstream" in fields else 0
    hostname = text_of(raw.get("_HOSTNAME"))
    unit = text_of(raw.get("UNIT")) or text_of(raw.get("_SYSTEMD_UNIT"))
    if not unit or unit.endswith(".scope"):  # of somebody's session, or systemd itself
        unit = text_of(raw.get("SYSLOG_IDENTIFIER")) or "kernel"
    return {
        "moment": moment,
        "begun": begun,
        "host": hosts.get(hostname, hostname),
        "service": unit.removesuffix(".service"),
        "message": " ".join(message.split()),
        # A line that was under way when the receiver went away comes a second time.
        "key": (text_of(raw.get("_BOOT_ID")), raw.get("__MONOTONIC_TIMESTAMP"), hostname, said),
    }


def entries(output: str, hosts: dict[str, str]) -> list[dict[str, Any]]:
    """Return the entries in journalctl's output, each once."""
    found: dict[Any, dict[str, Any]] = {}
    for line in output.splitlines():
        try:
            raw = json.loads(line)
        except ValueError:
            continue
        if isinstance(raw, dict) and "__REALTIME_TIMESTAMP" in raw:
            one = entry_of(raw, hosts)
            found.setdefault(one["key"], one)
    return list(found.values())


def table(found: Iterable[dict[str, Any]], by: str = "moment") -> Iterator[str]:
    """Return the lines for people, in order of `moment` or `begun`, which is also the time shown."""
    rows = sorted(found, key=lambda one: one[by])
    hosts = max((len(one["host"]) for one in rows), default=0)
    services = min(max((len(one["service"]) for one in rows), default=0), 32)
    for one in rows:
        moment = datetime.fromtimestamp(one[by], timezone.utc)
        stamp = moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
        yield f"{stamp}  {one['host']:<{hosts}}  {one['service']:<{services}}  {one['message']}"


def nothing(args: dict[str, str]) -> str:
    """Return the sentence for a search that found nothing."""
    what = f"No line with the id {args['id']}" if args["id"] else "No line"
    where = (f" of {args['host']}" if args["host"] else "") + (f" of {args['service']}" if args["service"] else "")
    when = f" since {args['since']}" if args["since"] else ""
    return f"{what}{where}{when} was collected."


def complaints(output: str) -> str:
    """Return what is no entry in the output of journalctl, where a terminal has made one of its two outputs, and no
    farewell of ssh.
    """
    lines = (line.strip() for line in output.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("{", "Shared connection to ")))


class ActionModule(ActionBase):
    """See the module of this name."""

    _VALID_ARGS = frozenset(("directory", "hosts", "host", "service", "id", "since", "lines", "follow"))
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Print the lines; return their number as `count`."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        given = self._task.args
        args = {name: str(given.get(name) or "").strip() for name in ("host", "service", "id", "since")}
        hosts = {str(hostname): str(name) for hostname, name in dict(given.get("hosts") or {}).items()}
        names = {name: hostname for hostname, name in hosts.items()}
        if args["host"] and args["host"] not in names:
            return {
                **result,
                "failed": True,
                "msg": f"There is no host {args['host']}; there are {', '.join(sorted(names))}.",
            }
        if args["id"] and not ID.fullmatch(args["id"]):
            return {
                **result,
                "failed": True,
                "msg": f"{args['id']} is no request id: it has 8 to 128 letters, digits, and . _ : -",
            }
        if not args["since"] and not args["id"]:
            args["since"] = "-1h"
        command = query(str(given["directory"]), args, names.get(args["host"], ""))
        by = "begun" if args["id"] else "moment"

        newest = ["--reverse", f"--lines={int(given.get('lines') or 1000)}"]
        output = self._journal([*command, *newest])
        found = entries("\n".join(reversed(output.splitlines())), hosts)
        for line in table(found, by):
            display.display(line)
        if str(given.get("follow") or "").lower() not in ("1", "true", "yes"):
            if not found:
                return {**result, "failed": True, "msg": nothing(args)}
            return {**result, "changed": False, "count": len(found)}
        reader = str((task_vars or {}).get("inventory_hostname", ""))
        return self._follow(command, hosts, reader, {one["key"] for one in found})

    def _follow(self, command: list[str], hosts: dict[str, str], reader: str, known: set[Any]) -> NoReturn:
        """Show what comes until somebody interrupts. Some lines come late: a little is read again."""
        command = [word for word in command if not word.startswith("--since=")]
        while True:
            time.sleep(PAUSE)
            fresh = entries(self._journal([*command, "--since=-2min"]), hosts)
            # Every look is itself a line of sudo on the host that is read.
            own = (reader, "sudo")
            new = [one for one in fresh if one["key"] not in known and (one["host"], one["service"]) != own]
            for line in table(new):
                display.display(line)
            known = {one["key"] for one in fresh}

    def _journal(self, command: list[str]) -> str:
        """Run journalctl on the host.

        Raises:
            AnsibleActionFail: it failed; the text is journalctl's own.
        """
        # Not in plain words: sudo logs them, and the next search would find this one.
        question = base64.b64encode(shlex.join(command).encode()).decode()
        # ssh gives it a terminal, where journalctl would colour even JSON.
        script = f"echo {question} | base64 -d | SYSTEMD_COLORS=0 /bin/sh"
        done = self._low_level_execute_command(script, executable="/bin/sh")
        # 1 without a word: nothing was found.
        said = complaints(f"{done.get('stderr', '')}\n{done.get('stdout', '')}")
        if done.get("rc") and said:
            raise AnsibleActionFail(f"The collected journal cannot be read: {said[-500:]}")
        return str(done.get("stdout", ""))
