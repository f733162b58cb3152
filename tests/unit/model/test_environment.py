"""A lock from a stranger: one form of line, nothing else, all of it bounded."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pgrid.errors import MalformedError
from p2pgrid.model.environment import Environment, Wheel, tags_of
from p2pgrid.wire.codec import decode, encode

DIGEST = "ab" * 32
HASH = f" --hash=sha256:{DIGEST}"
LINE = f"numpy==2.4.6{HASH}\n"
NAME = "numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"


def wheel(name: str = NAME, digest: str = DIGEST, size_bytes: int = 10) -> Wheel:
    return Wheel(name, bytes.fromhex(digest), size_bytes, bytes(32))


@pytest.mark.parametrize(
    "line",
    [
        f"numpy==2.4.6{HASH}",
        f"numpy==2.4.6{HASH} --hash=sha256:{'cd' * 32}",
        f"numpy==1!2.4rc1.post2.dev3+cpu.1 ; python_full_version == '3.11.*' and (sys_platform != 'win32' or os_name == \"nt\"){HASH}",
        f"zope-interface==7 ; platform_machine == 'x86-64'{HASH}",
    ],
)
def test_the_lines_that_uv_locks_to_are_taken_and_come_back_as_they_were(line: str) -> None:
    environment = Environment(f"{line}\n")
    assert [pin.line() for pin in environment.pins()] == [line]
    assert decode(encode(environment), Environment) == environment


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "numpy==2.4.6\n",
        LINE.rstrip("\n"),
        LINE + "\n",
        f"numpy>=2{HASH}\n",
        f"numpy{HASH}\n",
        f"numpy @ https://host/numpy.whl{HASH}\n",
        f"numpy==2.4.6 @ file:///etc{HASH}\n",
        f"./numpy==2{HASH}\n",
        f"-e numpy==2{HASH}\n",
        "--index-url https://host/simple\n" + LINE,
        "-r other.txt\n" + LINE,
        f"numpy==2.4.6 --index-url=https://host{HASH}\n",
        f"numpy==2.4.6 ; --index-url https://host{HASH}\n",
        f"numpy==2.4.6 ; os_name == 'nt' --pre{HASH}\n",
        f"numpy==2.4.6{HASH} # note\n",
        f"numpy==2.4.6{HASH} --hash=md5:00\n",
        f"numpy==2.4.6 --hash=sha256:{'AB' * 32}\n",
        f"numpy==2.4.6 --hash=sha256:{'ab' * 31}\n",
        f"numpy==2.4.6 \\\n --hash=sha256:{DIGEST}\n",
        f"numpy==${{HOME}}{HASH}\n",
        f"numpy==2.4.6 ; os_name == '${{HOME}}'{HASH}\n",
        f"Numpy==2.4.6{HASH}\n",
        f"num_py==2.4.6{HASH}\n",
        f"numpy[extra]==2.4.6{HASH}\n",
        f"numpy==2.*{HASH}\n",
        f"numpy==2.4.6 ; extra == 'all'{HASH}\n",
        f"numpy==2.4.6 ; os_name{HASH}\n",
        f"numpy==2.4.6 ; {'(' * 60}os_name == 'nt'{')' * 60}{HASH}\n",
        f"numpy==2.4.6 ; {HASH}\n",
        f"numpy==2.4.6 ; os_name == 'n\tt'{HASH}\n",
        f"numpy==2.4.6 ; os_name == 'ｎt'{HASH}\n",
        f"numpy==٢{HASH}\n",
        LINE * 1001,
    ],
)
def test_any_other_line_makes_the_environment_void(lines: str) -> None:
    with pytest.raises(ValueError):
        Environment(lines)
    with pytest.raises(MalformedError):
        decode(msgspec.msgpack.encode([lines, "", []]), Environment)


@pytest.mark.parametrize(
    "name",
    [
        "../numpy-2.4.6-cp311-cp311-any.whl",
        "/numpy-2.4.6-py3-none-any.whl",
        "numpy-2.4.6-py3-none-any.whl/x",
        "numpy-2.4.6-py3-none-any.tar.gz",
        "numpy-2.4.6.whl",
        ".numpy-2.4.6-py3-none-any.whl",
        "-numpy-2.4.6-py3-none-any.whl",
        "numpy-2.4.6-py3-none-any.whl\n",
        "numpy-2.4.6-py3-none-a\x00ny.whl",
        "numpy-2.4.6-py3-none-" + "a" * 240 + ".whl",
        "nümpy-2.4.6-py3-none-any.whl",
    ],
)
def test_file_names_that_are_no_plain_names_of_wheels_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        wheel(name)


def test_a_wheel_that_the_lock_does_not_know_is_refused() -> None:
    assert Environment(LINE, "", (wheel(),)).wheels[0].name == "numpy"
    with pytest.raises(ValueError, match="not in the lock"):
        Environment(LINE, "", (wheel(digest="cd" * 32),))
    with pytest.raises(ValueError, match="not in the lock"):
        Environment(LINE, "", (wheel("scipy-2.4.6-py3-none-any.whl"),))


def test_two_files_of_one_name_are_refused_also_where_case_does_not_count() -> None:
    with pytest.raises(ValueError, match="one name"):
        Environment(LINE, "", (wheel("numpy-2.4.6-py3-none-any.whl"), wheel("NumPy-2.4.6-py3-none-any.whl")))


def test_sizes_and_digests_are_bounded() -> None:
    for bad in (0, -1, 1 << 50):
        with pytest.raises(ValueError, match="size"):
            wheel(size_bytes=bad)
    with pytest.raises(ValueError, match="32 bytes"):
        Wheel(NAME, b"short", 10, bytes(32))
    with pytest.raises(ValueError, match="too many"):
        Environment(LINE, "", tuple(wheel(f"numpy-2.4.{number}-py3-none-any.whl") for number in range(2001)))


def test_requires_python_is_a_version_range_or_nothing() -> None:
    assert Environment(LINE, ">=3.11,<3.15").requires_python
    for bad in ("python3", ">=3.11; rm", "@ file:///x", ">" * 300):
        with pytest.raises(ValueError, match="requires-python"):
            Environment(LINE, bad)


def test_a_name_may_not_claim_every_machine_there_is() -> None:
    assert tags_of("six-1-py2.py3-none-any.whl") == {"py2-none-any", "py3-none-any"}
    many = ".".join(f"py{number}" for number in range(60))
    with pytest.raises(ValueError, match="too many kinds"):
        tags_of(f"six-1-{many}-{many}-any.whl")


@given(st.binary(max_size=200))
def test_whatever_arrives_is_an_environment_or_malformed(raw: bytes) -> None:
    try:
        found = decode(raw, Environment)
    except MalformedError:
        return
    assert found.pins()


@given(st.text(st.sampled_from("numpy==2.4 ;'()<>-@/\\$#\n\tab--hash=sha256:")), st.integers(0, len(LINE)))
def test_no_line_with_something_put_into_it_says_more_than_a_version(noise: str, place: int) -> None:
    try:
        pins = Environment(LINE[:place] + noise + LINE[place:]).pins()
    except ValueError:
        return
    for pin in pins:
        assert not set("/@$#\\\n\t") & set(pin.name + pin.version + pin.marker)
        assert " -" not in pin.marker
