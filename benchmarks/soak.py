"""Load a running system while its workers are killed: ``make bench-soak``, or ``python benchmarks/soak.py --help``.

Finds the system in the lab, measures briefly how many requests a second it takes, then sends 80 % of that through
Nginx over TLS (nine uploads for one look at the results), kills a random gunicorn worker of the pages or of the API
every few seconds, releases a copy of the live model in the middle, and samples the memory of the services. A failed
request that was under way at the moment of a kill is told apart from any other; only others fail the run. The proxy's
limit per client is lifted for this machine meanwhile; it, the model and the cases are put back at the end.

Traffic goes to addresses of the lab on this machine and nowhere else, and ends by itself.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import itertools
import json
import os
import random
import re
import shlex
import ssl
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import yaml
from running import INVENTORY, ROOT, BenchmarkError, lab_keys, report

# Clients at once. Two API workers let 16 requests wait each before they refuse any, so these are never refused.
CLIENTS = 16
SHARE = 0.8
WARM_SECONDS = 5.0
CAPACITY_SECONDS = 15.0
SAMPLE_SECONDS = 10.0
TIMEOUT_SECONDS = 30.0
# What counts as flat: the last quarter at most this much above the second, which has seen every code path.
FLAT_SHARE, FLAT_MB = 0.10, 10.0
# Fewer samples tell nothing: each may be of the moment after a kill or of a release.
FLAT_SAMPLES = 24
SERVICES = {"proxy": ["nginx"], "ui": ["lightbox-ui"], "api": ["lightbox-api", "redis-server"]}

MEMORY = r"""
for unit in %s; do
  main=$(systemctl show -P MainPID $unit); [ "${main:-0}" -gt 0 ] || continue
  sum=0
  for pid in $main $(pgrep -P $main); do
    pss=$(awk '/^Pss:/ {print $2}' /proc/$pid/smaps_rollup 2>/dev/null); sum=$((sum + ${pss:-0}))
  done
  echo $unit $sum
done
"""
KILL = r"""
main=$(systemctl show -P MainPID %s); victim=$(pgrep -P $main | shuf -n 1)
[ -n "$victim" ] && kill -KILL $victim && date +%%s.%%N
"""
# Cases of the run, counted and removed through the API on its own host.
TIDY = r"""
import csv, http.client, io, json, sys
api = http.client.HTTPConnection("127.0.0.1", 5000, timeout=60)
def ask(method, path):
    api.request(method, path); answer = api.getresponse(); body = answer.read()
    return json.loads(body) if body else {}
api.request("GET", "/v1/cases.csv?search=" + sys.argv[1])
# The list is read once: any list that is filtered looks through all cases.
ids = [row["id"] for row in csv.DictReader(io.StringIO(api.getresponse().read().decode()))]
print(len(ids))
if sys.argv[2] == "remove":
    for one in ids:
        ask("DELETE", "/v1/cases/" + one)
