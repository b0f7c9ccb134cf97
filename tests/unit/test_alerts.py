"""Alerts fire when they should and not otherwise; each has a page that says what to do."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.alerts import quiet  # noqa: E402 - found only with the path above

RUNBOOKS = ROOT / "docs/runbooks"
# How often rules are evaluated in stories whose steps are seconds, and how often the simulated system is looked at.
EVERY = f"{quiet.STEP}s"
# What is recorded only where something fails.
ONLY_OF_FAILURES = {"app:lightbox_late_failures:share"}
STORIES: list[dict[str, Any]] = yaml.safe_load((ROOT / "tests/alerts/stories.yml").read_text())


def promtool(*arguments: str | Path, check: bool = True) -> str:
    """Run promtool; return what it said."""
    program = shutil.which("promtool")
    assert program, "promtool is missing: install Debian's package prometheus"
    done = subprocess.run([program, *arguments], text=True, check=False, capture_output=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def rendered(directory: Path, *variables: str) -> Path:
    """Write the rules of the pneumonia system as the role does; return their directory."""
    arguments = [item for variable in ("trainer_lifecycle=keep", *variables) for item in ("-e", variable)]
    done = subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "-i", "inventories/pneumonia", "tests/alerts/render.yml",
         "-e", f"directory={directory}", *arguments],
        cwd=ROOT, text=True, check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="session")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rendered(tmp_path_factory.mktemp("rules"))


def alerts(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the alerts by name."""
    return {
        rule["alert"]: rule
        for file in directory.glob("*.yml")
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }


def promtools_words(story: dict[str, Any], url: str) -> dict[str, Any]:
    """Return a story in promtool's words."""
    expected = {
        "exp_labels": story.get("labels"),
        "exp_annotations": {
            "summary": story.get("summary"),
            "description": story.get("description"),
            "runbook_url": url,
        },
    }
    return {
        "interval": story.get("every", "1m"),
        "input_series": [{"series": series, "values": values} for series, values in story["series"].items()],
        "alert_rule_test": [
            *({"eval_time": at, "alertname": story["alert"], "exp_alerts": []} for at in story["silent"]),
            *(
                {"eval_time": at, "alertname": story["alert"], "exp_alerts": [expected]}
                for at in story.get("fires", [])
            ),
        ],
    }


def told(directory: Path, story: dict[str, Any], rules: Path, check: bool = True) -> str:
    """Let promtool judge one story; return what it said."""
    known = alerts(rules)[story["alert"]]
    evaluated = EVERY if story.get("every", "1m").endswith("s") else "1m"
    return judged(directory, promtools_words(story, known["annotations"]["runbook_url"]), rules, evaluated, check)


def judged(directory: Path, test: dict[str, Any], rules: Path, evaluated: str, check: bool = True) -> str:
    """Let promtool judge a test in its own words; return what it said."""
    file = directory / "story.yml"
    content = {
        "rule_files": [str(path) for path in sorted(rules.glob("*.yml"))],
        "evaluation_interval": evaluated,
        # What alerts are made of is recorded first.
        "group_eval_order": [
            "recorded_hosts",
            "recorded_service",
            "recorded_model",
            "hosts",
            "service",
            "model",
            "watch",
        ],
        "tests": [test],
    }
    file.write_text(json.dumps(content))  # JSON is YAML
    return promtool("test", "rules", file, check=check)


@pytest.mark.parametrize("story", STORIES, ids=[f"{story['alert']}-{at}" for at, story in enumerate(STORIES)])
def test_an_alert_fires_when_it_should_and_not_otherwise(story: dict[str, Any], rules: Path, tmp_path: Path) -> None:
    assert "SUCCESS" in told(tmp_path, story, rules)


def test_a_story_that_is_not_true_is_noticed(rules: Path, tmp_path: Path) -> None:
    story = next(story for story in STORIES if story["alert"] == "MemoryLow")
    assert "FAILED" in told(tmp_path, {**story, "silent": story["fires"]}, rules, check=False)


