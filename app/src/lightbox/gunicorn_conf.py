"""Settings of gunicorn for the API and the UI: ``gunicorn --config python:lightbox.gunicorn_conf MODULE:app``.

Arguments on the command line win over what is here. Environment:

``LIGHTBOX_BIND``                address and port (default ``127.0.0.1:5000``)
``LIGHTBOX_WORKERS``             processes that answer (default 2)
``LIGHTBOX_TIMEOUT``             seconds after which a worker that stopped responding is replaced (default 120)
``LIGHTBOX_FORWARDED_ALLOW_IPS`` peers whose X-Forwarded-* headers are believed, comma separated (default 127.0.0.1)
``LIGHTBOX_LOG_LEVEL``           debug, info, warning or error (default info)
``PROMETHEUS_MULTIPROC_DIR``     where workers keep their counters (default: a folder of its own under
                                 ``$RUNTIME_DIRECTORY``, else under the temporary directory)

Code and model are loaded once, in the master, so that workers share their memory and answer as soon as they are there.
A HUP makes the master load the model that the bundle link then leads to and replace the workers; the old ones finish
what they have begun. New code needs a restart.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

bind = os.environ.get("LIGHTBOX_BIND", "127.0.0.1:5000")
workers = int(os.environ.get("LIGHTBOX_WORKERS", "2"))
worker_class = "lightbox.worker.GracefulWorker"
preload_app = True
timeout = int(os.environ.get("LIGHTBOX_TIMEOUT", "120"))
graceful_timeout = 25
# Longer than any client or proxy in front keeps an idle connection, so that they close it, never we.
keepalive = 75
forwarded_allow_ips = os.environ.get("LIGHTBOX_FORWARDED_ALLOW_IPS", "127.0.0.1")
loglevel = os.environ.get("LIGHTBOX_LOG_LEVEL", "info")
errorlog = "-"
# Requests are logged by the application, with their id.
accesslog = None
# Signals steer the service; a socket that answers commands is one more way in.
control_socket_disable = True
# The heartbeat file must not be on a disk that can stall.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  gunicorn makes a file of its own in it

# prometheus_client reads the variable when it is imported, hence here and not in a hook.
if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if runtime:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(Path(runtime) / "metrics")
    else:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="lightbox-metrics-")
Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).mkdir(mode=0o700, parents=True, exist_ok=True)
# Counters of processes long gone; the application is not loaded yet, so none is in use.
for _left in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("*.db"):
    _left.unlink(missing_ok=True)

# glibc's mallopt(3): from how many bytes on an allocation is a mapping of its own, and goes back when it is freed. What
# is smaller is kept: for each prediction to take its memory anew would cost an eighth of a prediction in page faults.
M_MMAP_THRESHOLD = -3
MAPPED_BYTES = 4 * 1024 * 1024
# How many heaps its threads may spread over. One is held at a time here anyway: that of the thread that computes.
M_ARENA_MAX, ARENAS = -8, 1


def _libc(function: str, *arguments: int) -> None:
    """Call a function of the C library, where it has it."""
    with contextlib.suppress(OSError, AttributeError):
        getattr(ctypes.CDLL(None), function)(*arguments)


_libc("mallopt", M_MMAP_THRESHOLD, MAPPED_BYTES)
_libc("mallopt", M_ARENA_MAX, ARENAS)


def _prepare(server: Any) -> None:
    """Let the application do in the master what its workers can share."""
    prepare = getattr(server.app.callable.state, "prepare", None)
    if prepare is not None:
        prepare()
    # What is there now stays: the collector must not touch, and so copy, the pages that workers share.
    gc.collect()
    # Reading a model takes more than twice its size for a moment; workers would write to copies of what is left of it.
    _libc("malloc_trim", 0)
    gc.freeze()


def when_ready(server: Any) -> None:
    """Prepare the first workers."""
    _prepare(server)


def on_reload(server: Any) -> None:
    """Prepare the workers that take over."""
    gc.unfreeze()
    _prepare(server)


def child_exit(server: Any, worker: Any) -> None:
    """Forget the gauges and the connections of a worker that is gone; its counters stay in the sums."""
    from prometheus_client import multiprocess

    from lightbox.balance import TALLY

    TALLY.leave(worker.age)
    multiprocess.mark_process_dead(worker.pid)


def on_exit(server: Any) -> None:
    """Leave no counters behind in the temporary directory."""
    directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    if directory.name.startswith("lightbox-metrics-"):
        shutil.rmtree(directory, ignore_errors=True)
