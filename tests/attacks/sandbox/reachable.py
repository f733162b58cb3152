"""A copy of the project that ordinary users can reach: a checkout may lie where only its owner may look, as may the interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("msgspec", "blake3", "wasmtime")
USER = 60_077
"""Any number that nobody has: an account need not exist."""
TIMEOUT_S = 90.0
_WHOLE = ("p2pgrid", "tests/attacks/sandbox")


class Copy:
    """The project, and what it needs, below a folder that everybody may enter."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="p2pgrid-reachable-", dir="/var/tmp"))  # Not below pytest's own: that is private.
        self.folder.chmod(0o755)
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        for name in _WHOLE:
            shutil.copytree(ROOT / name, self.folder / name, ignore=ignored)
        for name in PACKAGES:
            found = importlib.util.find_spec(name)
            if found is not None and found.origin is not None:
                shutil.copytree(Path(found.origin).parent, self.folder / name, ignore=ignored)
        # Not below the copy: units may read where their libraries lie.
        self._homes = Path(tempfile.mkdtemp(prefix="p2pgrid-homes-", dir="/var/tmp"))
        self._homes.chmod(0o755)

    def python(self) -> str:
        """An interpreter of our version that an ordinary user may start, or an empty string."""
        return interpreter_for_anybody()

    def run(self, user: int, *arguments: str) -> dict[str, Any]:
        """What the driver prints when ``user`` (0: who we are) starts it; ``{"failure": text}`` when it fails."""
        home = self._homes / str(user)
        home.mkdir(exist_ok=True, mode=0o700)
        if user:
            os.chown(home, user, user)
            self._hand_on_programs(home, user)
        ended = subprocess.run(
            [self.python(), "-s", "-B", str(self.folder / "tests/attacks/sandbox/driver.py"), *arguments],
            env={"PYTHONPATH": str(self.folder), "HOME": str(home), "PATH": os.defpath, "LANG": "C.UTF-8"},
            cwd=self.folder,
            user=user or None,
            group=user or None,
            extra_groups=[] if user else None,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if ended.returncode:
            return {"failure": f"the driver failed: {ended.stderr.decode(errors='replace')[-2000:]}"}
        return dict(json.loads(ended.stdout))

    def _hand_on_programs(self, home: Path, user: int) -> None:
        """Compiling the Python runner takes long: one user's is good for the next."""
        compiled, place = self._homes / "0" / "programs", home / "programs"
        if not compiled.is_dir():
            return
        place.mkdir(exist_ok=True, mode=0o700)
        os.chown(place, user, user)
        for source in compiled.glob("*.cwasm"):
            if not (target := place / source.name).exists():
                shutil.copy(source, target)
                os.chown(target, user, user)

    def remove(self) -> None:
        """Take it away."""
        for folder in (self.folder, self._homes):
            shutil.rmtree(folder, ignore_errors=True)


@lru_cache(maxsize=1)
def interpreter_for_anybody() -> str:
    """An interpreter of the version of this one that does not lie in a private folder, or an empty string."""
    own = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for place in (os.path.realpath(sys.executable), f"/usr/bin/{own}", f"/usr/local/bin/{own}"):
        if not os.path.exists(place):
            continue
        as_user: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
        try:
            told = subprocess.run([place, "-I", "-c", "import json, ctypes"], check=False, timeout=10, stderr=subprocess.DEVNULL, **as_user)
        except OSError:
            continue
        if told.returncode == 0:
            return place
    return ""