"""

# The model that a verdict on the pages is by.
MODEL = re.compile(rb"<dt>Model</dt><dd><code>(.*?)</code>")


def run(command: Sequence[str], check: bool = True) -> str:
    """Run a command in the repository; return what it printed.

    Raises:
        BenchmarkError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment["ANSIBLE_FORCE_COLOR"] = "0"
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, check=False, capture_output=True, stdin=subprocess.DEVNULL
    )
    if check and done.returncode:
        raise BenchmarkError(f"{' '.join(command[:4])} … failed:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    return done.stdout.strip()


class System:
    """The system in the lab: its hosts, its address, and the way to put things on and off."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self._aws = name, lab_keys()
        self.hosts = self._hosts()
        if not all(self.having(role) for role in SERVICES):
            raise BenchmarkError(f"no system '{name}' with proxy, ui and api runs in the lab: `make up` brings it up")
        proxy = next(host for host in self.hosts.values() if host["role"] == "proxy")
        self.url = url or f"https://{proxy['public']}"
        if urlsplit(self.url).hostname != proxy["public"]:
            raise BenchmarkError(f"{self.url} is not the lab's own address https://{proxy['public']}")
        # The certificate is the proxy's own; it is fetched from the proxy itself, not from whoever answers.
        certificate = self.on(self.having("proxy")[0], "cat /etc/nginx/tls/self_signed-*.crt")
        self.context = ssl.create_default_context(cadata=certificate)

    def client(self, service: str) -> Any:
        """Return a boto3 client of the lab's API."""
        return boto3.client(service, **self._aws)

    def _hosts(self) -> dict[str, dict[str, str]]:
        try:
            found = self.client("ec2").describe_instances(
                Filters=[{"Name": "instance-state-name", "Values": ["running"]},
                         {"Name": "tag:System", "Values": [self.name]}]
            )  # fmt: skip
        except Exception as error:
            raise BenchmarkError(f"the lab does not answer ({error}): `make up` starts it") from None
        hosts = {}
        for instance in (one for reservation in found["Reservations"] for one in reservation["Instances"]):
            tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
            hosts[tags["Name"]] = {"role": tags["Role"], "public": instance.get("PublicIpAddress", "")}
        return hosts

    def having(self, role: str) -> list[str]:
        """Return the names of the hosts of a role."""
        return sorted(name for name, host in self.hosts.items() if host["role"] == role)

    def on(self, host: str, command: str, check: bool = True) -> str:
        """Run a shell command as root on a host; return what it printed."""
        ssh = [sys.executable, "-m", "lab", "ssh", host, f"sudo sh -c {shlex.quote(command)}"]
        return run(ssh, check)

    def play(self, playbook: str, *arguments: str) -> str:
        """Run a playbook."""
        ansible = str(Path(sys.executable).parent / "ansible-playbook")
        return run([ansible, "-i", str(INVENTORY), "-i", f"inventories/{self.name}", playbook, *arguments])

    def limit(self, lifted: bool) -> None:
        """Lift the proxy's limit on uploads for this machine, or put it back."""
        here = yaml.safe_load((INVENTORY / "group_vars/all/main.yml").read_text())["admin_cidrs"]
        extra = ["-e", json.dumps({"nginx_upload_unlimited": here})] if lifted else []
        self.play("playbooks/configure.yml", "--tags", "proxy", *extra)

    def smoke(self) -> bytes:
        """Return the smoke image of the live model."""
        text = self.on(self.having("api")[0], "base64 /var/lib/lightbox/model/current/smoke.png")
        return base64.b64decode(text)

    def version(self) -> str:
        """Return the version of the live model."""
        text = self.on(self.having("api")[0], "curl -sS http://127.0.0.1:5000/v1/model")
        return str(json.loads(text)["version"])

    def cases(self, search: str, remove: bool = False) -> int:
        """Return how many cases have a text in their file name; remove them if told to."""
        words = " ".join(["/opt/lightbox/api/current/bin/python", "-c", shlex.quote(TIDY), search,
                          "remove" if remove else "count"])  # fmt: skip
        return int(self.on(self.having("api")[0], words).splitlines()[-1])


@dataclass
class Answer:
    """One request: when it began and ended (s since the epoch), s late it began, what came of it, by which model."""

    begun: float
    ended: float
    late: float
    kind: str
    upload: bool
    version: str = ""


@dataclass
class Record:
    """What happened."""

    answers: list[Answer] = field(default_factory=list)
    kills: list[tuple[float, str]] = field(default_factory=list)
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Visitor:
    """One client on one connection, which it opens anew when it breaks."""

    def __init__(self, system: System, image: bytes, mark: str) -> None:
        self.address = urlsplit(system.url)
        self.context, self.image, self.mark = system.context, image, mark
        self.connection: http.client.HTTPSConnection | None = None
        # Of the model that gave the last verdict.
        self.version = ""

    def ask(self, upload: bool) -> str:
        """Send one request; return ``ok`` or the kind of failure."""
        self.version = ""
        if self.connection is None:
            self.connection = http.client.HTTPSConnection(
                self.address.hostname or "", self.address.port, timeout=TIMEOUT_SECONDS, context=self.context
            )
        try:
            if upload:
                boundary = uuid.uuid4().hex
                head = f'Content-Disposition: form-data; name="file"; filename="{self.mark}-{boundary[:8]}.png"'
                body = (f"--{boundary}\r\n{head}\r\nContent-Type: image/png\r\n\r\n").encode()
                body += self.image + f"\r\n--{boundary}--\r\n".encode()
                kind = {"Content-Type": f"multipart/form-data; boundary={boundary}", "X-Partial": "1"}
                self.connection.request("POST", "/upload_predict", body, kind)
            else:
                self.connection.request("GET", "/table", headers={"X-Partial": "1"})
            answer = self.connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            self.connection = None
            return f"no answer ({type(error).__name__})"
        if answer.status != 200:
            return f"status {answer.status}"
        if upload and b"data-verdict=" not in text:
            return "no verdict"
        if found := MODEL.search(text):
            self.version = found[1].decode()
        return "ok, not stored" if upload and b"data-notice" in text else "ok"


def load(
    system: System,
    image: bytes,
    mark: str,
    seconds: float,
    rate: float | None,
    record: Record | None = None,
    over: threading.Event | None = None,
) -> list[Answer]:
    """Send requests for so many seconds, or until it is over, ``rate`` of them a second (None: as fast as they are
    answered).
    """
    record = record or Record()
    begin = time.time()
    turns = itertools.count()
    lock = threading.Lock()

    def visit() -> None:
        visitor = Visitor(system, image, mark)
        while True:
            with lock:
                turn = next(turns)
            due = begin + turn / rate if rate else time.time()
            if due >= begin + seconds or (over and over.is_set()):
                return
            time.sleep(max(0.0, due - time.time()))
            begun = time.time()
            upload = turn % 10 != 0
            kind = visitor.ask(upload)
            record.answers.append(Answer(begun, time.time(), begun - due, kind, upload, visitor.version))

    threads = [threading.Thread(target=visit, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 2 * TIMEOUT_SECONDS)
    return record.answers


def capacity(system: System, image: bytes, mark: str) -> float:
    """Return the requests a second that the system answers when it has all it can do."""
    load(system, image, mark, WARM_SECONDS, None)
    begun = time.time()
    answers = load(system, image, mark, CAPACITY_SECONDS, None)
    good = [answer for answer in answers if answer.kind.startswith("ok")]
    if len(good) < len(answers) or not good:
        raise BenchmarkError(f"requests fail without any disturbance: {Counter(answer.kind for answer in answers)}")
    return len(good) / (max(answer.ended for answer in answers) - begun)


def every(seconds: Callable[[], float], stop: threading.Event, act: Callable[[], None]) -> threading.Thread:
    """Do something again and again in a thread of its own, until told to stop."""

    def repeat() -> None:
        while not stop.wait(seconds()):
            act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    return thread


def kill_a_worker(system: System, record: Record, chance: random.Random) -> None:
    """Kill a random gunicorn worker of a random host of the pages or the API, and write down when."""
    host = chance.choice(system.having("ui") + system.having("api"))
    unit = f"lightbox-{system.hosts[host]['role']}"
    moment = system.on(host, KILL % unit, check=False)
    if re.fullmatch(r"\d+\.\d+", moment):
        record.kills.append((float(moment), host))


def sample_memory(system: System, record: Record) -> None:
    """Note what memory the services take, in MB; pages that several processes share count once."""
    for host, about in system.hosts.items():
        if units := SERVICES.get(about["role"]):
            for line in system.on(host, MEMORY % " ".join(units), check=False).splitlines():
                unit, kilobytes = line.split()
                record.memory.setdefault(f"{unit} on {host}", []).append((time.time(), int(kilobytes) / 1000))


def release_a_copy(system: System, record: Record) -> str:
    """Release a copy of the live model under a version of its own; return that version."""
    live = system.version()
    copy = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-50a4{uuid.uuid4().hex[:4]}"
    s3 = system.client("s3")
    bucket = next(item["Name"] for item in s3.list_buckets()["Buckets"] if f"-{system.name}-" in item["Name"])
    prefix = f"models/{system.name}/"
    for item in s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}{live}/")["Contents"]:
        found = s3.get_object(Bucket=bucket, Key=item["Key"])
        body = found["Body"].read()
        if item["Key"].endswith("/model.json"):
            body = body.replace(live.encode(), copy.encode())
        key = item["Key"].replace(f"{prefix}{live}/", f"{prefix}{copy}/")
        s3.put_object(Bucket=bucket, Key=key, Body=body, Metadata=found["Metadata"])
    begun = time.time()
    system.play("playbooks/release.yml", "-e", f"version={copy}")
    record.notes.append(f"release of {copy} took {time.time() - begun:.0f} s")
    return copy


def take_back(system: System, copy: str, before: str) -> None:
    """Make the model before the copy live again and remove the copy from the artefact store.

    Raises:
        BenchmarkError: another model is live afterwards.
    """
    system.play("playbooks/rollback.yml")
    if system.version() != before:
        raise BenchmarkError(f"the rollback of {copy} led to {system.version()}, not to {before}")
    remove_copy(system, copy)


def remove_copy(system: System, copy: str) -> None:
    """Remove a copy from the artefact store."""
    s3 = system.client("s3")
    bucket = next(item["Name"] for item in s3.list_buckets()["Buckets"] if f"-{system.name}-" in item["Name"])
    for item in s3.list_objects_v2(Bucket=bucket, Prefix=f"models/{system.name}/{copy}/").get("Contents", []):
        s3.delete_object(Bucket=bucket, Key=item["Key"])


def quarter(samples: list[tuple[float, float]], number: int) -> float:
    """Return the median of one quarter of the samples, 0 to 3."""
    values = [value for _, value in samples]
    size = max(1, len(values) // 4)
    part = values[-size:] if number == 3 else values[number * size : (number + 1) * size]
    return statistics.median(part or values)


def slope(samples: list[tuple[float, float]]) -> float:
    """Return the growth in MB a minute: the straight line through all samples but the first quarter's."""
    settled = samples[len(samples) // 4 :]
    if len(settled) < 2:
        return 0.0
    line = statistics.linear_regression([moment / 60 for moment, _ in settled], [value for _, value in settled])
    return float(line.slope)


def summary(system: System, record: Record, stored: int, rates: tuple[float, float], seconds: float) -> dict[str, Any]:
    """Return the figures of a run."""
    failed = [answer for answer in record.answers if not answer.kind.startswith("ok")]
    # The hosts are containers: their clock is this machine's. A tenth of a second is for the kill itself.
    on_killed = [
        answer for answer in failed if any(answer.begun - 0.1 <= moment <= answer.ended for moment, _ in record.kills)
    ]
    others = Counter(answer.kind for answer in failed if answer not in on_killed)
    milliseconds = sorted(1000 * (answer.ended - answer.begun) for answer in record.answers)
    late = sorted(answer.late for answer in record.answers)
    good_uploads = sum(answer.upload for answer in record.answers if answer.kind == "ok")
    uploads = sum(answer.upload for answer in record.answers)
    memory = {
        service: {
            "mb": round(quarter(samples, 3), 1),
            "mb_per_minute": round(slope(samples), 2),
            # The case store grows with its cases, as it should.
            "flat": service.startswith("redis")
            or len(samples) < FLAT_SAMPLES
            or quarter(samples, 3) - quarter(samples, 1) <= FLAT_SHARE * quarter(samples, 1) + FLAT_MB,
        }
        for service, samples in sorted(record.memory.items())
    }
    once = good_uploads <= stored <= uploads
    return {
        "ok": not others and all(service["flat"] for service in memory.values()) and once,
        "url": system.url,
        "api_hosts": len(system.having("api")),
        "seconds": round(seconds),
        "capacity_rps": round(rates[0], 1),
        "rate_rps": round(rates[1], 1),
        "requests": len(record.answers),
        "p50_ms": round(milliseconds[len(milliseconds) // 2], 1),
        "p99_ms": round(milliseconds[int(len(milliseconds) * 0.99)], 1),
        "late_p99_s": round(late[int(len(late) * 0.99)], 2),
        "kills": dict(sorted(Counter(host for _, host in record.kills).items())),
        "failed_on_killed_connections": len(on_killed),
        "failed_otherwise": sum(others.values()),
        "failures_by_kind": dict(Counter(answer.kind for answer in failed)),
        "answered_without_history": sum(answer.kind == "ok, not stored" for answer in record.answers),
        "uploads": uploads,
        "cases_stored": stored,
        "every_upload_is_one_case": once,
        "memory": memory,
        "notes": record.notes,
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures as people read them."""
    kills = ", ".join(f"{count} on {host}" for host, count in found["kills"].items()) or "none"
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["failures_by_kind"].items()) or "none"
    lines = [
        ("address", f"{found['url']} ({found['api_hosts']} API host{'s' if found['api_hosts'] > 1 else ''})"),
        ("capacity", f"{found['capacity_rps']} requests/s with {CLIENTS} clients"),
        ("load", f"{found['rate_rps']} requests/s for {found['seconds']} s: {found['requests']} requests"),
        ("latency", f"p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms"
         + (f"; sent up to {found['late_p99_s']} s late: above capacity" if found["late_p99_s"] > 1 else "")),
        ("workers killed", kills),
        ("failures", kinds),
        ("  on a killed worker's connection", str(found["failed_on_killed_connections"])),
        ("  otherwise", str(found["failed_otherwise"])),
        ("answered without history", str(found["answered_without_history"])),
        ("cases", f"{found['cases_stored']} stored for {found['uploads']} uploads"),
        *((f"memory of {service}", f"{about['mb']} MB, {about['mb_per_minute']:+.2f} MB/min"
           + ("" if about["flat"] else "  NOT FLAT")) for service, about in found["memory"].items()),
        *(("note", note) for note in found["notes"]),
        ("result", "ok" if found["ok"] else "NOT OK"),
    ]  # fmt: skip
    return "\n".join(f"{name:<38}  {words}" for name, words in lines)


def say(words: str) -> None:
    """Show how far the run is."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {words}\n")


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Run it; the system is left as it was found."""
    system = System(options.system, options.url)
    image, mark = system.smoke(), f"soak-{uuid.uuid4().hex[:8]}"
    record, stop, chance = Record(), threading.Event(), random.Random(options.seed)  # noqa: S311
    copy, before = "", system.version()
    seconds = options.minutes * 60
    say(f"{system.url}: the limit on uploads is lifted for this machine")
    system.limit(lifted=True)
    try:
        measured = options.rate / SHARE if options.rate else capacity(system, image, f"{mark}-capacity")
        rate = options.rate or SHARE * measured
        say(f"{measured:.1f} requests/s at most; {rate:.1f} requests/s for {seconds:.0f} s")
        sample_memory(system, record)
        helpers = [
            every(lambda: SAMPLE_SECONDS, stop, lambda: sample_memory(system, record)),
            every(lambda: chance.uniform(0.5, 1.5) * options.kill_every, stop,
                  lambda: kill_a_worker(system, record, chance)),
            every(lambda: 30.0, stop, lambda: say(f"{len(record.answers)} requests, {len(record.kills)} kills, "
                  f"{sum(not answer.kind.startswith('ok') for answer in list(record.answers))} failed")),
        ]  # fmt: skip
        pressure = threading.Thread(target=load, args=(system, image, mark, seconds, rate, record), daemon=True)
        begun = time.time()
        pressure.start()
        if options.release:
            time.sleep(seconds / 3)
            say("a copy of the live model is released")
            copy = release_a_copy(system, record)
        pressure.join(seconds + 3 * TIMEOUT_SECONDS)
        elapsed = time.time() - begun
        stop.set()
        for helper in helpers:
            helper.join(TIMEOUT_SECONDS)
        stored = system.cases(f"{mark}-") - system.cases(f"{mark}-capacity")
        return summary(system, record, stored, (measured, rate), elapsed)
    finally:
        stop.set()
        say("model, limit and cases are put back")
        system.limit(lifted=False)
        if not options.keep_cases:
            system.cases(mark, remove=True)
        if copy:
            take_back(system, copy, before)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when nothing failed that a kill does not explain, and memory was flat (in runs of four
    minutes or more).
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="pneumonia", help="the system's name (default: pneumonia)")
    parser.add_argument("--url", default="", help="its address (default: found in the lab)")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10; at most 60)")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second (default: 80 %% of what it takes)")
    parser.add_argument("--kill-every", type=float, default=15.0, help="seconds from kill to kill, about (default: 15)")
    parser.add_argument("--no-release", dest="release", action="store_false", help="release nothing in the middle")
    parser.add_argument("--keep-cases", action="store_true", help="leave the cases of the run in the store")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of victims (default: 1)")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= 60:
        parser.error("--minutes must be above 0 and at most 60")
    return report("soak", lambda: soak(options), table, options.out)


if __name__ == "__main__":
    sys.exit(main())
