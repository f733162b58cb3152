"""From raw rounds to medians, tables and verdicts."""

from __future__ import annotations

import pytest

from bench import report
from bench.__main__ import parse
from bench.quick import SYSTEMS, Options, judge
from bench.system import Figures


def figures(wall_s: float = 1.0, cpu_s: float = 0.5, latency_s: float = 0.004) -> Figures:
    return Figures(
        units=1000,
        jobs=2,
        wall_s=wall_s,
        roles_s={"lead": cpu_s * 0.75, "keeper": cpu_s * 0.25},
        in_hand_s=[latency_s, latency_s * 2, latency_s * 3],
        whole_s=[latency_s * 4] * 3,
        single_roles_s={"lead": 0.001, "keeper": 0.002},
        start_s=1.0,
        audited={},
    )


def test_figures_are_medians_over_rounds_with_their_spread():
    one = report.summarise([figures(wall_s=1.0), figures(wall_s=4.0), figures(wall_s=2.0)])
    assert one.units_per_s == 1000
    assert one.units_per_s_spread == (500, 2000)
    assert one.cpu_per_unit_us == pytest.approx(250)
    assert one.roles_us == pytest.approx({"lead": 187.5, "keeper": 62.5})
    assert one.single_cpu_ms == pytest.approx(3)


def test_latency_percentiles_go_over_the_singles_of_all_rounds():
    one = report.summarise([figures(latency_s=0.001), figures(latency_s=0.010)])
    assert one.latency_p50_ms == pytest.approx(3)
    assert one.latency_p99_ms == pytest.approx(30)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)])
def test_a_percentile_is_one_of_the_values(share: float, expected: int):
    assert report.percentile([3, 1, 4, 2], share) == expected


def test_floors_are_met_at_exactly_their_ratios():
    summaries = {"p2pgrid": report.summarise([figures(wall_s=1.0, cpu_s=0.1)]), "dask": report.summarise([figures(wall_s=4.0, cpu_s=1.0)])}
    assert [met for met, _ in report.verdicts(summaries)] == [True, True, True]
    assert judge(summaries, lambda text: None) == 0


@pytest.mark.parametrize("worse", [{"wall_s": 1.01}, {"cpu_s": 0.101}, {"latency_s": 0.0041}])
def test_one_missed_floor_fails_the_check_and_says_which(worse: dict[str, float]):
    mine = {"wall_s": 1.0, "cpu_s": 0.1, "latency_s": 0.004, **worse}
    summaries = {"p2pgrid": report.summarise([figures(**mine)]), "dask": report.summarise([figures(wall_s=4.0, cpu_s=1.0)])}
    said: list[str] = []
    assert judge(summaries, said.append) == 1
    assert [text.startswith("MISS") for text in said].count(True) == 1


def test_without_dask_the_check_fails_instead_of_passing_unseen():
    said: list[str] = []
    assert judge({"p2pgrid": report.summarise([figures()])}, said.append) == 1
    assert "cannot be judged" in said[0]


def test_where_the_time_goes_lists_the_dearest_role_first_and_shares_add_up():
    lines = report.where_time_goes(report.summarise([figures()])).splitlines()
    assert lines[2] == "| lead | 187.5 | 75% | 1.0 |"
    assert lines[3] == "| keeper | 62.5 | 25% | 2.0 |"


def test_the_document_holds_raw_figures_and_what_was_left_out():
    document = report.document({"p2pgrid": [figures()]}, {"dask": "not installed"})
    assert document["rounds"]["p2pgrid"][0]["units"] == 1000
    assert document["left_out"] == {"dask": "not installed"}


def test_the_command_line_names_its_systems():
    default = parse(["quick"])
    assert isinstance(default, Options)
    assert default.systems == SYSTEMS
    assert parse(["quick", "--systems", "p2pgrid,dask", "--units", "5", "--check"])[:1] == (5,)
    with pytest.raises(SystemExit):
        parse(["quick", "--systems", "ray"])
    with pytest.raises(SystemExit):
        parse(["quick", "--rounds", "0"])
