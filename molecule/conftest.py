"""What every scenario's tests share: a failed test ends with the journal of its host."""

from __future__ import annotations

from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the end of the host's journal to the report of a failed test."""
    report = yield
    host = item.funcargs.get("host")
    if report.failed and host is not None:
        # Without the words of Ansible's own modules.
        journal = host.run(
            "journalctl --boot --no-pager --output=short-iso | grep -Ev ' (ansible-|sudo)' | tail --lines=60"
        )
        report.sections.append((f"journal of {host.backend.get_hostname()}", journal.stdout or journal.stderr))
    return report
