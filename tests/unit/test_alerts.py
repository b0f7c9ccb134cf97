"""Alerts fire when they should and not otherwise; each has a page that says what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs/runbooks"
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
        "exp_labels": story["labels"],
        "exp_annotations": {"summary": story["summary"], "description": story["description"], "runbook_url": url},
    }
    return {
        "interval": story.get("every", "1m"),
        "input_series": [{"series": series, "values": values} for series, values in story["series"].items()],
        "alert_rule_test": [
            *({"eval_time": at, "alertname": story["alert"], "exp_alerts": []} for at in story["silent"]),
            *({"eval_time": at, "alertname": story["alert"], "exp_alerts": [expected]} for at in story["fires"]),
        ],
    }


def told(directory: Path, story: dict[str, Any], rules: Path, check: bool = True) -> str:
    """Let promtool judge one story; return what it said."""
    known = alerts(rules)[story["alert"]]
    file = directory / "story.yml"
    content = {
        "rule_files": [str(path) for path in sorted(rules.glob("*.yml"))],
        "evaluation_interval": "1m",
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
        "tests": [promtools_words(story, known["annotations"]["runbook_url"])],
    }
    file.write_text(yaml.safe_dump(content))
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
    assert lines[1] == "```", "after the title comes what to type"
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
