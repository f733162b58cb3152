"""The life of a node and of a job as their owner leads it: start, stop, start again; detach, look, cancel, interrupt."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from tests.e2e.grids import SLEEPERS, Grid, Member, cli, end_detached, grid_of, live_peers, start_cli, start_node, until


def newer(member: Member, known: set[str]) -> str:
    """The job that came after those that are known, or nothing yet."""
    jobs = [str(line["job"]) for line in member.document("jobs")["jobs"]]
    return next((job for job in jobs if job not in known), "")


def known_jobs(member: Member) -> set[str]:
    return {str(line["job"]) for line in member.document("jobs")["jobs"]}


def test_a_detached_node_comes_back_to_its_grid_with_its_jobs(tmp_path: Path) -> None:
    with grid_of(2, tmp_path, "--storage", "200M") as grid:
        home = tmp_path / "third"
        invite = grid[0].run("invite")
        assert (invite.returncode, invite.stdout.count("\n"), invite.stderr) == (0, 1, "")
        try:
            first = cli(home, "join", "--detach", invite.stdout.strip(), "--listen", "127.0.0.1:0", "--cpus", "1", "--name", "third")
            assert (first.returncode, first.stdout) == (0, ""), first.stderr
            assert first.stderr.startswith("ready: node ")
            ran = cli(home, "run", SLEEPERS, "20", "0.01")
            assert (ran.returncode, ran.stdout) == (0, "20 answers in order\n"), ran.stderr
            job = json.loads(cli(home, "jobs", "--json").stdout)["jobs"][0]["job"]
            left = cli(home, "leave")
            assert (left.returncode, left.stderr) == (0, "left\n")
            assert cli(home, "peers").returncode == 69
            stopped = cli(home, "run", SLEEPERS, "5", "0.01")
            assert (stopped.returncode, stopped.stdout) == (0, "5 answers in order\n"), stopped.stderr
            assert "the node of this home is not running: it is started for this command" in stopped.stderr
            again = cli(home, "join", "--detach")
            assert again.returncode == 0
            assert again.stderr.startswith("ready: node ")
            peers = json.loads(cli(home, "peers", "--json").stdout)["peers"]
            assert sorted(peer["live"] for peer in peers) == [True, True, True]
            assert [peer["name"] for peer in peers if peer["self"]] == ["third"]
            old = cli(home, "results", job[:12])
            assert (old.returncode, old.stdout) == (0, "20 answers in order\n"), old.stderr
        finally:
            end_detached(home)


def test_a_detached_job_is_looked_at_and_waited_for(single: Grid) -> None:
    member = single[0]
    started = member.run("run", "--detach", SLEEPERS, "30", "0.05")
    assert (started.returncode, started.stdout.count("\n")) == (0, 1)
    assert "no other node could take the job" in started.stderr
    job = started.stdout.strip()
    early = member.run("results", job)
    assert early.returncode == 75
    assert "the job has not ended yet" in early.stderr
    waited = member.run("results", job[:10], "--wait")
    assert (waited.returncode, waited.stdout) == (0, "30 answers in order\n"), waited.stderr
    document = member.document("results", job)
    assert (document["job"], document["state"], document["results"]) == (job, "done", ["30 answers in order\n"])
    table = member.run("jobs").stdout
    assert job[:8] in table
    assert "…" not in table


def test_a_cancelled_job_ends_at_once_and_gives_the_cores_back(single: Grid) -> None:
    member = single[0]
    known = known_jobs(member)
    process = start_cli(member.home, "run", SLEEPERS, "1000", "0.5")
    job = until(lambda: newer(member, known), "the job runs")
    until(lambda: member.document("peers")["peers"][0]["running"], "a unit runs")
    cancelled_s = time.monotonic()
    cancel = member.run("cancel", job[:10])
    assert (cancel.returncode, cancel.stdout, cancel.stderr) == (0, "", "job cancelled\n")
    stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout) == (1, "")
    assert "was cancelled" in stderr
    until(lambda: not member.document("peers")["peers"][0]["running"], "the cores are free")
    assert time.monotonic() - cancelled_s < 4.0
    assert member.run("results", job).returncode == 1


def test_ctrl_c_cancels_the_job(single: Grid) -> None:
    member = single[0]
    known = known_jobs(member)
    process = start_cli(member.home, "run", SLEEPERS, "1000", "0.5")
    job = until(lambda: newer(member, known), "the job runs")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout) == (130, ""), stderr
    assert "Traceback" not in stderr
    assert member.job(job)["state"] == "cancelled"


def test_ctrl_c_does_not_wait_for_inputs(single: Grid, tmp_path: Path) -> None:
    script, mark = tmp_path / "slow.py", tmp_path / "mark"
    lines = [
        "import time",
        "def inputs(mark):",
        "    open(mark, 'w').close()",
        "    time.sleep(100)",
        "    yield 1",
        "def work(item):",
        "    return item",
    ]
    script.write_text("\n".join(lines))
    process = start_cli(single[0].home, "run", script, mark)
    until(mark.exists, "inputs() runs")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=10)
    assert (process.returncode, stdout, stderr) == (130, "", "stopped\n")


def test_ctrl_c_ends_a_local_grid(home: Path) -> None:
    process = start_cli(home, "run", "--local", "2", SLEEPERS, "1000", "0.5")
    assert process.stderr is not None
    assert process.stderr.readline() == "starting 2 local nodes\n"
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, "")


def test_one_look_at_the_dashboard(single: Grid) -> None:
    done = single[0].run("top", "--once")
    assert (done.returncode, done.stderr) == (0, "")
    assert "peers 1/1" in done.stdout
    assert "this node" in done.stdout
    assert "…" not in done.stdout


def test_a_node_ends_by_signal_in_good_order(home: Path) -> None:
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        node = start_node(home)
        try:
            until(lambda: node.ready, "the node is ready")  # noqa: B023 - it is called at once
            assert live_peers(node) == 1
            node.process.send_signal(number)
            assert node.process.wait(10) == code
        finally:
            node.stop()


def test_a_node_killed_without_a_word_starts_again(home: Path) -> None:
    node = start_node(home)
    try:
        until(lambda: node.ready, "the node is ready")
        node.kill()
        assert cli(home, "peers").returncode == 69
        node = start_node(home)
        until(lambda: node.ready, "the node is ready again")
        assert live_peers(node) == 1
    finally:
        node.stop()


def test_a_run_whose_own_node_dies_says_where_its_results_may_be(home: Path) -> None:
    node = start_node(home)
    try:
        until(lambda: node.ready, "the node is ready")
        process = start_cli(home, "run", SLEEPERS, "1000", "0.1")
        job = until(lambda: newer(node, set()), "the job runs")
        node.kill()
        stdout, stderr = process.communicate(timeout=20)
        assert (process.returncode, stdout) == (69, ""), stderr
        assert f"p2pgrid results {job}" in stderr
        assert "Traceback" not in stderr
    finally:
        node.stop()


def test_jobs_that_may_run_nowhere_say_what_they_wait_for(tmp_path: Path) -> None:
    with grid_of(1, tmp_path, "--cpus", "0") as grid:
        process = start_cli(grid[0].home, "run", SLEEPERS, "2")
        try:
            assert process.stderr is not None
            assert "no node is there that may run this job" in process.stderr.readline()
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=10)
        assert process.returncode == 130