def test_every_alert_has_its_story_its_page_and_what_people_read(rules: Path) -> None:
    known = alerts(rules)
    assert len(known) >= 19
    assert {story["alert"] for story in STORIES} == set(known)
    assert {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"} == set(known)
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \|", (RUNBOOKS / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted((name, name) for name in known)
    for name, rule in known.items():
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert rule["annotations"]["runbook_url"].endswith(f"/docs/runbooks/{name}.md")


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("[A-Z]*[a-z].md")), ids=lambda page: page.stem)
def test_a_page_begins_with_what_to_type(page: Path) -> None:
    if page.stem == "README":
        return
    lines = [line for line in page.read_text().splitlines() if line]
    assert lines[0] == f"# {page.stem}"
    assert lines[1] == "```shell", "after the title comes what to type"
    assert "```" in lines[2:]


def test_short_times_reach_the_rules(tmp_path: Path) -> None:
    """The tests in the lab and whoever is impatient set the times by variables."""
    directory = rendered(tmp_path, "alert_soon=5s", "alert_later=6s", "alert_window=1m", "drift_window=2m")
    promtool("check", "rules", *sorted(directory.glob("*.yml")))
    assert {rule.get("for", "5s") for rule in alerts(directory).values()} == {"5s", "6s"}


def test_a_training_host_that_goes_down_by_itself_is_not_missed(tmp_path: Path) -> None:
    directory = rendered(tmp_path, "trainer_lifecycle=stop")
    assert 'role!~"trainer"' in alerts(directory)["HostDown"]["expr"]
    assert 'role!~"trainer"' in alerts(directory)["TargetDown"]["expr"]


def seconds(words: str) -> int:
    """Return a time in Prometheus' words, such as 1m30s, in seconds."""
    found = re.findall(r"(\d+)([smhd])", words)
    assert "".join(number + unit for number, unit in found) == words
    return sum(int(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit] for number, unit in found)


@pytest.fixture(scope="session")
def times(rules: Path) -> dict[str, int]:
    """Return the times of the inventory, in seconds."""
    content = json.loads((rules / "times.json").read_text())
    return {name: seconds(value) for name, value in content.items() if isinstance(value, str)}


PROMISED = 120  # seconds until people are told that the service is stopped


def test_what_stops_the_service_is_told_in_time(rules: Path, times: dict[str, int]) -> None:
    """Every wait at its longest: the last good look was just before, and others of the same name were just told."""
    known = alerts(rules)
    look, every = times["prometheus_scrape_interval"], times["prometheus_evaluation_interval"]
    assert seconds(EVERY) == look == every, "the simulated system is looked at as the real one is"
    told = max(times["alertmanager_group_wait"], times["alertmanager_group_interval"])
    for name, rule in known.items():
        lasts = seconds(rule.get("for", "0s"))
        arrives = look + times["prometheus_scrape_timeout"] + every + math.ceil(lasts / every) * every + told
        assert arrives <= PROMISED or (rule["labels"]["severity"] == "warning" and lasts == times["alert_later"]), name


def test_a_host_that_is_down_is_known_before_its_services_are_told(times: dict[str, int]) -> None:
    """Its services may be looked at a whole interval earlier, and the rules an evaluation."""
    apart = times["prometheus_scrape_interval"] + times["prometheus_evaluation_interval"]
    assert times["alertmanager_group_wait"] >= apart
    assert times["alert_start"] >= apart


def test_a_host_certificate_is_told_after_a_run_would_have_renewed_it(rules: Path) -> None:
    renewed = yaml.safe_load((ROOT / "roles/pki/defaults/main.yml").read_text())["pki_renew_days"]
    assert 30 <= json.loads((rules / "times.json").read_text())["alert_host_certificate_days"] <= renewed - 3


