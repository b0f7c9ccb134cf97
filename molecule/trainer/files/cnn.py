"""Stands in for the training program in this scenario: it says what it was given, where it is told to listen too, and
can be told to die once, and to end once as if another host were lost."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
config = json.loads(Path(arguments["--config"]).read_text(encoding="utf-8"))
runs = Path(arguments["--runs"])
data = Path(config["data"])
files = sorted(path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()) if data.is_dir() else []
progress = {"state": "training", "config": config, "files": files, "starts": len(list(runs.glob("start-*"))) + 1}
progress["cluster"] = json.loads(os.environ.get("TF_CONFIG", "null"))
(runs / f"start-{progress['starts']}").touch()
Path(arguments["--progress"]).write_text(json.dumps(progress), encoding="utf-8")
server = HTTPServer((config["metrics_address"], config["metrics_port"]), SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
if config.get("refuse"):
    sys.exit(1)
if config.get("die") and progress["starts"] == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if config.get("lose") and progress["starts"] == 2:
    sys.exit(3)
time.sleep(config.get("seconds", 0))
Path(arguments["--progress"]).write_text(json.dumps({**progress, "state": "done"}), encoding="utf-8")
