"""An assembler for the filters that the kernel runs before each system call (classic BPF over ``struct seccomp_data``).

Only what an allow-list needs: rules by number, each with alternatives of conditions on arguments. Jumps never leave the block of
one call, so their eight bits always suffice.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

_LOAD, _AND, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_X32_BIT = 0x40000000
_LOW = 0xFFFFFFFF
INT = _LOW
"""The bits that count of an argument which the kernel takes as an int."""
WHOLE = (1 << 64) - 1
"""All bits of an argument."""


class Instruction(NamedTuple):
    """One instruction: jumps count the instructions to leave out."""

    code: int
    if_true: int
    if_false: int
    value: int

    def packed(self) -> bytes:
        """As ``struct sock_filter``."""
        return struct.pack("=HBBI", *self)


class Bits(NamedTuple):
    """A condition: of ``argument`` (counted from 0), the bits in ``mask`` equal ``value``."""

    argument: int
    mask: int
    value: int


Alternative = tuple[Bits, ...]
"""Conditions that must all hold."""


class Rule(NamedTuple):
    """What becomes of one call."""

    alternatives: tuple[Alternative, ...] = ((),)
    """One of them must hold for the call to be allowed. One without conditions always holds; none: never."""
    refusal: int = 1
    """The error number otherwise; EPERM by default."""


def program(audit_arch: int, rules: dict[int, Rule], *, newest_known: int, unknown_errno: int, default_errno: int) -> bytes:
    """The filter for ``rules`` by call number. Another machine's calls kill; calls above ``newest_known`` and others get their errno."""
    instructions = [
        Instruction(_LOAD, 0, 0, _ARCH_AT),
        Instruction(_JUMP_EQUAL, 1, 0, audit_arch),
        _return(KILL_PROCESS),
        Instruction(_LOAD, 0, 0, _NUMBER_AT),
        Instruction(_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT),
        _return(KILL_PROCESS),
    ]
    for number, rule in rules.items():
        block = _rule_block(rule)
        instructions += [Instruction(_JUMP_EQUAL, 0, len(block), number), *block]
    instructions += [
        Instruction(_JUMP_GREATER_EQUAL, 0, 1, newest_known + 1),
        refuse(unknown_errno),
        refuse(default_errno),
    ]
    return b"".join(instruction.packed() for instruction in instructions)


def _rule_block(rule: Rule) -> list[Instruction]:
    """Instructions that end the filter, entered with the call's number loaded."""
    block: list[Instruction] = []
    for alternative in rule.alternatives:
        block += _alternative_block(alternative)
        if not alternative:
            return block
    block.append(refuse(rule.refusal))
    if len(block) > 255:
        raise ValueError("a rule is too long for a jump")
    return block


def _alternative_block(conditions: Alternative) -> list[Instruction]:
    """Return ALLOW when all hold, else fall through."""
    tests: list[tuple[int, int, int]] = []
    for condition in conditions:
        offset = _ARGUMENTS_AT + 8 * condition.argument  # Both machines are little-endian: the low half comes first.
        for shift, where in ((0, offset), (32, offset + 4)):
            mask = condition.mask >> shift & _LOW
            if mask:
                tests.append((where, mask, condition.value >> shift & mask))
    block: list[Instruction] = []
    for where, mask, value in reversed(tests):
        # Built from the end: what follows is this many instructions, and the ALLOW.
        test = [Instruction(_LOAD, 0, 0, where)]
        if mask != _LOW:
            test.append(Instruction(_AND, 0, 0, mask))
        test.append(Instruction(_JUMP_EQUAL, 0, len(block) + 1, value))
        block = test + block
    return [*block, _return(ALLOW)]


def refuse(error_number: int) -> Instruction:
    """End the filter with an error for the caller."""
    return _return(_ERRNO | error_number)


def _return(value: int) -> Instruction:
    return Instruction(_RETURN, 0, 0, value)
