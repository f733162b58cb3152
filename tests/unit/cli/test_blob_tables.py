"""What ``blobs`` and ``why`` show: every figure once, names of others harmless, and the formula with its numbers."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from p2pgrid.wire.owner import BlobLine, HolderLine, LeaseLine, WhyBlob
from p2pgrid_cli.blobtables import blobs_table, span_text, why_blob_document, why_blob_tree
from p2pgrid_cli.whytree import tree_lines

HOUR_MS = 3_600_000
LINE = BlobLine(b"b" * 32, "data.csv", "file", 5_000_000, 2, 3, 50 * HOUR_MS, False, 1, "held")
WHY = WhyBlob(
    LINE,
    "held",
    holders=(HolderLine(b"m" * 32, True, 0.9, 10 * HOUR_MS - 5000), HolderLine(b"o" * 32, False, 0.5)),
    leases=(LeaseLine(b"m" * 32, 50 * HOUR_MS, 3), LeaseLine(b"", 20 * HOUR_MS, 1)),
    reasons=(("store-full", "1 of 3 copies is missing; 2 nodes were asked and refused"),),
    short_since_ms=9 * HOUR_MS,
    away_chance=0.05,
    target=1e-4,
    copies_for_target=7,
    wall_ms=10 * HOUR_MS,
)


def shown(*lines: BlobLine, width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(blobs_table(lines, width, 10 * HOUR_MS))
    return out.getvalue()


def test_a_line_says_what_it_is_how_many_copies_and_for_how_long() -> None:
    text = shown(LINE)
    assert "data.csv" in text
    assert "2/3" in text
    assert "4.77 MiB" in text
    assert "1 d" in text
    assert "pinned" in shown(msgspec.structs.replace(LINE, pinned=True))
    assert "-" in shown(msgspec.structs.replace(LINE, name="", kind=""))


def tree(why: WhyBlob) -> str:
    told = why_blob_tree(why)
    return "\n".join(tree_lines("blob", told.state, told.text, told.because, 200))


def test_names_reach_no_terminal_as_commands() -> None:
    assert "\x1b" not in shown(msgspec.structs.replace(LINE, name="\x1b[31mred"))
    assert "\x1b" not in tree(msgspec.structs.replace(WHY, line=msgspec.structs.replace(LINE, name="\x1b[2J")))


def test_a_narrow_terminal_keeps_id_size_and_copies() -> None:
    text = shown(LINE, width=30)
    assert "4.77 MiB" in text
    assert "2/3" in text


@pytest.mark.parametrize(("span_ms", "text"), [(-5, "0 s"), (59_999, "59 s"), (60_000, "1 min"), (HOUR_MS, "1 h"), (49 * HOUR_MS, "2 d")])
def test_spans_have_one_unit(span_ms: int, text: str) -> None:
    assert span_text(span_ms) == text


def test_why_has_copies_reasons_holders_formula_cost_and_leases() -> None:
    text = tree(WHY)
    for part in (
        "copies: 2 of 3 wanted",
        "1 of 3 copies is missing",
        "[store-full]",
        "too few for 1 h",
        "live, there 90.0% of the time, confirmed 5 s ago",
        "away, there 50.0% of the time, not confirmed yet",
        "available: 1 - (1 - 0.900) x (1 - 0.500) = 0.950000",
        "for at most 0.0001 unavailable, as '--replicas auto' wants it: 7 copies",
        "cost: 9.54 MiB on all holders together",
        "1 d left, copies wanted: 3",
        "lease of nobody (found on the disk): 10 h left",
    ):
        assert part in text


def test_the_document_of_why_has_the_figures_themselves() -> None:
    document = why_blob_document(WHY)
    assert document["available"] == pytest.approx(0.95)
    assert document["stored_bytes"] == 10_000_000
    assert [holder["share"] for holder in document["holders"]] == [0.9, 0.5]
    assert document["leases"][1]["owner"] is None
    assert document["copies"] == 2
