"""CPU accounting: whose time counts, and that nothing is counted twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bench import cpu
from bench.cpu import Spent

TREE = {
    1: Spent(0, 100.0, 100.0),
    10: Spent(1, 1.0, 0.5),
    11: Spent(10, 2.0, 0.25),
    12: Spent(11, 4.0, 0.0),
    20: Spent(1, 50.0, 50.0),
}


def test_descendants_count_as_inherited_unless_they_are_named():
    assert cpu.by_role(TREE, 10, {10: "submitter", 11: "node"}, "worker") == {"submitter": 1.0, "node": 2.0, "worker": 4.75}


def test_processes_outside_the_tree_do_not_count():
    assert sum(cpu.by_role(TREE, 10, {}, "all").values()) == 7.75


def test_what_ended_children_took_is_counted_once_with_its_role():
    before = cpu.by_role({10: Spent(1, 1.0, 0.0), 11: Spent(10, 3.0, 0.0)}, 10, {10: "node"}, "worker")
    after = cpu.by_role({10: Spent(1, 1.5, 3.25)}, 10, {10: "node"}, "worker")
    assert cpu.difference(after, before) == {"node": 0.5, "worker": 0.25}


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's accounts")
def test_the_clock_of_another_process_is_its_cpu_time():
    spin = "import time\nwhile time.process_time() < 0.1: pass\nprint(time.process_time(), flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        said_s = float(child.stdout.readline())
        spent = cpu.read_processes()[child.pid]
        assert spent.parent == os.getpid()
        assert said_s <= spent.own_s < said_s + 0.1
        child.communicate(b"\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's accounts")
def test_own_time_is_read_as_the_process_itself_reads_it():
    before_s = time.process_time()
    assert before_s <= cpu.read_processes()[os.getpid()].own_s <= time.process_time()
