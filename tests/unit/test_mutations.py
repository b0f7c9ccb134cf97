"""The faults that `make test-mutations` puts into the roles: each can be put there, and its tests exist."""

from __future__ import annotations

import re
import subprocess
from collections import Counter

import pytest

from tests.mutate import KINDS, PATCHES, ROOT, Fault, faults
from tests.run import scenarios, selected

FAULTS = faults()
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_the_role_it_is_named_after(fault: Fault) -> None:
    tried = ["git", "apply", "--check", fault.path]
    done = subprocess.run(tried, cwd=ROOT, text=True, check=False, capture_output=True)
    assert done.returncode == 0, f"make the patch anew: {done.stderr}"
    changed = re.findall(r"^diff --git a/(\S+) b/\1$", fault.path.read_text(), re.MULTILINE)
    assert changed and all(path.startswith(f"roles/{fault.role}/") for path in changed)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_names_the_tests_that_must_notice(fault: Fault) -> None:
    assert fault.kind in KINDS
    assert fault.what[0].isupper() and not fault.what.endswith(".")
    assert selected(fault.caught_by).keys() <= {"lint", "unit", "molecule"}
    if name := re.match(r"test_\w+", fault.words):
        places = [ROOT / "tests/unit", *(ROOT / "molecule" / one / "tests" for one in scenarios())]
        tests = [path.read_text() for place in places for path in place.glob("test_*.py")]
        assert any(f"def {name[0]}(" in text for text in tests), f"no test is called {name[0]}"


def test_every_role_has_a_fault_and_every_kind_has_several() -> None:
    assert {fault.role for fault in FAULTS} == set(ROLES)
    assert min(Counter(fault.kind for fault in FAULTS)[kind] for kind in KINDS) >= 3
    assert len(FAULTS) == len(list(PATCHES.iterdir()))
