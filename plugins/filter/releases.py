"""The filters that read the records of releases, judge the release policy and show the store's bundles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

APPROVALS = ("auto", "manual")
# Numbers that a policy states, by section and name, and between what they may lie.
NUMBERS = {
    ("gate", "minimum"): (None, None),
    ("gate", "tolerance"): (0, None),
    ("watch", "seconds"): (0, None),
    ("watch", "errors"): (0, 1),
    ("watch", "p99_seconds"): (0, None),
    ("watch", "requests"): (1, None),
}


def release_record(record: str) -> list[dict[str, str]]:
    """Return what a host's record of releases says, oldest first: `time`, `event`, `version`, `by` and `why`.

    A line of the first form, of time, event and version alone, says nothing of the last two.
    """
    entries = []
    for line in record.splitlines():
        parts = line.split(maxsplit=4)
        if len(parts) >= 3:
            names = ("time", "event", "version", "by", "why")
            entries.append(dict(zip(names, [*parts, "", ""], strict=False)))
    return entries


def releases_before(record: str, live: str, present: list[str]) -> list[str]:
    """Return the versions to which one may roll back, the latest last.

    A release puts its version on top of those before it; a rollback takes away what was above the version it leads to.

    Args:
        record: see `release_record`.
        live: the version that serves now.
        present: the versions that are still on the host.
    """
    stack: list[str] = []
    for entry in release_record(record):
        version = entry["version"]
        if version in stack:
            place = stack.index(version)
            stack = stack[:place] if entry["event"] == "rolled-back-to" else stack[:place] + stack[place + 1 :]
        stack.append(version)
    before = stack[: stack.index(live)] if live in stack else stack
    return [version for version in before if version in present]


def _canary_problems(policy: Mapping[str, Any]) -> list[str]:
    share = policy.get("canary", 0)
    try:
        percent = float(share)
    except (TypeError, ValueError):
        return [f"release_policy.canary is {share!r}, not a number."]
    if not 0 <= percent <= 100:
        return [f"release_policy.canary is {share}; it can be from 0 to 100."]
    watch = policy.get("watch")
    if percent and isinstance(watch, Mapping) and watch.get("seconds") in (0, "0"):
        return ["release_policy.canary needs a watch: with watch.seconds 0 nobody looks at how the canary does."]
    return []


def release_policy_problems(policy: Any) -> list[str]:
    """Return in sentences what keeps a release policy from being followed.

    Args:
        policy: the variable `release_policy`; None where there is none.
    """
    if not isinstance(policy, Mapping) or not policy:
        return ["release_policy is missing: it holds gate, approval, canary and watch."]
    problems = []
    if policy.get("approval") not in APPROVALS:
        problems.append(f"release_policy.approval is {policy.get('approval')!r}; it can be auto or manual.")
    problems += _canary_problems(policy)
    sections = {name: policy.get(name) for name in ("gate", "watch")}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            problems.append(f"release_policy.{name} is missing.")
    gate = sections["gate"]
    if isinstance(gate, Mapping) and not (isinstance(gate.get("metric"), str) and gate["metric"]):
        problems.append("release_policy.gate.metric is missing: name a figure of metrics.test, such as auroc.")
    for (name, key), (low, high) in NUMBERS.items():
        section = sections[name]
        if not isinstance(section, Mapping):
            continue
        try:
            value = float(section[key])
        except (KeyError, TypeError, ValueError):
            problems.append(f"release_policy.{name}.{key} is {section.get(key)!r}, not a number.")
            continue
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"from {low} to {high}" if high is not None else f"{low} or more"
            problems.append(f"release_policy.{name}.{key} is {section[key]}; it can be {bounds}.")
    return problems


def canary_host(policy: Mapping[str, Any], before: Mapping[str, str], candidate: str) -> str:
    """Return the host on which a candidate is tried on some of the people; "" where it is not.

    Args:
        policy: see `release_policy_problems`.
        before: host to the version that it serves before the release; "" is none.
        candidate: the version to release.
    """
    hosts = sorted(before)
    if len(hosts) < 2 or float(policy.get("canary", 0)) <= 0 or float(policy["watch"]["seconds"]) <= 0:
        return ""
    # Without others who serve there is nobody to serve the other people, and what is no news needs no trial.
    is_news = before[hosts[0]] not in ("", candidate)
    return hosts[0] if is_news and any(before[host] for host in hosts[1:]) else ""


def way_back(before: Mapping[str, str], host: str) -> str:
    """Return the version that a host serves after a release that failed somewhere: what it served before, or, where
    it served nothing, what the others did; "" where nobody served anything.

    Args:
        before: see `canary_host`.
        host: one of its hosts.
    """
    return before[host] or next((before[name] for name in sorted(before) if before[name]), "")


def release_outcome(
    candidate: str,
    before: Mapping[str, str],
    failures: Mapping[str, str],
    stuck: Mapping[str, str],
    given: Iterable[str] = (),
) -> str:
    """Return in sentences what became of a release that failed.

    Args:
        candidate: the version that was to be released.
        before: see `canary_host`.
        failures: host to the reason why the candidate is not live there.
        stuck: host to the reason why it could not go back.
        given: hosts on which it was live for a while.
    """
    told = [f"{candidate} is not released."]
    told += [f"{host}: {why.rstrip('.')}." for host, why in sorted(failures.items())]
    if not any(before.values()):
        return " ".join([*told, "No host served a model before, so there is nothing to go back to."])
    serving = {
        host: before[host] or (way_back(before, host) if host in given else "nothing yet")
        for host in sorted(before)
        if host not in stuck
    }
    if serving:
        told.append(f"What serves now: {', '.join(f'{host} {version}' for host, version in serving.items())}.")
    for host, why in sorted(stuck.items()):
        told.append(
            f"{host} could not be brought back ({why.rstrip('.')}): run playbooks/rollback.yml "
            f"-e version={way_back(before, host)} when it can be reached."
        )
    return " ".join(told)


def table(rows: list[list[str]]) -> str:
    """Return rows of cells, the first of them the headings, as lines of columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _state(bundle: Mapping[str, Any], live: list[str], were_live: set[str], manual: bool) -> str:
    approval = bundle.get("approval")
    parts = []
    if live:
        parts.append(f"live on {', '.join(live)}")
    elif bundle["version"] in were_live:
        parts.append("was live")
    if approval is not None:
        parts.append(f"approved by {approval.get('approved_by') or 'unknown'}")
    elif manual and not parts:
        parts.append("not approved")
    return "; ".join(parts) or "-"