def fired(directory: Path, rules: Path, series: dict[str, str], at: int, expected: list[str], over: str = "1h") -> str:
    """Let promtool play the simulated system, and judge which alerts fired at any evaluation.

    Args:
        directory: Where the test goes.
        rules: Directory of the rules.
        series: What Prometheus sees.
        at: Step up to which it is looked back.
        expected: Names of the alerts that should have fired.
        over: How far it is looked back.

    Returns:
        What promtool said.
    """
    test = {
        "interval": EVERY,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{over}])) > bool 0',
                "eval_time": f"{at * quiet.STEP}s",
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in expected],
            },
            *(
                {
                    "expr": f"count(present_over_time({name}[{over}])) > bool 0",
                    "eval_time": f"{at * quiet.STEP}s",
                    "exp_samples": [{"labels": "{}", "value": 1}],
                }
                for name in recorded(rules)
            ),
        ],
    }
    return judged(directory, test, rules, EVERY, check=False)


def recorded(rules: Path) -> list[str]:
    """Return the names of what is recorded."""
    return [
        rule["record"]
        for file in sorted(rules.glob("*.yml"))
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "record" in rule and rule["record"] not in ONLY_OF_FAILURES
    ]


QUIET_HOURS = 8  # the last is judged; disks are compared with six hours before


@pytest.mark.parametrize("uploads", [20, 0.5], ids=["busy", "hardly used"])
def test_a_quiet_hour_sends_nothing(rules: Path, tmp_path: Path, uploads: float) -> None:
    """People upload, a training runs, and a release restarts the API for twenty seconds."""
    end = QUIET_HOURS * quiet.HOUR
    series = quiet.system(QUIET_HOURS, uploads, at=end - 30 * quiet.MINUTE)
    said = fired(tmp_path, rules, series, end, [])
    assert "SUCCESS" in said, said


def test_the_quiet_hour_has_all_that_alerts_ask_for(rules: Path) -> None:
    """What is missing would be silent for that alone."""
    there = {name.split("{")[0] for name in quiet.system(1, 20, at=180)} | set(recorded(rules)) | ONLY_OF_FAILURES
    words = {"sum", "by", "app", "le", "and", "or", "unless", "on", "offset", "increase", "rate", "abs", "max", "avg",
             "time", "timestamp", "vector", "predict_linear", "histogram_quantile", "label_replace", "min_over_time",
             "instance", "integration", "rule_group", "unit", "bool"}  # fmt: skip
    for file in rules.glob("*.yml"):
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                bare = re.sub(
                    r'"[^"]*"|\{[^}]*\}|\[[^]]*\]|\b\d\w*', " ", re.sub(r'"(\\.|[^"\\])*"', '""', rule["expr"])
                )
                asked = set(re.findall(r"[a-z_][\w:]*", bare)) - words
                assert asked <= there, (rule, asked - there)


@pytest.mark.parametrize("answers", [False, True], ids=["gone", "failing"])
def test_an_api_that_stops_is_told_in_time(rules: Path, times: dict[str, int], tmp_path: Path, answers: bool) -> None:
    """It stops just after it was looked at; in the worst case the rules look an interval later than here."""
    at = quiet.HOUR // 2
    left = PROMISED - times["alertmanager_group_wait"] - times["prometheus_evaluation_interval"]
    series = quiet.system(1, 20, at=at + 1, down=quiet.HOUR, answers=answers)
    expected = ["ManyErrors", "NoPredictions"] + ([] if answers else ["TargetDown"])
    said = fired(tmp_path, rules, series, at + left // quiet.STEP, expected, over="10m")
    assert "SUCCESS" in said, said


def test_an_hour_that_is_not_quiet_is_noticed(rules: Path, tmp_path: Path) -> None:
    series = quiet.system(1, 20, at=quiet.HOUR // 2, down=2 * quiet.MINUTE)
    said = fired(tmp_path, rules, series, quiet.HOUR, [])
    assert "TargetDown" in said and "ManyErrors" in said, said
