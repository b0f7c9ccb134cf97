"""What every scenario's tests share: a failed test ends with the journals of the hosts it asked."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from testinfra.host import Host

# Units that have failed with their last words, then the end of all, without the words of Ansible's own modules.
LAST_WORDS = """
for unit in $(systemctl --failed --plain --no-legend | cut --delimiter=' ' --fields=1); do
    echo "$unit has failed:"
    journalctl --boot --no-pager --output=short-iso --unit="$unit" --lines=50
done
echo 'The end of the journal:'
journalctl --boot --no-pager --output=short-iso | grep -Ev ' (ansible-|sudo)' | tail --lines=60
"""


def last_words(host: Host) -> str:
    """Return what a host's journal says of what went wrong; of a host that is gone, that it is."""
    try:
        said = host.run(LAST_WORDS)
    except RuntimeError as error:
        return str(error)
    return str(said.stdout + said.stderr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the journal of each host to the report of a failed test."""
    report = yield
    if report.failed:
        for host in (value for value in item.funcargs.values() if isinstance(value, Host)):
            report.sections.append((f"journal of {host.backend.get_hostname()}", last_words(host)))
    return report
