"""Action plugin: follow a training run on its host and show how far it is, line by line, until it ends."""

from __future__ import annotations

import json
import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

ENDED = ("done", "unchanged")

display = Display()


def describe(progress: dict[str, Any]) -> str:
    """Return one line about a progress file's contents."""
    state = progress.get("state", "preparing")
    if state != "training":
        return f"{state}: {progress.get('message') or ''}".rstrip(": ")
    parts = [f"epoch {progress.get('epoch', 0)}/{progress.get('epochs', '?')}"]
    if progress.get("steps"):
        parts.append(f"step {progress.get('step', 0)}/{progress['steps']}")
    if progress.get("images_per_second"):
        parts.append(f"{progress['images_per_second']:.0f} images/s")
    for key in ("loss", "accuracy", "val_loss", "val_accuracy", "val_auroc"):
        if progress.get(key) is not None:
            parts.append(f"{key} {progress[key]:.4f}")
    if progress.get("eta_seconds") is not None:
        minutes, seconds = divmod(int(progress["eta_seconds"]), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return ", ".join(parts)


class ActionModule(ActionBase):
    """See the module of this name."""

    _VALID_ARGS = frozenset(("path", "unit", "interval", "timeout"))
    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Follow the run; return the last progress as `progress`."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        args = self._task.args
        for name in ("path", "unit"):
            if not args.get(name):
                raise AnsibleActionFail(f"training_progress needs '{name}'")
        interval, timeout = float(args.get("interval", 3)), float(args.get("timeout", 0))
        if self._task.check_mode:
            return {**result, "changed": False, "progress": {"state": "unchanged", "bundle": None}}

        host = (task_vars or {}).get("inventory_hostname", "")
        started = time.monotonic()
        shown, shown_at = "", 0.0
        while True:
            progress, active = self._look(args["path"], args["unit"])
            line = describe(progress)
            ended = progress.get("state") in (*ENDED, "failed")
            # A new phase or epoch is shown at once, steps of one epoch every ten seconds.
            phase = (progress.get("state"), progress.get("epoch"))
            if line != shown and (ended or phase != getattr(self, "_phase", None) or time.monotonic() - shown_at >= 10):
                display.display(f"[{host}] {line}")
                shown, shown_at, self._phase = line, time.monotonic(), phase
            if progress.get("state") in ENDED and not active:
                return {**result, "changed": progress["state"] == "done", "progress": progress}
            if not active:
                journal = self._command(f"journalctl -u {args['unit']} -n 40 --no-pager -o cat")
                reason = progress.get("message") or "the unit stopped before the run was done"
                return {**result, "failed": True, "msg": f"Training failed: {reason}", "journal": journal.splitlines()}
            if timeout and time.monotonic() - started > timeout:
                return {**result, "failed": True, "msg": f"Training took longer than {timeout:.0f} s: {line}"}
            time.sleep(interval)

    def _command(self, command: str) -> str:
        return str(self._low_level_execute_command(command, executable="/bin/sh").get("stdout", ""))

    def _look(self, path: str, unit: str) -> tuple[dict[str, Any], bool]:
        """Return the progress file's contents and whether the unit is at work, in one round trip."""
        answer = self._command(f"systemctl is-active {unit}; cat {path} 2>/dev/null")
        state, _newline, text = answer.partition("\n")
        try:
            progress = json.loads(text)
        except ValueError:
            progress = {}
        return progress, state.strip() in ("active", "activating", "reloading", "deactivating")
