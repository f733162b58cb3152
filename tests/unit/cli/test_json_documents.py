"""The documents of ``--json``: their keys, their order, and that every schema describes what is made."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest

from p2pgrid.client.running import Outcome
from p2pgrid.model.ids import to_text
from p2pgrid.model.node import NodeInfo, Offer
from p2pgrid.runtimes.selftest.report import Attempt, report_of
from p2pgrid.testing.batches.timeline import Entry
from p2pgrid.testing.verdict import JobVerdict, Verdict, Violation
from p2pgrid.wire.faces import Because, Explanation
from p2pgrid.wire.owner import BlobLine, CancelReply, FileReply, HolderLine, JobLine, LeaseLine, OwnPause, PeerLine, PeersReply, WhyBlob
from p2pgrid_cli.checkup import Check
from p2pgrid_cli.documents import DOCUMENTS, forms_of, schema_of
from p2pgrid_cli.documents.blobs import Got, Pinned, blob_reasons_of, blobs_of, put_of
from p2pgrid_cli.documents.doctor import doctor_of
from p2pgrid_cli.documents.jobs import cancelled_of, jobs_of
from p2pgrid_cli.documents.pausing import pause_of
from p2pgrid_cli.documents.peers import peers_of
from p2pgrid_cli.documents.results import Detached, results_of
from p2pgrid_cli.documents.settings import Config, Setting
from p2pgrid_cli.documents.simulating import verdict_of
from p2pgrid_cli.documents.why import why_of

JOB = JobLine(b"j" * 32, "squares.py", "done", 3, 2, 1, 0, 5, 9, "led", (b"k" * 32,), {b"w" * 32: 2}, lead=b"l" * 32)
BLOB = BlobLine(b"b" * 32, "a.txt", "file", 7, 1, 3, 99, False, 5, "held")
WHY_BLOB = WhyBlob(BLOB, "held", (HolderLine(b"h" * 32, True, 0.5),), (LeaseLine(b"", 5, 3),), (("no-peers", "nobody is there"),))
PEER = PeerLine(b"n" * 32, NodeInfo(name="n", offer=Offer(cores=2)), None, 0.001, "self")
TREE = Explanation("job", b"j" * 32, "running", "It waits.", (Because("no-peers", "Nobody.", "Join.", (Because("", "A fact."),)),))
VERDICT = Verdict(scenario="s", seed=1, violations=[Violation("S1", 1.0, "n1", "broken")], jobs=[JobVerdict(name="j")])

MADE: tuple[tuple[str, msgspec.Struct], ...] = (
    ("jobs", jobs_of([JOB])),
    ("cancel", cancelled_of(b"j" * 32, CancelReply("cancelled", 2))),
    ("run", results_of(b"j" * 32, Outcome(JOB, fuel={0: 5}), ["a", None, {"b": 1.5}])),
    ("run", Detached("x", 3)),
    ("results", results_of(b"j" * 32, Outcome(JOB), [])),
    ("blobs", blobs_of([BLOB, msgspec.structs.replace(BLOB, kind="", put_ms=0)])),
    ("put", put_of(FileReply(b"b" * 32, 7, 1, wanted=3))),
    ("get", Got("x", "file", "a.txt", 1, 7)),
    ("pin", Pinned("x", True)),
    ("why", blob_reasons_of(WHY_BLOB)),
    ("why", why_of("job x", TREE)),
    ("peers", peers_of(PeersReply((PEER,), True))),
    ("pause", pause_of(OwnPause("running"))),
    ("pause", pause_of(OwnPause("paused", "paused", "the owner said so", 5, 6, "then"))),
    ("doctor", doctor_of([report_of("native", "bare", [Attempt("read", True, "seen")])], [Check("disk", True, "much")])),
    ("simulate", verdict_of(VERDICT)),
    ("simulate", verdict_of(VERDICT, [Entry(1.0, "n1", "fault", "crash", ())])),
    ("config", Config("h", "h/config.toml", (Setting("hours", ((0, 60),), "00:00-01:00", "file", "config.toml:3"),))),
)


def plain(document: msgspec.Struct) -> Any:
    return json.loads(json.dumps(msgspec.to_builtins(document)))


@pytest.mark.parametrize(("command", "document"), MADE, ids=lambda value: value if isinstance(value, str) else type(value).__name__)
def test_a_document_fits_its_schema(command: str, document: msgspec.Struct) -> None:
    jsonschema.Draft202012Validator(schema_of(command)).validate(plain(document))


@pytest.mark.parametrize("command", DOCUMENTS)
def test_a_schema_is_one_and_names_every_key_as_required_or_not(command: str) -> None:
    schema = schema_of(command)
    jsonschema.Draft202012Validator.check_schema(schema)
    for form in forms_of(command):
        described = schema["$defs"][form.__name__]
        assert list(described["properties"]) == list(form.__struct_encode_fields__)
        assert described["description"]
        optional = {field.name for field in msgspec.structs.fields(form) if field.default is msgspec.UNSET}
        assert set(described["required"]) == set(described["properties"]) - optional


@pytest.mark.parametrize(("key", "value"), [("node", 5), ("live", None), ("cores", "two"), ("roles", "work")])
def test_a_document_that_is_wrong_does_not_fit(key: str, value: object) -> None:
    document = plain(peers_of(PeersReply((PEER,), True)))
    document["peers"][0][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema_of("peers")).validate(document)
    del document["peers"][0][key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema_of("peers")).validate(document)


def test_keys_stay_as_they_were_and_in_their_order() -> None:
    job = plain(jobs_of([JOB]))["jobs"][0]
    first = ["job", "name", "state", "role", "runtime", "units", "done", "failed", "disputed", "conflicts", "created_ms", "expires_ms"]
    assert list(job)[:15] == [*first, "lead", "keepers", "units_per_node"]
    assert job["units_per_node"] == {to_text(b"w" * 32): 2}
    results = plain(results_of(b"j" * 32, Outcome(JOB, fuel={1: 5, 0: 6}), [1]))
    assert list(results) == [*[key for key in first if key in results], "units_per_node", "results", "failures", "fuel"]
    assert results["fuel"] == {"0": 6, "1": 5}
    assert "fuel" not in plain(results_of(b"j" * 32, Outcome(JOB), []))
    why = list(plain(blob_reasons_of(WHY_BLOB)))
    blob = list(plain(blobs_of([BLOB]))["blobs"][0])
    assert why == [*blob, *why[len(blob) :]]
    assert why[len(blob) :][:3] == ["holders", "reasons", "short_since_ms"]


def test_what_is_not_known_is_null() -> None:
    peer = plain(peers_of(PeersReply((PEER,), True)))["peers"][0]
    assert (peer["live"], peer["free_cores"], peer["paused"], peer["since_ms"]) == (False, None, None, None)
    assert peer["self"] is True
    assert plain(pause_of(OwnPause("running")))["reason"] is None


def test_a_verdict_counts_what_broke_and_tells_it_behind() -> None:
    verdict = plain(verdict_of(VERDICT))
    assert verdict["violations"] == 1
    assert verdict["violated"][0]["invariant"] == "S1"
    assert "trace" not in verdict
