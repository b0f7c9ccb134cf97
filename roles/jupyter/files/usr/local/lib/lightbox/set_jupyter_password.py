"""Write the hash of JupyterLab's password, read from standard input, unless the file has one of it already.

``python set_jupyter_password.py FILE GROUP``, with the Python that runs JupyterLab; says ``changed`` or ``same``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from jupyter_server.auth import passwd, passwd_check


def main(file: Path, group: str, password: str) -> str:
    """Make the file hold a hash of the password, readable by root and the group alone; return what was done."""
    try:
        known = json.loads(file.read_text())["PasswordIdentityProvider"]["hashed_password"]
    except (OSError, ValueError, KeyError, TypeError):
        known = ""
    if known and passwd_check(known, password):
        return "same"
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        json.dump({"PasswordIdentityProvider": {"hashed_password": passwd(password, "argon2")}}, stream)
        stream.write("\n")
    shutil.chown(part, "root", group)
    part.chmod(0o640)
    part.replace(file)
    return "changed"


if __name__ == "__main__":
    sys.stdout.write(main(Path(sys.argv[1]), sys.argv[2], sys.stdin.read()) + "\n")
