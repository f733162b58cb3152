"""Scenario files: what is read, what is refused and where, and what a seed draws from one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.errors import BadDataError, P2PGridError
from p2pgrid.testing.plans.scenario import (
    FAULT_KINDS,
    FAULT_MEANINGS,
    NodePlan,
    draw,
    draw_count,
    load,
    parse,
    plan,
)

SMALL = """
about = "two kinds"
duration_s = [40, 60]

[network]
latency_s = [0.01, 0.1]
bandwidth_bytes_s = ["1MiB", "2MiB"]

[[nodes]]
kind = "founder"

[[nodes]]
kind = "lab"
count = [3, 9]
speed = [0.5, 2]
storage_bytes = "64MiB"
churn = "ipfs"
stable = 0.5

[[jobs]]
name = "one"
units = [10, 20]

[[jobs]]
name = "two"
submitter = "lab"
at_s = [1, 4]

[[files]]
count = [2, 5]
size_bytes = ["1k", "2k"]
every_s = [1, 2]
"""
FAULT = '[[faults]]\nkind = "restart"\nat_s = [5, 10]\nevery_s = [3, 6]\nfor_s = [1, 9]\nnodes = [1, 3]\nspare = "founder lab"\n'


def test_a_file_says_what_it_says_and_the_rest_is_default() -> None:
    scenario = parse(SMALL, "small")
    assert scenario.name == "small"
    assert scenario.duration_s == (40.0, 60.0)
    assert scenario.network.bandwidth_bytes_s == (1 << 20, 2 << 20)
    assert scenario.network.jitter_s == 0.002
    assert [node.kind for node in scenario.nodes] == ["founder", "lab"]
    assert scenario.nodes[1].storage_bytes == 64 << 20
    assert scenario.nodes[1].count == (3, 9)
    assert scenario.files[0].size_bytes == (1024, 2048)
    assert parse('name = "mine"\n' + SMALL, "small").name == "mine"


REFUSED = [
    ("nodes = [", "not valid TOML", "scenario files are TOML"),
    ('abuot = "x"\n' + SMALL, "unknown key 'abuot'", "did you mean 'about'?"),
    ("zzz = 1\n" + SMALL, "unknown key 'zzz'", "known are name, about, engine"),
    ('folder = "/srv"\n' + SMALL, "unknown key 'folder'", "known are"),
    (SMALL.replace('about = "two kinds"', ""), "lacks the key 'about'", "docs/reference"),
    (SMALL.replace("two kinds", " "), "about: is empty", "say in a sentence"),
    ('name = "a/b"\n' + SMALL, "name: 'a/b' is not plain", "letters"),
    ("name = 3\n" + SMALL, "name: expected 'str', got 'int'", "docs/reference"),
    ('engine = "hole"\n' + SMALL, "unknown engine 'hole'", "did you mean 'whole'?"),
    ('signatures = "none"\n' + SMALL, "unknown signatures 'none'", "known are oracle, real"),
    ("settle_s = 0\n" + SMALL, "settle_s: 0 is not within 0.001 to", ""),
    ("settle_s = nan\n" + SMALL, "settle_s: is no finite number", ""),
    ('about = "x"', "lacks the key 'nodes'", ""),
    ('about = "x"\nnodes = []', "nodes: is empty", "at least one"),
    ('about = "x"\nnodes = [3]', "[[nodes]] 1: expected 'object', got 'int'", ""),
    (
        SMALL.replace("latency_s = [0.01, 0.1]", "latency_s = [0.2, 0.1]"),
        "[network]: latency_s: the low 0.2 is above the high 0.1",
        "[low, high]",
    ),
    (SMALL.replace("latency_s = [0.01, 0.1]", "latency_s = [1, 2, 3]"), "[network]: latency_s: expected", ""),
    (SMALL.replace("latency_s = [0.01, 0.1]", "loss = 1.5"), "[network]: loss: 1.5 is not within 0 to 1", ""),
    (SMALL.replace("latency_s", "latency"), "[network]: unknown key 'latency'", "did you mean 'latency_s'?"),
    (SMALL.replace("speed =", "sped ="), "[[nodes]] 2: unknown key 'sped'", "did you mean 'speed'?"),
    (SMALL.replace('"64MiB"', '"much"'), "[[nodes]] 2: storage_bytes: 'much' is not a size", '"64MiB"'),
    (SMALL.replace('"64MiB"', '["1M", "x"]'), "[[nodes]] 2: storage_bytes: 'x' is not a size", '"64MiB"'),
    (SMALL.replace("count = [3, 9]", "count = 2.5"), "[[nodes]] 2: count: expected", ""),
    (SMALL.replace("count = [3, 9]", "count = [3, 1990]"), "nodes: 1991 machines are over the 200", "take fewer"),
    (SMALL.replace("count = [3, 9]", "count = true"), "[[nodes]] 2: count: expected", ""),
    (SMALL.replace('"ipfs"', '"ipsf"'), "[[nodes]] 2: unknown churn 'ipsf'", "did you mean 'ipfs'?"),
    (SMALL.replace("stable = 0.5", "stable = 2"), "[[nodes]] 2: stable: 2 is not within 0 to 1", ""),
    (SMALL.replace("stable = 0.5", 'nat = "clone"'), "[[nodes]] 2: unknown nat 'clone'", "did you mean 'cone'?"),
    (SMALL.replace("stable = 0.5", 'behaviour = "evil"'), "[[nodes]] 2: unknown behaviour 'evil'", "known are honest"),
    (SMALL.replace("stable = 0.5", 'roles = ["wrok"]'), "[[nodes]] 2: unknown role 'wrok'", "did you mean 'work'?"),
    (SMALL.replace("stable = 0.5", "session_s = 0"), "[[nodes]] 2: session_s: 0 is not within", ""),
    (SMALL.replace("stable = 0.5", "bandwidth_bytes_s = [-1, 5]"), "[[nodes]] 2: bandwidth_bytes_s: is either -1", ""),
    (SMALL.replace('kind = "lab"', 'kind = "founder"'), "[[nodes]] 2: a second kind 'founder'", "a name of its own"),
    (SMALL.replace('kind = "lab"', 'kind = "Lab 1"'), "[[nodes]] 2: the kind 'Lab 1' is not plain", ""),
    (SMALL.replace('kind = "founder"', 'kind = "founder"\ncount = [0, 2]'), "[[nodes]] 1: 'founder' founds the grid", "count = 1"),
    (SMALL.replace('kind = "founder"', 'kind = "founder"\nroles = ["work", "submit"]'), "lacks the role 'store'", "add 'store'"),
    (SMALL.replace('kind = "founder"', 'kind = "founder"\nbehaviour = "lazy"'), "honest and open", ""),
    (SMALL.replace('name = "two"', 'name = "one"'), "[[jobs]] 2: a second job 'one'", "a name of its own"),
    (SMALL.replace('submitter = "lab"', 'submitter = "lap"'), "[[jobs]] 2: unknown kind of machine 'lap'", "did you mean 'lab'?"),
    (SMALL.replace("stable = 0.5", 'roles = ["work"]'), "[[jobs]] 2: 'lab' lacks the role 'submit'", "add it"),
    (SMALL.replace("units = [10, 20]", "quorum = 0"), "[[jobs]] 1: quorum: 0 is not within 1 to 64", ""),
    (SMALL.replace("units = [10, 20]", "unit_s = -1"), "[[jobs]] 1: unit_s: -1 is not within", ""),
    (SMALL.replace("units = [10, 20]", 'args = ["3"]'), "[[jobs]] 1: has args but no script", ""),
    (SMALL.replace("units = [10, 20]", "cancel_at_s = 5"), "[[jobs]] 1: cancel_at_s: may come before", "or 0 for never"),
    (SMALL.replace("units = [10, 20]", "at_s = 500"), "[[jobs]] 1: never happens", "at_s below 150"),
    (SMALL.replace("count = [2, 5]", "replicas = 0"), "[[files]] 1: replicas: 0 is not within", ""),
    (SMALL.replace("count = [2, 5]", 'by = "nobody"'), "[[files]] 1: unknown kind of machine 'nobody'", "known are"),
    (SMALL + '[expect]\naccepted_wrong = "few"', "[expect]: unknown accepted_wrong 'few'", "known are none, formula"),
    (SMALL + '[expect]\nreasons = ["clock-of"]', "[expect]: unknown reason 'clock-of'", "did you mean 'clock-off'?"),
    (SMALL + "[expect]\nunits_correct_min = 2", "[expect]: units_correct_min: 2 is not within 0 to 1", ""),
    (SMALL + "[core]\nlookups = 5", "[core]: has no effect on whole nodes", 'engine = "core"'),
    (SMALL + '[[faults]]\nkind = "crash"\n[[faults]]\nkind = "crsh"', "[[faults]] 2: unknown kind 'crsh'", "did you mean 'crash'?"),
    (SMALL + "[[faults]]\nat_s = 3", "[[faults]] 1: lacks the key 'kind'", "docs/reference"),
    (SMALL + '[[faults]]\nkind = "crash"\nof = "lob"', "[[faults]] 1: unknown kind of machine 'lob'", "did you mean 'lab'?"),
    (SMALL + '[[faults]]\nkind = "crash"\nspare = "founder lob"', "[[faults]] 1: unknown kind of machine 'lob'", "did you mean"),
    (SMALL + '[[faults]]\nkind = "crash"\nshare = -0.1', "[[faults]] 1: share: -0.1 is not within 0 to 1", ""),
    (SMALL + '[[faults]]\nkind = "crash"\nat_s = 60', "[[faults]] 1: never happens", "at_s below 60"),
    (SMALL + '[[faults]]\nkind = "crash"\nevery_s = [0, 5]', "[[faults]] 1: every_s: comes more than", "0 for once"),
    (SMALL + '[[faults]]\nkind = "crash"\nevery_s = 0.002', "[[faults]] 1: every_s: comes more than", "0 for once"),
    (SMALL + '[[faults]]\nkind = "slow"\nstrength = 0.5', "[[faults]] 1: strength: 0.5 is not within 1 to", ""),
    (SMALL + '[[faults]]\nkind = "lossy"\nstrength = 0', "[[faults]] 1: strength is the chance", ""),
    (SMALL + '[[faults]]\nkind = "flash-crowd"', "[[faults]] 1: flash-crowd does not say of which kind", "of = KIND"),
    (SMALL + '[[faults]]\nkind = "flash-crowd"\nof = "lab"\nnodes = 191', "nodes: 201 machines are over the 200", "take fewer"),
]


@pytest.mark.parametrize(("text", "message", "hint"), REFUSED)
def test_what_makes_no_sense_is_refused_with_its_place(text: str, message: str, hint: str) -> None:
    with pytest.raises(BadDataError) as caught:
        parse(text, "file")
    assert caught.value.message.startswith("file: ")
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint


def test_bounds_of_both_engines_differ() -> None:
    large = SMALL.replace("count = [3, 9]", "count = 1999")
    assert parse('engine = "core"\n' + large, "x").engine == "core"
    with pytest.raises(BadDataError, match="2001 machines"):
        parse('engine = "core"\n' + large.replace("1999", "2000"), "x")


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.integers(0, len(SMALL)), st.integers(0, 12))
def test_no_text_makes_it_raise_anything_else(noise: str, at: int, cut: int) -> None:
    with suppress(P2PGridError):
        parse(SMALL[:at] + noise + SMALL[at + cut :], "x")


SCALARS = st.one_of(st.integers(), st.floats(), st.text(max_size=8), st.booleans(), st.lists(st.floats(), max_size=3))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(NodePlan.__struct_fields__), SCALARS)
def test_what_is_taken_for_a_field_can_be_drawn(field: str, value: object) -> None:
    kind = "" if field == "kind" else 'kind = "lab"\n'
    # What JSON calls NaN and Infinity is lower case here, and short.
    written = json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")
    with suppress(BadDataError):
        plan(parse(f'about = "x"\n[[nodes]]\nkind = "founder"\n[[nodes]]\n{kind}{field} = {written}\n', "x"), 1)


# Files


def test_a_file_knows_its_name_and_folder(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace('name = "one"', 'name = "one"\nscript = "job.py"'))
    with pytest.raises(BadDataError, match=r"^small: \[\[jobs\]\] 1: there is no script 'job\.py'$"):
        load(path)
    (tmp_path / "job.py").write_text("def work(item): return item\n")
    scenario = load(path)
    assert (scenario.name, Path(scenario.folder)) == ("small", tmp_path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'about = "caf\xe9"')
    (tmp_path / "huge.toml").write_bytes(b"#" * ((1 << 20) + 1))
    for name, message in (("none.toml", "cannot be read"), (".", "cannot be read"), ("latin.toml", "UTF-8"), ("huge.toml", "longer")):
        with pytest.raises(BadDataError, match=message) as caught:
            load(tmp_path / name)
        assert caught.value.hint


def test_the_meaning_of_every_kind_of_fault_is_told() -> None:
    assert len(FAULT_KINDS) == 17
    assert tuple(FAULT_MEANINGS) == FAULT_KINDS
    assert all(FAULT_MEANINGS.values())


# Draws


def test_draws_stay_within_their_bounds_and_reach_them() -> None:
    rng = random.Random(1)
    counts = {draw_count((2, 5), rng) for _ in range(100)}
    assert counts == {2, 3, 4, 5}
    spans = [draw((2.0, 5.0), rng) for _ in range(500)]
    assert 2.0 <= min(spans) < 2.1 < 4.9 < max(spans) <= 5.0
    assert draw(3, rng) == 3.0
    assert draw_count(3, rng) == 3


def test_one_seed_gives_one_plan_and_another_another() -> None:
    scenario = parse(SMALL + FAULT, "small")
    assert plan(scenario, 7) == plan(scenario, 7)
    assert plan(scenario, 7) != plan(scenario, 8)
    assert len({len(plan(scenario, seed).machines) for seed in range(50)}) == 7


def test_plans_do_not_depend_on_the_hash_seed() -> None:
    code = (
        "import sys; from p2pgrid.testing.plans.scenario import parse, plan; from p2pgrid.testing.plans import churn; import random\n"
        "made = plan(parse(sys.stdin.read(), 'small'), 7)\n"
        "print(repr(made), [list(churn.sessions(one, random.Random(one.name), 60.0)) for one in made.machines])"
    )

    def run(hash_seed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=SMALL + FAULT,
            capture_output=True,
            text=True,
            timeout=15,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
        )
        return done.stdout

    assert run("1") == run("2")


def test_the_founder_is_first_and_machines_are_numbered_by_kind() -> None:
    swapped = parse(SMALL.replace('"founder"', '"swap"').replace('"lab"', '"founder"').replace('"swap"', '"lab"'), "swapped")
    machines = plan(swapped, 3).machines
    assert (machines[0].name, machines[0].founder, machines[0].joins_s) == ("founder-1", True, 0.0)
    assert not any(machine.founder for machine in machines[1:])
    assert sorted(machine.name for machine in machines if machine.kind == "lab") == ["lab-1"]
    assert [machine.name for machine in machines if machine.kind == "founder"] == [
        f"founder-{number}" for number in range(1, len(machines))
    ]


def test_founder_means_the_first_kind_where_no_kind_is_called_so() -> None:
    text = SMALL.replace('kind = "founder"', 'kind = "desk"')
    made = plan(parse(text + '[[faults]]\nkind = "crash"\n', "desks"), 3)
    assert made.machines[0].name == "desk-1"
    assert [job.submitter for job in sorted(made.jobs, key=lambda job: job.name)] == ["desk", "lab"]
    assert made.faults[0].spare == "desk"


def test_one_more_fault_kind_or_job_changes_nothing_else() -> None:
    before = plan(parse(SMALL, "small"), 5)
    after = plan(parse(SMALL + FAULT + '[[nodes]]\nkind = "extra"\n[[jobs]]\nname = "three"\n[[files]]\n', "small"), 5)
    assert [machine for machine in after.machines if machine.kind != "extra"] == list(before.machines)
    assert [job for job in after.jobs if job.name != "three"] == list(before.jobs)
    assert [file for file in after.files if file.name.startswith("file-1-")] == list(before.files)
    assert (after.air, after.duration_s) == (before.air, before.duration_s)


def test_machines_have_what_their_kind_and_network_say() -> None:
    scenario = parse(SMALL, "small")
    machines = [machine for seed in range(60) for machine in plan(scenario, seed).machines]
    labs = [machine for machine in machines if machine.kind == "lab"]
    assert all(1 << 20 <= machine.bandwidth_bytes_s <= 2 << 20 for machine in machines)
    assert {machine.storage_bytes for machine in labs} == {64 << 20}
    assert 0.4 < sum(machine.churn == "none" for machine in labs) / len(labs) < 0.6
    assert all(0.0 <= machine.joins_s <= 2.0 for machine in labs)
    own = parse(SMALL.replace("stable = 0.5", "bandwidth_bytes_s = 0"), "small")
    assert all(machine.bandwidth_bytes_s == 0 for machine in plan(own, 1).machines if machine.kind == "lab")


def test_faults_come_again_in_time_and_end_with_the_duration() -> None:
    scenario = parse(SMALL + FAULT + '[[faults]]\nkind = "rot"\nat_s = 1\n', "small")
    for seed in range(30):
        made = plan(scenario, seed)
        times = [fault.at_s for fault in made.faults]
        assert times == sorted(times)
        assert (made.faults[0].kind, made.faults[0].at_s) == ("rot", 1.0)
        again = [fault for fault in made.faults if fault.kind == "restart"]
        assert [fault.turn for fault in again] == list(range(1, len(again) + 1))
        assert all(3.0 <= later.at_s - sooner.at_s <= 6.0 for sooner, later in pairwise(again))
        assert all(fault.at_s < made.duration_s and fault.at_s + fault.for_s <= made.duration_s + 1e-9 for fault in made.faults)
        assert made.duration_s - again[-1].at_s <= 6.0
        assert all(1 <= fault.nodes <= 3 and fault.spare == "founder lab" for fault in again)


CROWD = '[[faults]]\nkind = "flash-crowd"\nof = "lab"\nnodes = [2, 5]\nat_s = 10\nevery_s = 20\nstrength = 4\n'


def test_crowds_are_numbered_on_and_join_in_time() -> None:
    for seed in range(20):
        made = plan(parse(SMALL + FAULT + CROWD, "small"), seed)
        assert made.machines == plan(parse(SMALL, "small"), seed).machines
        crowds = [fault for fault in made.faults if fault.kind == "flash-crowd"]
        assert len(crowds) >= 2
        for crowd in crowds:
            assert len(crowd.newcomers) == crowd.nodes
            assert all(0.0 <= machine.joins_s - crowd.at_s <= 4.0 and machine.joins_s <= made.duration_s for machine in crowd.newcomers)
        newcomers = [machine for crowd in crowds for machine in crowd.newcomers]
        assert {made.another("lab", number, 0.0) for number in range(1, len(newcomers) + 1)} == {
            replace(one, joins_s=0.0) for one in newcomers
        }
        labs = [machine.name for machine in made.all_machines if machine.kind == "lab"]
        assert sorted(labs) == sorted(f"lab-{number}" for number in range(1, len(labs) + 1))
        assert all(set(machine.roles) >= {"work", "store"} and not machine.founder for machine in crowds[0].newcomers)


def test_jobs_and_files_come_settled_and_in_time() -> None:
    made = plan(parse(SMALL, "small"), 9)
    assert [job.name for job in made.jobs] == ["two", "one"]
    one = made.jobs[1]
    assert one.plan.units == one.units in range(10, 21)
    assert one.plan.unit_s == one.unit_s == 0.5
    assert 2 <= len(made.files) <= 5
    assert all(1.0 <= later.at_s - sooner.at_s <= 2.0 for sooner, later in pairwise(made.files))
    assert all(1024 <= file.size_bytes <= 2048 for file in made.files)
    late = plan(parse(SMALL.replace("every_s = [1, 2]", "every_s = 100"), "small"), 9)
    assert len(late.files) == 2, "what would come after the run does not come"
