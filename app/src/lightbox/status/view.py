"""What the page shows, put together from Prometheus' answers."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone

from lightbox.status import figures
from lightbox.status.chart import Chart, draw
from lightbox.status.prometheus import Alert, Prometheus, PrometheusError, Sample, Series
from lightbox.status.queries import DOWN, FACTS, HOSTS, PANELS, SERVICE, TRAINING, UP, Line, Panel, Range

# Versions of models begin with the time of their training.
VERSION = re.compile(r"(\d{8}T\d{6})Z-")
PLACE = re.compile(r"\{(\w+)\}")
GRAVE = ("critical", "page", "error")
UNKNOWN = "not known"


@dataclass(frozen=True)
class Thing:
    """Something that needs a look; ``runbook`` is the address of what to do about it, where an alert gives one."""

    title: str
    detail: str
    grave: bool
    runbook: str = ""


@dataclass(frozen=True)
class Tile:
    """A figure of now: ``tone`` is ``well``, ``bad`` or nothing."""

    title: str
    value: str
    note: str
    tone: str = ""


@dataclass(frozen=True)
class Host:
    """A host now; a figure that nobody measured is a dash."""

    name: str
    up: bool
    cpu: str
    memory: str
    disk: str
    uptime: str


@dataclass(frozen=True)
class Shown:
    """A panel with its chart, or the reason why there is none."""

    panel: Panel
    chart: Chart | None
    reason: str


@dataclass(frozen=True)
class Status:
    """All of the page."""

    now: datetime
    range: Range
    targets: int
    answering: int
    things: Sequence[Thing]
    tiles: Sequence[Tile]
    hosts: Sequence[Host]
    service: Sequence[Shown]
    machines: Sequence[Shown]
    training: Sequence[Shown]
    trained: str

    @property
    def sentence(self) -> str:
        """Say how the system is."""
        count = len(self.things)
        if not count:
            return "Everything works."
        return "1 thing needs a look." if count == 1 else f"{count} things need a look."

    @property
    def grave(self) -> bool:
        """Return whether one of the things is grave."""
        return any(thing.grave for thing in self.things)


@dataclass
class Answers:
    """What the questions of one page were answered; a question that failed has its reason."""

    up: Sequence[Sample]
    down: Sequence[Sample]
    alerts: Sequence[Alert]
    facts: dict[str, Sequence[Sample]] = field(default_factory=dict)
    lines: dict[str, Sequence[Series]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def fact(self, name: str) -> Sequence[Sample]:
        """Return the values of a fact; none where the question failed."""
        return self.facts.get(name, ())

    def one(self, name: str) -> float | None:
        """Return the one value of a fact."""
        values = self.fact(name)
        return values[0].value if values else None

    def of_hosts(self, name: str) -> dict[str, float]:
        """Return a fact by host."""
        return {sample.labels.get("instance", ""): sample.value for sample in self.fact(name)}


async def ask(prometheus: Prometheus, drawn: Range, end: float) -> Answers:
    """Ask all that the page shows.

    Raises:
        PrometheusError: Prometheus cannot say how the system is.
    """
    answers = Answers(await prometheus.samples(UP), await prometheus.samples(DOWN), await prometheus.alerts())

    async def fact(name: str, query: str) -> None:
        try:
            answers.facts[name] = await prometheus.samples(query)
        except PrometheusError as problem:
            answers.failed[name] = str(problem)

    async def curve(panel: Panel, one: Line) -> None:
        query = one.query.replace("$window", drawn.window)
        try:
            answers.lines[one.query] = await prometheus.series(query, end - drawn.seconds, end, drawn.step)
        except PrometheusError as problem:
            answers.failed[panel.key] = str(problem)

    await asyncio.gather(
        *(fact(name, query) for name, query in FACTS.items()),
        *(curve(panel, one) for panel in PANELS for one in panel.lines),
    )
    return answers


def named(one: Line, series: Series) -> str:
    """Return the name of a series of a line."""
    return PLACE.sub(lambda found: series.labels.get(found[1]) or "all", one.name)


def show(panel: Panel, answers: Answers, drawn: Range, end: float) -> Shown:
    """Return a panel with its chart, or with the reason why there is none."""
    if panel.key in answers.failed:
        return Shown(panel, None, f"This could not be read: {answers.failed[panel.key]}")
    pairs = [(one, series) for one in panel.lines for series in answers.lines.get(one.query, ())]
    apart = {series.labels.get(one.apart) for one, series in pairs if one.apart}
    found = [
        (named(one, series) + (f", {series.labels.get(one.apart)}" if len(apart) > 1 and one.apart else ""), series)
        for one, series in pairs
    ]
    chart = draw(panel, sorted(found, key=lambda pair: pair[0]) if len(panel.lines) == 1 else found, drawn, end)
    if chart:
        return Shown(panel, chart, "")
    targets = [sample.value for sample in answers.up if sample.labels.get("job") == panel.job]
    if panel.job and not targets:
        return Shown(panel, None, f"Nothing yet: Prometheus has no target “{panel.job}” that would measure this.")
    if panel.job and not any(targets):
        return Shown(panel, None, f"Nothing: no target “{panel.job}” answers Prometheus.")
    return Shown(panel, None, panel.empty)


def _where(labels: Mapping[str, str]) -> str:
    return ", ".join(labels[name] for name in ("instance", "job") if labels.get(name))


def _alert(alert: Alert, now: datetime) -> Thing:
    title = alert.annotations.get("summary") or alert.labels.get("alertname") or "An alert fires"
    since = f"for {figures.span((now - alert.since).total_seconds())}" if alert.since else ""
    parts = (alert.labels.get("alertname", ""), _where(alert.labels), since)
    runbook = alert.annotations.get("runbook_url") or alert.annotations.get("runbook") or ""
    return Thing(
        title.rstrip("."),
        " · ".join(part for part in parts if part),
        alert.labels.get("severity") in GRAVE,
        runbook if runbook.startswith("https://") else "",
    )


def things(answers: Answers, now: datetime) -> list[Thing]:
    """Return what needs a look, the grave things first: alerts, targets that no alert speaks of, what is missing."""
    # Alerts of no severity are there to show that alerts arrive.
    alerts = [alert for alert in answers.alerts if alert.labels.get("severity") != "none"]
    found = [_alert(alert, now) for alert in alerts]
    told = {(alert.labels.get("instance"), alert.labels.get("job")) for alert in alerts}
    silent: dict[str, list[str]] = {}
    for sample in answers.down:
        instance, job = sample.labels.get("instance", ""), sample.labels.get("job", "")
        if not told & {(instance, job), (instance, None)}:
            silent.setdefault(instance, []).append(job)
    found += [
        Thing(
            f"{instance or 'A target'} does not answer", f"Prometheus gets nothing from {', '.join(sorted(jobs))}", True
        )
        for instance, jobs in silent.items()
    ]
    if not answers.up:
        found.append(Thing("Nothing is measured", "Prometheus has no target; see /etc/prometheus/targets", True))
    if any(sample.value == 0 for sample in answers.fact("store")):
        found.append(Thing("The case store does not answer", "Predictions go on, but are not kept", True))
    api = [sample.value for sample in answers.up if sample.labels.get("job") == "api"]
    if any(api) and "model" in answers.facts and not answers.facts["model"]:
        found.append(Thing("No model is live", "The API answers, but has nothing to predict with", True))
    return sorted(found, key=lambda thing: (not thing.grave, thing.title))


def _model(answers: Answers, now: datetime) -> Tile:
    versions = sorted({sample.labels.get("version", "") for sample in answers.fact("model")})
    if not versions:
        return Tile("Live model", UNKNOWN, answers.failed.get("model", "no API host says which it serves"))
    if len(versions) > 1:
        return Tile("Live model", f"{len(versions)} versions", ", ".join(versions), "bad")
    note = versions[0]
    if found := VERSION.match(note):
        made = datetime.strptime(found[1], "%Y%m%dT%H%M%S").replace(tzinfo=timezone.utc)
        value = f"{figures.span((now - made).total_seconds())} old"
    else:
        value, note = note, "its version does not tell its age"
    if any(sample.labels.get("synthetic") == "true" for sample in answers.fact("model")):
        note += ", trained on synthetic images"
    return Tile("Live model", value, note)


def _store(answers: Answers) -> Tile:
    states = [sample.value for sample in answers.fact("store")]
    if not states:
        return Tile("Case store", UNKNOWN, answers.failed.get("store", "no API host says whether Redis answers"))
    if all(states):
        waiting = answers.one("waiting")
        note = "" if waiting is None else f"{figures.plain(waiting)} requests wait for the API"
        return Tile("Case store", "answers", note, "well")
    return Tile("Case store", "does not answer", "cases are not kept", "bad")


def _figure(answers: Answers, title: str, name: str, words: Callable[[float], str], note: str, idle: str) -> Tile:
    value = answers.one(name)
    if value is None:
        return Tile(title, "none" if name not in answers.failed else UNKNOWN, answers.failed.get(name, idle))
    return Tile(title, words(value), note)


def _errors(answers: Answers) -> Tile:
    shares = {sample.labels.get("app", ""): sample.value for sample in answers.fact("errors")}
    if not shares:
        return Tile("Failed requests", "none", answers.failed.get("errors", "nothing asked in 5 minutes"))
    worst = max(shares, key=lambda name: shares[name])
    tone = "bad" if shares[worst] >= 0.01 else ""
    note = "in 5 minutes" if not shares[worst] else f"{worst}, in 5 minutes"
    return Tile("Failed requests", figures.percent(shares[worst]), note, tone)


def _verdicts(answers: Answers) -> Tile:
    counts = {sample.labels.get("label", ""): sample.value for sample in answers.fact("verdicts")}
    total = sum(counts.values())
    if round(total) < 1:
        return Tile("Predictions", "none", answers.failed.get("verdicts", "in the last hour"))
    shares = ", ".join(f"{name} {figures.percent(count / total)}" for name, count in sorted(counts.items()))
    return Tile("Predictions", f"{total:,.0f}", f"in the last hour: {shares}")


def _training(answers: Answers) -> Tile:
    # On a tie of two hosts, the first by name.
    states = sorted(
        (sample.labels.get("instance", ""), sample.labels.get("state", "")) for sample in answers.fact("state")
    )
    if not states:
        return Tile("Training", "none", answers.failed.get("state", "nothing is trained now"))
    instance, state = states[0]
    epoch, epochs, left = (answers.of_hosts(name).get(instance) for name in ("epoch", "epochs", "left"))
    parts = [f"epoch {epoch:.0f} of {epochs:.0f}" if epoch is not None and epochs else "", instance]
    if left is not None and state == "training":
        parts.append(f"at most {figures.span(left)} left")
    return Tile("Training", state, ", ".join(part for part in parts if part), "bad" if state == "failed" else "")


def tiles(answers: Answers, now: datetime) -> list[Tile]:
    """Return the figures of now."""
    return [
        _model(answers, now),
        _store(answers),
        _figure(answers, "Requests", "requests", lambda value: f"{figures.plain(value)}/s",
                "to the pages, in 5 minutes", "nothing was asked yet"),
        _errors(answers),
        _figure(answers, "Time to answer", "p99", figures.seconds, "or less for 99 of 100 pages, in 5 minutes",
                "no page asked for in 5 minutes"),
        _verdicts(answers),
        _training(answers),
    ]  # fmt: skip


def hosts(answers: Answers) -> list[Host]:
    """Return the hosts by name, as node_exporter measures them."""
    cpu, memory, disk, left, uptime = (
        answers.of_hosts(name) for name in ("cpu", "memory", "disk", "disk_bytes", "uptime")
    )

    def told(values: Mapping[str, float], name: str, words: Callable[[float], str]) -> str:
        return words(values[name]) if name in values else "-"

    return [
        Host(
            name,
            bool(value),
            told(cpu, name, figures.percent),
            told(memory, name, figures.percent),
            f"{figures.percent(disk[name])}, {told(left, name, figures.size)}" if name in disk else "-",
            told(uptime, name, figures.span),
        )
        for name, value in sorted(
            (sample.labels.get("instance", ""), sample.value)
            for sample in answers.up
            if sample.labels.get("job") == "node"
        )
    ]


def last_training(answers: Answers, now: datetime) -> str:
    """Say when something was trained last."""
    if "trained" in answers.failed:
        return f"When something was trained last could not be read: {answers.failed['trained']}"
    seen = max(answers.fact("trained"), key=lambda sample: sample.value, default=None)
    if seen is None:
        return "In the last seven days nothing was trained while Prometheus watched."
    passed = now.timestamp() - seen.value
    when = "now" if passed < 90 else f"{figures.span(passed)} ago"
    what = " ".join(part for part in (seen.labels.get("architecture"), seen.labels.get("run")) if part)
    return f"Last seen {when}: {what or 'a run'} on {seen.labels.get('instance', 'a host')}."


def put_together(answers: Answers, drawn: Range, end: float) -> Status:
    """Return the page of these answers, asked for at ``end`` (seconds since 1970)."""
    now = datetime.fromtimestamp(end, timezone.utc)

    def panels(wanted: Iterable[Panel]) -> list[Shown]:
        return [show(panel, answers, drawn, end) for panel in wanted]

    return Status(
        now=now,
        range=drawn,
        targets=len(answers.up),
        answering=sum(sample.value == 1 for sample in answers.up),
        things=things(answers, now),
        tiles=tiles(answers, now),
        hosts=hosts(answers),
        service=panels(SERVICE),
        machines=panels(HOSTS),
        training=panels(TRAINING),
        trained=last_training(answers, now),
    )


async def look(prometheus: Prometheus, drawn: Range) -> Status:
    """Return how the system is.

    Raises:
        PrometheusError: Prometheus cannot say.
    """
    # Steps begin at the same times whenever somebody looks, so that a curve does not jump when the page is drawn anew.
    end = time.time() // 15 * 15
    return put_together(await ask(prometheus, drawn, end), drawn, end)
