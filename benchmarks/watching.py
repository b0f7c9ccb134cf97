"""Measure what watching costs on every host: ``make bench-watching``, or ``python benchmarks/watching.py --help``.

Finds the system in the lab and reads, twice and so many seconds apart, the processor time and the memory of every unit
that only watches: exporters, the shipper of the journal, and on the monitor host what they report to. The figures are
those of the units' control groups, as systemd has them; where the machine keeps none, those of the processes in them.
Nothing is changed.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import boto3
from running import ROOT, BenchmarkError, lab_keys, report

# Units that are there for watching alone, by the beginnings of their names; journald is on every Debian host anyway.
WATCHERS = ("prometheus", "alertmanager", "grafana", "lightbox-journal-", "lightbox-status", "systemd-journal-upload",
            "systemd-journal-remote", "systemd-journald")  # fmt: skip
EVERYWHERE = ("systemd-journald",)

# One line a unit: name, nanoseconds of processor time, bytes of memory. Without figures of the group: clock ticks and
# proportional set sizes of its processes.
LOOK = r"""
tick=$((1000000000 / $(getconf CLK_TCK)))
for unit in $(systemctl list-units --type=service --state=running --plain --no-legend | cut -d ' ' -f 1); do
  case $unit in %s) ;; *) continue ;; esac
  cpu=$(systemctl show -P CPUUsageNSec $unit); memory=$(systemctl show -P MemoryCurrent $unit)
  group=$(systemctl show -P ControlGroup $unit)
  pids=$(for file in /proc/[0-9]*/cgroup; do grep -q "$group\$" $file 2>/dev/null && echo $file | cut -d / -f 3; done)
  case $cpu in ''|*[!0-9]*|18446744073709551615) cpu=0
    for pid in $pids; do
      ticks=$(sed 's/.*) //' /proc/$pid/stat 2>/dev/null | awk '{print $12 + $13}'); cpu=$((cpu + ${ticks:-0} * tick))
    done ;; esac
  case $memory in ''|*[!0-9]*|18446744073709551615) memory=0
    for pid in $pids; do
      pss=$(awk '/^Pss:/ {print $2}' /proc/$pid/smaps_rollup 2>/dev/null); memory=$((memory + ${pss:-0} * 1024))
    done ;; esac
  echo $unit $cpu $memory
done
"""

Figures = dict[str, tuple[int, int]]


def hosts_of(system: str) -> list[str]:
    """Return the names of the system's running hosts.

    Raises:
        BenchmarkError: there are none.
    """
    client = boto3.client("ec2", **lab_keys())
    filters = [{"Name": "instance-state-name", "Values": ["running"]}, {"Name": "tag:System", "Values": [system]}]
    try:
        found = client.describe_instances(Filters=filters)
    except Exception as error:
        raise BenchmarkError(f"the lab does not answer ({error}): `make up` starts it") from None
    instances = [one for reservation in found["Reservations"] for one in reservation["Instances"]]
    names = [tag["Value"] for one in instances for tag in one["Tags"] if tag["Key"] == "Name"]
    if not names:
        raise BenchmarkError(f"no system '{system}' runs in the lab: `make up` brings it up")
    return sorted(names)


def figures(output: str) -> Figures:
    """Return nanoseconds and bytes by unit."""
    rows = [line.split() for line in output.splitlines()]
    return {row[0].removesuffix(".service"): (int(row[1]), int(row[2])) for row in rows if len(row) == 3}


def look(host: str) -> tuple[float, Figures]:
    """Return when a host was looked at, in seconds, and what was seen.

    Raises:
        BenchmarkError: the host could not be asked.
    """
    patterns = "|".join(f"{name}*" for name in WATCHERS)
    command = [sys.executable, "-m", "lab", "ssh", host, f"sudo sh -c {shlex.quote(LOOK % patterns)}"]
    done = subprocess.run(command, cwd=ROOT, text=True, check=False, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise BenchmarkError(f"{host} could not be asked: {done.stderr.strip()[-500:]}")
    return time.monotonic(), figures(done.stdout)


def cost(before: tuple[float, Figures], after: tuple[float, Figures]) -> dict[str, dict[str, float]]:
    """Return what each unit took between two looks: seconds of processor time a minute, and megabytes at the end."""
    minutes = (after[0] - before[0]) / 60
    return {
        unit: {
            "cpu_seconds_per_minute": round((cpu - before[1].get(unit, (cpu, 0))[0]) / 1e9 / minutes, 3),
            "memory_mb": round(memory / 1e6, 1),
        }
        for unit, (cpu, memory) in sorted(after[1].items())
    }


def measure(system: str, seconds: float) -> dict[str, Any]:
    """Return the figures of every host."""
    names = hosts_of(system)
    before = {name: look(name) for name in names}
    time.sleep(seconds)
    hosts = {}
    for name in names:
        units = cost(before[name], look(name))
        watching = [about for unit, about in units.items() if not unit.startswith(EVERYWHERE)]
        hosts[name] = {
            "units": units,
            "cpu_seconds_per_minute": round(sum(about["cpu_seconds_per_minute"] for about in watching), 3),
            "memory_mb": round(sum(about["memory_mb"] for about in watching), 1),
        }
    return {"system": system, "seconds": seconds, "hosts": hosts}


def table(found: dict[str, Any]) -> str:
    """Return the figures as people read them."""
    lines = [f"{'host':<22}  {'unit':<34}  {'CPU s/min':>9}  {'MB':>7}"]
    for name, host in found["hosts"].items():
        for unit, about in host["units"].items():
            mark = " (anyway)" if unit.startswith(EVERYWHERE) else ""
            row = f"{about['cpu_seconds_per_minute']:>9.3f}  {about['memory_mb']:>7.1f}"
            lines.append(f"{name:<22}  {unit + mark:<34}  {row}")
        lines.append(f"{name:<22}  {'all':<34}  {host['cpu_seconds_per_minute']:>9.3f}  {host['memory_mb']:>7.1f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", default="pneumonia", help="the system's name (default: pneumonia)")
    parser.add_argument("--seconds", type=float, default=60.0, help="from one look to the next (default: 60)")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args(arguments)
    if not 1 <= options.seconds <= 3600:
        parser.error("--seconds must be from 1 to 3600")
    return report("watching", lambda: measure(options.system, options.seconds), table, options.out)


if __name__ == "__main__":
    sys.exit(main())
