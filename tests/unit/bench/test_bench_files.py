"""Figures of putting and getting: medians, ratios of the same round, and the words of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.__main__ import parse
from bench.files import Options, Sample, document, table

GB = 1_000_000_000


def sample(wall_s: float, peak_bytes: int = 0, **roles_s: float) -> Sample:
    return Sample(wall_s=wall_s, roles_s=roles_s, peak_bytes=peak_bytes)


SAMPLES = {
    "cp": [sample(1.0, cp=0.5), sample(2.0, cp=0.5), sample(4.0, cp=0.5)],
    "plain TLS": [sample(4.0, tls=4.0), sample(8.0, tls=4.0), sample(16.0, tls=4.0)],
    "put, 3 copies": [sample(8.0, 1 << 20, node=9.0, client=1.0), sample(16.0, 3 << 20, node=9.0, client=1.0), sample(64.0, node=9.0)],
}


def test_speeds_are_compared_within_a_round() -> None:
    found = document(GB, SAMPLES)["summaries"]["put, 3 copies"]
    assert found["beside_cp"] == pytest.approx(1 / 8)
    assert found["beside_plain_tls"] == pytest.approx(1 / 2)
    assert found["mb_per_s"] == pytest.approx(1000 / 16)
    assert found["cpu_s_per_gb"] == pytest.approx(10)
    assert found["peak_bytes"] == 3 << 20


def test_cpu_is_per_gb_whatever_the_size() -> None:
    assert document(GB // 4, SAMPLES)["summaries"]["cp"]["cpu_s_per_gb"] == pytest.approx(2.0)


def test_the_table_has_a_line_for_each_way_and_names_the_roles() -> None:
    lines = table(GB, SAMPLES).splitlines()
    assert len(lines) == 2 + len(SAMPLES)
    assert "node 9.00, client 1.00" in lines[-1]


def test_sizes_are_read_with_their_unit() -> None:
    options = parse(["files", "--size", "256M", "--rounds", "2", "--folder", "scratch", "--json"])
    assert options == Options(256 << 20, 2, Path("scratch"), as_json=True)
    assert parse(["files"]) == Options(1 << 30, 3)


@pytest.mark.parametrize("size", ["0", "1T", "-1G", "G"])
def test_sizes_that_cannot_be_end_it(size: str) -> None:
    with pytest.raises(SystemExit):
        parse(["files", "--size", size])
