"""Bytes from anywhere: every message and statement decodes, or raises MalformedError, and nothing else."""

from __future__ import annotations

import contextlib
from typing import Any, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pgrid.core.membership import verify_chain
from p2pgrid.errors import IntegrityError, MalformedError, RemoteError
from p2pgrid.model import job, membership, work
from p2pgrid.model.ids import GridId, NodeKey
from p2pgrid.model.membership import Grid
from p2pgrid.model.statement import Statement
from p2pgrid.wire import messages
from p2pgrid.wire.codec import decode, encode
from p2pgrid.wire.envelope import Envelope, open_envelope

GRID = GridId(b"g" * 32)


def structs_of(module: Any, base: type) -> list[type]:
    return [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, base) and one is not base]


MESSAGES = structs_of(messages, messages.Message)
STATEMENTS = [one for module in (job, work, membership) for one in structs_of(module, Statement)]
KINDS = [*MESSAGES, *STATEMENTS, Envelope, job.Batch]
raw_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values for one field, as plain objects that msgspec converts."""
    text = str(kind)
    if kind is msgspec.Raw:
        return raw_values
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return st.tuples(*[values_of(field.type) for field in msgspec.structs.fields(kind)]).map(list)
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = get_type_hints(kind)
        return st.tuples(*[values_of(hints[name]) for name in kind._fields]).map(list)
    arguments: tuple[Any, ...] = getattr(kind, "__args__", ())
    if text.startswith(("list", "tuple")):
        if len(arguments) == 2 and arguments[1] is not ...:
            return st.tuples(*[values_of(one) for one in arguments]).map(list)
        return st.lists(values_of(arguments[0]), max_size=3)
    simple = {bytes: st.binary(max_size=40), str: st.text(max_size=10), bool: st.booleans(), int: st.integers(-(2**63), 2**64 - 1)}
    return simple[kind] if kind in simple else st.floats(allow_nan=False)


@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.__name__)
def test_encode_decode_encode_is_identity_and_mutations_decode_or_are_malformed(kind: Any) -> None:
    @settings(max_examples=40)
    @given(values_of(kind), st.integers(0, 10_000), st.integers(1, 255), st.binary(max_size=3))
    def run(value: Any, position: int, flip: int, more: bytes) -> None:
        first = encode(decode(encode(value), kind))
        assert encode(decode(first, kind)) == first
        mutated = bytearray(first)
        if mutated:
            mutated[position % len(mutated)] ^= flip
        for raw in (bytes(mutated), first[: position % (len(first) + 1)], first + more):
            with contextlib.suppress(MalformedError):
                decode(raw, kind)

    run()


@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.__name__)
def test_newer_trailing_fields_are_ignored_and_older_ones_take_defaults(kind: Any) -> None:
    @settings(max_examples=10)
    @given(values_of(kind), raw_values)
    def run(value: list[Any], more: Any) -> None:
        assert encode(decode(encode([*value, more]), kind)) == encode(decode(encode(value), kind))

    run()


@settings(max_examples=300)
@given(st.binary(max_size=200) | raw_values.map(msgspec.msgpack.encode), st.sampled_from(KINDS))
def test_arbitrary_bytes_are_malformed_or_decode(raw: bytes, kind: Any) -> None:
    with contextlib.suppress(MalformedError):
        decode(raw, kind)


HEADERS = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.__name__)
def test_sizes_that_are_not_there_and_endless_nesting_are_malformed(kind: Any) -> None:
    for header in HEADERS:
        for raw in (header, b"\x91" + header, b"\x92\xa1a" + header, b"\x91" * 100_000, b"\x91" * 100_000 + b"\xc0", b"\x81\xa1a" * 50_000):
            with pytest.raises(MalformedError):
                decode(raw, kind)
    if kind is messages.Payload:
        with pytest.raises(MalformedError):
            decode(b"\x91\x91" + b"\x91" * 100_000 + b"\xc0", kind)


@settings(max_examples=300)
@given(
    st.binary(max_size=300)
    | st.tuples(st.text(max_size=10), st.binary(max_size=64), st.binary(max_size=40), st.binary(max_size=70)).map(encode)
)
def test_arbitrary_envelopes_are_malformed_or_do_not_hold(raw: bytes) -> None:
    for kind in STATEMENTS:
        with pytest.raises((MalformedError, IntegrityError)):
            open_envelope(raw, kind, GRID, 0)


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=100), max_size=5))
def test_arbitrary_chains_make_nobody_a_member(chain: list[bytes]) -> None:
    with pytest.raises(RemoteError):
        verify_chain(chain, NodeKey(b"n" * 32), Grid("g", b"r" * 32), 0)
