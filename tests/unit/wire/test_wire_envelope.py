"""The signed envelope and its keys: what holds, and all the ways in which something does not."""

from __future__ import annotations

import msgspec
import pytest

from p2pgrid.errors import IntegrityError, MalformedError, RemoteError
from p2pgrid.model.ids import GridId
from p2pgrid.model.job import Cancel, Job, KeeperSet, Settled
from p2pgrid.model.limits import DEFAULT_LIMITS
from p2pgrid.model.membership import Invitation, Membership
from p2pgrid.model.reasons import Reason
from p2pgrid.model.statement import Statement
from p2pgrid.model.work import Decision, Grant, Receipt
from p2pgrid.wire.codec import encode
from p2pgrid.wire.envelope import Envelope, open_envelope, peek, seal
from p2pgrid.wire.keys import SigningKey, check_public, is_small_order, verify

NOW_MS = 1_700_000_000_000
KEY, OTHER = SigningKey(b"k" * 32), SigningKey(b"o" * 32)
GRID, ELSEWHERE = GridId(b"g" * 32), GridId(b"e" * 32)
LATER = NOW_MS + 1000

STATEMENTS: list[Statement] = [
    Job(LATER, b"n" * 16, 0, "name", "native", b"code", b"", ()),
    KeeperSet(LATER, b"j" * 32, 0, b"l" * 32, (b"k" * 32,)),
    Cancel(LATER, b"j" * 32),
    Settled(LATER, b"j" * 32, 1, 0, b"r" * 32),
    Grant(LATER, b"j" * 32, 0, b"w" * 32, b"g", ()),
    Receipt(LATER, b"j" * 32, b"g" * 32, (), b"", b"", 0, b"p" * 32),
    Decision(LATER, b"j" * 32, 0, (), ()),
    Invitation(LATER, b"i" * 32, ("work",)),
    Membership(LATER, b"n" * 32),
]
PAIRS = [(made, kind) for made in STATEMENTS for kind in STATEMENTS if made.TYPE != kind.TYPE]


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda one: one.TYPE)
def test_a_sealed_statement_opens_as_it_was(statement: Statement) -> None:
    sealed = seal(statement, KEY, GRID)
    opened = open_envelope(sealed.raw, type(statement), GRID, NOW_MS)
    assert (opened.body, opened.author, opened.id, opened.raw) == (statement, KEY.public, sealed.id, sealed.raw)
    assert encode(opened.body) == peek(sealed.raw).body


@pytest.mark.parametrize(("made", "due"), PAIRS, ids=lambda one: one.TYPE)
def test_a_statement_of_one_type_is_worthless_as_another(made: Statement, due: Statement) -> None:
    sealed = seal(made, KEY, GRID)
    with pytest.raises(IntegrityError):
        open_envelope(sealed.raw, type(due), GRID, NOW_MS)
    relabelled = encode(msgspec.structs.replace(peek(sealed.raw), type=due.TYPE))
    with pytest.raises(IntegrityError) as caught:
        open_envelope(relabelled, type(due), GRID, NOW_MS)
    assert caught.value.reason == Reason.BAD_SIGNATURE


def test_a_statement_of_one_grid_is_worthless_in_another() -> None:
    for statement in STATEMENTS:
        with pytest.raises(IntegrityError):
            open_envelope(seal(statement, KEY, GRID).raw, type(statement), ELSEWHERE, NOW_MS)


def test_every_flipped_bit_is_noticed() -> None:
    sealed = seal(Cancel(LATER, b"j" * 32), KEY, GRID)
    for position in range(len(sealed.raw)):
        for bit in range(8):
            raw = bytearray(sealed.raw)
            raw[position] ^= 1 << bit
            with pytest.raises(RemoteError):
                open_envelope(bytes(raw), Cancel, GRID, NOW_MS)


def test_every_truncation_and_every_addition_is_noticed() -> None:
    raw = seal(STATEMENTS[4], KEY, GRID).raw
    for length in range(len(raw)):
        with pytest.raises(MalformedError):
            open_envelope(raw[:length], Grant, GRID, NOW_MS)
    with pytest.raises(MalformedError):
        open_envelope(raw + b"\x00", Grant, GRID, NOW_MS)


def test_an_envelope_over_the_limit_is_not_even_parsed() -> None:
    with pytest.raises(MalformedError):
        peek(b"\x00" * (DEFAULT_LIMITS.statement_bytes + 1))


