"""What real processes can be asked for, and how their answers are judged. The run itself is an end-to-end test."""

from __future__ import annotations

import msgspec
import pytest

from p2pgrid.errors import BadDataError
from p2pgrid.testing.batches.real import differences, refused, right_values, run_real
from p2pgrid.testing.plans.scenario import parse, plan
from p2pgrid.testing.verdict import JobVerdict, Verdict

PLAIN = 'about = "Some nodes."\n[[nodes]]\nkind = "founder"\n[[nodes]]\nkind = "peer"\ncount = 3\n'


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ("", ""),
        ('[[faults]]\nkind = "crash"\n[[faults]]\nkind = "restart"\n[[faults]]\nkind = "leave"\n', ""),
        ('[[faults]]\nkind = "freeze"\n', "the fault 'freeze'"),
        ('[[nodes]]\nkind = "liar"\nbehaviour = "wrong"\n', "machines that are wrong"),
        ('[[nodes]]\nkind = "guest"\nchurn = "ipfs"\n', "the churn 'ipfs'"),
        ('[[nodes]]\nkind = "phone"\nnat = "cone"\n', "the NAT 'cone'"),
        ('[[nodes]]\nkind = "late"\nclock_skew_s = 3\n', "skewed clocks"),
        ('[[nodes]]\nkind = "small"\ndisk_bytes = "80M"\n', "small disks"),
        ('[[nodes]]\nkind = "crowd"\ncount = 60\n', "more than 32 nodes"),
    ],
)
def test_what_processes_cannot_have_is_named(more: str, what: str) -> None:
    assert refused(plan(parse(PLAIN + more, "x"), 1)) == what


async def test_a_scenario_beyond_them_starts_nothing() -> None:
    with pytest.raises(BadDataError, match="real processes cannot have the fault 'freeze'"):
        await run_real(parse(PLAIN + '[[faults]]\nkind = "freeze"\n', "x"), 1)


@pytest.mark.parametrize(
    ("values", "right"),
    [([0, 1, 4, 9], 4), ([0, 4, 9], 3), ([], 0), ([0, 7, 4, 9], 3), ([1, 0, 4], 2), ([0, 1, 4, 9, 9], 4), ([7], 0)],
)
def test_values_are_looked_for_in_order_because_failed_units_leave_no_gap(values: list[int], right: int) -> None:
    assert right_values(values, [0, 1, 4, 9]) == right


def test_verdicts_differ_in_what_does_not_depend_on_time() -> None:
    one = Verdict(scenario="x", seed=1, ok=True, nodes=8, units=5, jobs=[JobVerdict(name="a", units=5, correct=5, makespan_s=3.0)])
    same = msgspec.structs.replace(one, virtual_seconds=9.0, events=7, jobs=[JobVerdict(name="a", units=5, correct=5)])
    assert differences(one, same) == []
    other = msgspec.structs.replace(one, lost=1, jobs=[JobVerdict(name="a", units=5, correct=4)])
    assert differences(one, other) == ["lost: 0 and 1", "jobs: {'a': (5, 5, 0)} and {'a': (5, 4, 0)}"]