def bundles_table(
    bundles: Iterable[Mapping[str, Any]],
    live: Mapping[str, str],
    records: Iterable[str],
    manual: bool = False,
) -> str:
    """Return the store's bundles as a table.

    Args:
        bundles: what ``lightbox.artefacts list`` gives, in the order of the rows.
        live: host to the version that it serves.
        records: the records of all hosts, see `release_record`.
        manual: whether a version must be approved before it is released.
    """
    were_live = {entry["version"] for record in records for entry in release_record(record)}
    rows = [["version", "trained", "data", "images", "accuracy", "AUROC", "state"]]
    for bundle in bundles:
        data, metrics = bundle.get("data") or {}, bundle.get("metrics") or {}
        synthetic = data.get("synthetic")
        kind = "" if synthetic is None else "synthetic" if synthetic else "real"
        # A source that is called synthetic need not be told to be.
        words = dict.fromkeys(str(word) for word in (data.get("source"), kind, (data.get("digest") or "")[:8]) if word)
        figures = [metrics.get(name) for name in ("accuracy", "auroc")]
        serving = sorted(host for host, version in live.items() if version == bundle["version"])
        rows.append(
            [
                str(bundle["version"]),
                str(bundle.get("created") or "-"),
                " ".join(words) or "-",
                str(data.get("images") or "-"),
                *(f"{figure:.4f}" if isinstance(figure, (int, float)) else "-" for figure in figures),
                _state(bundle, serving, were_live, manual),
            ]
        )
    return table(rows) if len(rows) > 1 else "There is no bundle in the store: train a model first."


def record_table(records: Mapping[str, str]) -> str:
    """Return the records of all hosts as one table, oldest first.

    Args:
        records: host to its record, see `release_record`.
    """
    entries = sorted(
        (entry["time"], host, place, entry)
        for host, record in records.items()
        for place, entry in enumerate(release_record(record))
    )
    rows = [["time", "host", "event", "version", "by", "why"]]
    rows += [
        [time, host, entry["event"], entry["version"], entry["by"] or "-", entry["why"] or "-"]
        for time, host, _place, entry in entries
    ]
    return table(rows) if len(rows) > 1 else "Nothing has been released yet."


class FilterModule:
    """The filters by the names that roles and playbooks use."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {
            "bundles_table": bundles_table,
            "canary_host": canary_host,
            "record_table": record_table,
            "release_outcome": release_outcome,
            "release_policy_problems": release_policy_problems,
            "release_record": release_record,
            "releases_before": releases_before,
            "way_back": way_back,
        }
