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


def release_policy_problems(policy: Any, old_gate: bool = False) -> list[str]:
    """Return in sentences what keeps a release policy from being followed.

    Args:
        policy: the variable `release_policy`; None where there is none.
        old_gate: whether the variable `release_gate` is set, which `release_policy` has replaced.
    """
    problems = []
    if old_gate:
        problems.append(
            "release_gate is no longer read: write its metric and tolerance, and a minimum, under release_policy.gate "
            "(inventories/pneumonia/group_vars/all/model.yml shows how) and remove it."
        )
    if not isinstance(policy, Mapping) or not policy:
        return [*problems, "release_policy is missing: it holds gate, approval and watch."]
    if policy.get("approval") not in APPROVALS:
        problems.append(f"release_policy.approval is {policy.get('approval')!r}; it can be auto or manual.")
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
        for time, host, _, entry in entries
    ]
    return table(rows) if len(rows) > 1 else "Nothing has been released yet."


class FilterModule:
    """The filters by the names that roles and playbooks use."""

    def filters(self) -> dict[str, Any]:
        """Return the filters."""
        return {
            "bundles_table": bundles_table,
            "record_table": record_table,
            "release_policy_problems": release_policy_problems,
            "release_record": release_record,
            "releases_before": releases_before,
        }