def test_an_expired_statement_is_refused_unless_it_is_read_from_disk() -> None:
    sealed = seal(Cancel(NOW_MS - DEFAULT_LIMITS.clock_skew_ms - 1, b"j" * 32), KEY, GRID)
    with pytest.raises(IntegrityError) as caught:
        open_envelope(sealed.raw, Cancel, GRID, NOW_MS)
    assert caught.value.reason == Reason.EXPIRED
    assert open_envelope(sealed.raw, Cancel, GRID, None).body.job == b"j" * 32
    within = seal(Cancel(NOW_MS - DEFAULT_LIMITS.clock_skew_ms, b"j" * 32), KEY, GRID)
    assert open_envelope(within.raw, Cancel, GRID, NOW_MS).id == within.id


def sealed_raw(body: bytes, kind: str = "cancel", more: tuple[object, ...] = ()) -> bytes:
    """An envelope over any body, rightly signed."""

    class Anything(Statement, frozen=True, array_like=True):
        TYPE = kind

    from p2pgrid.wire.envelope import _signed_bytes, statement_id

    signature = KEY.sign(_signed_bytes(kind, GRID, statement_id(KEY.public, body)))
    return msgspec.msgpack.encode([kind, body, KEY.public, signature, *more])


def test_unknown_trailing_fields_are_ignored_inside_and_outside() -> None:
    body = msgspec.msgpack.encode([LATER, b"j" * 32, "of a newer version", 7])
    opened = open_envelope(sealed_raw(body, more=("outer", 1)), Cancel, GRID, NOW_MS)
    assert opened.body == Cancel(LATER, b"j" * 32)


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", msgspec.msgpack.encode([]), msgspec.msgpack.encode(["soon", b"j"]), msgspec.msgpack.encode({"job": b"j"})]
)
def test_a_rightly_signed_body_that_is_no_statement_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedError):
        open_envelope(sealed_raw(body), Cancel, GRID, NOW_MS)


@pytest.mark.parametrize("kind", ["", "cäncel", "cancel\x00", "\U0001f600", "cancel" * 1000])
def test_odd_types_are_refused(kind: str) -> None:
    raw = encode(Envelope(kind, b"", KEY.public, bytes(64)))
    with pytest.raises(IntegrityError):
        open_envelope(raw, Cancel, GRID, NOW_MS)


def test_another_author_cannot_have_the_id_of_a_statement() -> None:
    statement = Cancel(LATER, b"j" * 32)
    assert seal(statement, KEY, GRID).id != seal(statement, OTHER, GRID).id
    assert seal(statement, KEY, GRID).id == seal(statement, KEY, GRID).id


def test_a_signature_of_another_key_or_length_is_refused() -> None:
    envelope = peek(seal(Cancel(LATER, b"j" * 32), KEY, GRID).raw)
    for change in (
        {"author": OTHER.public},
        {"signature": b""},
        {"signature": bytes(64)},
        {"signature": envelope.signature + b"\x00"},
        {"author": b""},
    ):
        with pytest.raises(IntegrityError):
            open_envelope(encode(msgspec.structs.replace(envelope, **change)), Cancel, GRID, NOW_MS)


# -- keys ---------------------------------------------------------------------------

P = 2**255 - 19
Y8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
SMALL = [(y + more, sign) for y in (0, 1, P - 1, Y8, P - Y8) for more in (0, P) for sign in (0, 1) if y + more < 2**255]


@pytest.mark.parametrize(("y", "sign"), SMALL)
def test_small_order_keys_are_refused_in_every_encoding(y: int, sign: int) -> None:
    public = (y | sign << 255).to_bytes(32, "little")
    assert is_small_order(public)
    with pytest.raises(IntegrityError):
        check_public(public)
    with pytest.raises(IntegrityError):
        verify(public, bytes(64), b"anything")


@pytest.mark.parametrize("y", range(19))
def test_encodings_that_are_not_canonical_are_refused(y: int) -> None:
    for sign in (0, 1):
        with pytest.raises(IntegrityError):
            check_public((P + y | sign << 255).to_bytes(32, "little"))


@pytest.mark.parametrize("size", [0, 1, 31, 33, 64])
def test_keys_of_the_wrong_length_are_refused(size: int) -> None:
    with pytest.raises(IntegrityError):
        check_public(b"\x05" * size)


def test_a_real_key_is_usable_and_its_seed_makes_it_again() -> None:
    assert check_public(KEY.public) == KEY.public
    assert SigningKey(KEY.seed()).public == KEY.public
    verify(KEY.public, KEY.sign(b"m"), b"m")
