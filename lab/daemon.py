"""The lab's one process: the API, its journal, and the thread that keeps the hosts in step with it.

``python -m lab up`` starts it in the background. It holds ``lab.pid`` locked while it lives, so that whether it lives
is never a guess. SIGTERM ends it and leaves the hosts running; the next start finds them again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.settings import ROOT, Settings

log = logging.getLogger("lab")

SAFETY_NET_SECONDS = 0.5
RETRY_SECONDS = 1.0
SETTLE_SECONDS = 0.1
LOOK_EVERY_SECONDS = 1.0


class AlreadyRunningError(RuntimeError):
    """Another process holds this lab."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the lock file, with this process's id in it, for as long as the context lasts.

    Raises:
        AlreadyRunningError: another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AlreadyRunningError(f"{path} is held by process {process(path)}") from error
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def process(path: Path) -> int | None:
    """Return the id of the process that holds a lock file, or None when none does."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.read(descriptor, 32).decode().strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(descriptor)
    return None


class Keeper(threading.Thread):
    """Applies the world to this machine after every change, and twice a second in case one was missed.

    Args:
        api: the API whose world is applied.
        reconciler: has ``apply(world)``, which sets out to bring the machine to the world, and ``wait(seconds)``,
            which says whether it is there.
        hooks: told of instances that have stopped.
        wake: set by everything that changes the world.
    """

    def __init__(self, api: Any, reconciler: Any, hooks: Any, wake: threading.Event) -> None:
        super().__init__(name="keeper", daemon=True)
        self._api = api
        self._reconciler = reconciler
        self._hooks = hooks
        self._wake = wake
        self._ending = threading.Event()
        self._complaint = ""

    def run(self) -> None:
        """Keep the machine in step until told to end; no failure ends it."""
        while not self._ending.is_set():
            self._wake.wait(SAFETY_NET_SECONDS)
            self._wake.clear()
            try:
                self.step()
            except Exception as error:
                # The same trouble twice a second is said once.
                if repr(error) != self._complaint:
                    log.exception("the hosts could not be brought in step; trying again every %.0f s", RETRY_SECONDS)
                self._complaint = repr(error)
                self._ending.wait(RETRY_SECONDS)
            else:
                self._complaint = ""

    def step(self) -> None:
        """Apply the world once; instances that were stopping in it are stopped once no host has work left to do."""
        world = self._api.observe()
        self._reconciler.apply(world)
        stopping = [instance.id for instance in world.instances if instance.state == "stopping"]
        if not stopping:
            return
        if self._reconciler.wait(SETTLE_SECONDS):
            for instance_id in stopping:
                self._hooks.mark_stopped(instance_id)
        else:
            self._wake.set()

    def end(self) -> None:
        """Finish the step under way and stop."""
        self._ending.set()
        self._wake.set()
        self.join(timeout=30)


class Housekeeper(threading.Thread):
    """Forgets instances some minutes after they were terminated, and ends those whose notice is over."""

    def __init__(self, api: Any, on_change: Callable[[], None] = lambda: None) -> None:
        super().__init__(name="housekeeper", daemon=True)
        self._api = api
        self._on_change = on_change
        self._ending = threading.Event()

    def run(self) -> None:
        """Look every second until told to end."""
        while not self._ending.wait(LOOK_EVERY_SECONDS):
            try:
                self.step()
            except Exception:
                log.exception("instances could not be forgotten or ended")

    def step(self) -> None:
        """Do what is due."""
        from lab.api import lifecycle, spot

        taken = self._api.journal.read(lambda: spot.due(self._api.ec2))
        if taken:
            self._api.journal.perform("interrupted", instance_ids=taken)
            self._on_change()
        due = self._api.journal.read(lambda: lifecycle.outdated(self._api.ec2, self._api.settings.prune_seconds))
        if due:
            self._api.journal.perform("prune", instance_ids=due)

    def end(self) -> None:
        """Stop."""
        self._ending.set()


def make_directory(settings: Settings) -> None:
    """Make the lab's directory; under sudo it belongs to the caller, whose playbooks keep their keys in it."""
    settings.lab_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    caller, group = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() == 0 and caller.isdigit() and group.isdigit():
        os.chown(settings.lab_dir, int(caller), int(group))


def run(settings: Settings) -> None:
    """Be the lab's process until SIGTERM or SIGINT."""
    make_directory(settings)
    with held(settings.lock_file):
        ending = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ending.set())
        _serve(settings, ending)


def _serve(settings: Settings, ending: threading.Event) -> None:
    from lab.api.server import Api, Hooks, serve

    wake = threading.Event()
    started = time.monotonic()
    api = Api(settings, on_change=wake.set)
    replayed = api.open()
    server = serve(api)
    _note_mode(settings)
    log.info(
        "the API answers at %s (%d calls replayed, %.1f s)", settings.endpoint, replayed, time.monotonic() - started
    )
    hooks = Hooks(api, on_change=wake.set)
    workers: list[Any] = [Housekeeper(api, wake.set)]
    reconciler = None
    if not settings.api_only:
        from lab.hosts.reconciler import Reconciler

        reconciler = Reconciler(settings, hooks, api.instance_app)
        workers.append(Keeper(api, reconciler, hooks, wake))
    for worker in workers:
        worker.start()
    try:
        ending.wait()
        log.info("stopping; hosts stay as they are")
    finally:
        server.shutdown()
        for worker in workers:
            worker.end()
        if reconciler is not None:
            reconciler.close()
        api.close()


def _note_mode(settings: Settings) -> None:
    draft = settings.mode_file.with_suffix(".part")
    draft.write_text(
        json.dumps({"hosts": not settings.api_only, "enforce_iam": settings.enforce_iam, "port": settings.port}) + "\n"
    )
    draft.replace(settings.mode_file)


def start(settings: Settings) -> subprocess.Popen[bytes]:
    """Start the lab's process in the background, in a session of its own, and return it."""
    make_directory(settings)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # Sets of strings are walked in the same order in every process: moto's answers depend on it here and there.
    environment |= {"PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)}
    options = ["--api-only"] * settings.api_only + ["--enforce-iam"] * settings.enforce_iam
    with settings.log_file.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "lab.daemon", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environment,
            start_new_session=True,
        )


def main() -> int:
    """Run in the foreground: the entry point of the background process."""
    parser = argparse.ArgumentParser(description="The lab's process; started by 'python -m lab up'.")
    parser.add_argument("--api-only", action="store_true")
    parser.add_argument("--enforce-iam", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
    )
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    try:
        run(Settings.load(api_only=options.api_only, enforce_iam=options.enforce_iam))
    except Exception:
        log.exception("the lab ends")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
