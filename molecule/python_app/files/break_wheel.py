"""Copy a wheel with one module that raises. Usage: break_wheel.py WHEEL DIRECTORY MODULE"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

wheel, directory, module = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
directory.mkdir(parents=True, exist_ok=True)
with zipfile.ZipFile(wheel) as good, zipfile.ZipFile(directory / wheel.name, "w") as bad:
    if module not in good.namelist():
        sys.exit(f"{wheel} has no {module}")
    for name in good.namelist():
        data = b'raise RuntimeError("broken on purpose")\n' if name == module else good.read(name)
        # The record would tell of the change: its line goes without a digest, as the format allows.
        if name.endswith(".dist-info/RECORD"):
            lines = data.decode().splitlines(keepends=True)
            data = "".join(f"{module},,\n" if line.startswith(f"{module},") else line for line in lines).encode()
        bad.writestr(name, data)
