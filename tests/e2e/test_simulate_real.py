"""Real processes come to the verdict of the simulator: eight nodes, three of them killed, nothing lost and nothing wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.grids import cli

AGREEMENT = Path(__file__).resolve().parents[2] / "scenarios" / "grids" / "agreement.toml"
COUNTS = ("scenario", "ok", "nodes", "units", "files", "lost", "accepted_wrong", "accepted_twice", "violations")


def simulated(*words: str, timeout_s: float = 50) -> dict[str, Any]:
    done = cli(None, "simulate", AGREEMENT, "--seed", "1", "--json", *words, timeout_s=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def running_below(folder: Path) -> list[str]:
    """Command lines of processes that mention a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in line:
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.mark.slow
def test_real_processes_agree_with_the_simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Temporary files in a folder of their own show what is left behind.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    real = simulated("--real")
    assert real["ok"], real["violated"]
    assert (real["nodes"], real["lost"], real["accepted_wrong"], real["accepted_twice"]) == (8, 0, 0, 0)
    assert sum(real["faults"].values()) > 0
    assert all(job["correct"] == job["units"] > 0 and job["state"] == "done" for job in real["jobs"])
    assert running_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []

    virtual = simulated()
    assert {name: virtual[name] for name in COUNTS} == {name: real[name] for name in COUNTS}
    assert {job["name"]: (job["units"], job["correct"]) for job in virtual["jobs"]} == {
        job["name"]: (job["units"], job["correct"]) for job in real["jobs"]
    }
