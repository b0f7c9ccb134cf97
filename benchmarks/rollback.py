"""Time the way back to the model before: ``make bench-rollback``, or ``python benchmarks/rollback.py --help``.

Finds the system in the lab, releases a copy of the live model under a version of its own, then sends requests through
Nginx over TLS all the while that ``playbooks/rollback.yml`` leads back, and says how long it took from the command to
the first verdict by the model before, to the last by the copy, and to the playbook's end, and how many requests failed.
The proxy's limit per client is lifted for this machine meanwhile; it, the model and the cases are put back at the end.

Traffic goes to addresses of the lab on this machine and nowhere else, and ends by itself.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from running import BenchmarkError, report
from soak import TIMEOUT_SECONDS, Answer, Record, System, load, release_a_copy, remove_copy, say, take_back

# Seconds of requests before the command and after its end.
AROUND = 3.0
# No way back takes longer than this; requests end with the playbook, not with it.
LONGEST = 300.0
GOAL = 10.0


def summary(
    system: System, answers: list[Answer], versions: tuple[str, str], command: tuple[float, float], rate: float
) -> dict[str, Any]:
    """Return the figures of a run.

    Args:
        system: the system.
        answers: all requests.
        versions: the one that was led back from, and the one that was led back to.
        command: when the playbook was started and when it ended, in seconds since the epoch.
        rate: requests a second.

    Raises:
        BenchmarkError: no verdict tells the version, or none was given by the model before.
    """
    begun, ended = command
    later = [answer for answer in answers if answer.version == versions[0]]
    earlier = [answer for answer in answers if answer.version == versions[1] and answer.ended > begun]
    if not later or not earlier:
        raise BenchmarkError("no verdict was given by the model before: is the page's result card another one now?")
    failed = Counter(answer.kind for answer in answers if not answer.kind.startswith("ok"))
    first = min(answer.ended for answer in earlier) - begun
    return {
        "ok": not failed and first <= GOAL,
        "url": system.url,
        "api_hosts": len(system.having("api")),
        "rate_rps": rate,
        "seconds_to_the_first_verdict": round(first, 1),
        "seconds_to_the_last_verdict_of_the_other": round(max(0.0, max(answer.ended for answer in later) - begun), 1),
        "seconds_to_the_end_of_the_playbook": round(ended - begun, 1),
        "requests": len(answers),
        "failed": sum(failed.values()),
        "failures_by_kind": dict(failed),
    }


def table(found: dict[str, Any]) -> str:
    """Return the figures as people read them."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["failures_by_kind"].items()) or "none"
    hosts = f"{found['api_hosts']} API host{'s' if found['api_hosts'] > 1 else ''}"
    lines = [
        ("address", f"{found['url']} ({hosts})"),
        ("from the command to", ""),
        ("  the first verdict by the model before", f"{found['seconds_to_the_first_verdict']} s (goal: {GOAL:.0f} s)"),
        ("  the last verdict by the other", f"{found['seconds_to_the_last_verdict_of_the_other']} s"),
        ("  the end of the playbook", f"{found['seconds_to_the_end_of_the_playbook']} s"),
        ("requests", f"{found['requests']} at {found['rate_rps']:g} a second"),
        ("failures", kinds),
        ("result", "ok" if found["ok"] else "NOT OK"),
    ]
    return "\n".join(f"{name:<40}  {words}".rstrip() for name, words in lines)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run it; the system is left as it was found."""
    system = System(options.system, options.url)
    image, mark, record = system.smoke(), f"rollback-{uuid.uuid4().hex[:8]}", Record()
    before, copy, back = system.version(), "", False
    over = threading.Event()
    say(f"{system.url}: the limit on uploads is lifted for this machine, and a copy of the live model is released")
    system.limit(lifted=True)
    try:
        copy = release_a_copy(system, record)
        pressure = threading.Thread(
            target=load, args=(system, image, mark, LONGEST, options.rate, record, over), daemon=True
        )
        pressure.start()
        time.sleep(AROUND)
        say("playbooks/rollback.yml is run")
        begun = time.time()
        system.play("playbooks/rollback.yml")
        ended = time.time()
        back = system.version() == before
        time.sleep(AROUND)
        over.set()
        pressure.join(2 * TIMEOUT_SECONDS)
        if not back:
            raise BenchmarkError(f"the rollback of {copy} led to {system.version()}, not to {before}")
        return summary(system, record.answers, (copy, before), (begun, ended), options.rate)
    finally:
        over.set()
        say("limit, cases and model are put back")
        system.limit(lifted=False)
        system.cases(mark, remove=True)
        if back:
            remove_copy(system, copy)
        elif copy:
            take_back(system, copy, before)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when nothing failed and the way back was as short as it is meant to be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="pneumonia", help="the system's name (default: pneumonia)")
    parser.add_argument("--url", default="", help="its address (default: found in the lab)")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second (default: 10)")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args(arguments)
    if options.rate <= 0:
        parser.error("--rate must be above 0")
    return report("rollback", lambda: measure(options), table, options.out)


if __name__ == "__main__":
    sys.exit(main())
