"""The owner's terms as they are written: by flags, in the environment, in a file; and which of them counts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from p2pgrid.core.admission import Policy
from p2pgrid.errors import ConfigError, UsageError
from p2pgrid.model.ids import to_text
from p2pgrid.store.home import Home
from p2pgrid_cli import settings
from p2pgrid_cli.settings import Settings, config_of, from_environment, from_file, from_flags, load, policy_of, save, saved
from p2pgrid_cli.terms import TERMS, hours_of, idle_of, packages_of, rate_of, runtimes_of, share_of, submitters_of, truth_of

KEY = to_text(b"k" * 32)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in list(os.environ):
        if name.startswith(settings.VARIABLE):
            monkeypatch.delenv(name)
    home = Home(tmp_path / "home", os.urandom)
    home.prepare()
    return home


def test_flags_count_over_environment_over_file_over_what_was_said_over_default(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    save(home, from_flags(nice=1, cpus=1, hours="01:00-02:00", only_idle="1", busy="10%"))
    (home.folder / "config.toml").write_text('nice = 2\nhours = ["02:00-03:00"]\nonly_idle = 2\ncpus = 2\n')
    monkeypatch.setenv("P2PGRID_NICE", "3")
    monkeypatch.setenv("P2PGRID_ONLY_IDLE", "3")
    asked = from_flags(nice=4)
    policy = policy_of(asked.over(load(home)), home.folder)
    assert (policy.nice, policy.idle_s, policy.hours, policy.cores) == (4, 180.0, ((120, 180),), 2)
    assert policy.busy_share == 0.1
    assert (policy.on_battery, policy.upload_bytes_per_s) == (Policy().on_battery, 0)
    assert saved(home).nice == 1, "only flags are remembered"


def test_every_setting_can_be_said_in_every_way(home: Home) -> None:
    texts = {
        "name": "n",
        "cpus": "3",
        "memory": "1G",
        "storage": "2G",
        "listen": "127.0.0.1:7400",
        "native": "no",
        "runtimes": "native,wasm",
        "accept_from": KEY,
        "packages": "NumPy,typing_extensions",
        "only_idle": "10",
        "on_battery": "yes",
        "hours": "22:00-07:00",
        "busy": "30%",
        "nice": "10",
        "upload": "1M",
        "download": "256K",
    }
    assert list(texts) == [term.name for term in TERMS]
    by_environment = from_environment({settings.VARIABLE + name.upper(): text for name, text in texts.items()})
    path = home.folder / "config.toml"
    path.write_text("".join(f'{name} = "{text}"\n' for name, text in texts.items()))
    assert from_flags(**texts) == by_environment == from_file(path)
    assert all(getattr(by_environment, name) is not None for name in Settings.__struct_fields__)
    save(home, by_environment)
    assert saved(home) == by_environment
    policy = policy_of(by_environment, home.folder)
    assert policy == Policy(
        cores=3,
        memory_bytes=1 << 30,
        storage_bytes=2 << 30,
        native=False,
        runtimes=("native", "wasm"),
        submitters=(b"k" * 32,),
        environments="listed",
        packages=("numpy", "typing-extensions"),
        idle_s=600.0,
        on_battery=True,
        hours=((1320, 420),),
        busy_share=0.3,
        nice=10,
        upload_bytes_per_s=1 << 20,
        download_bytes_per_s=256 << 10,
    )


def test_a_file_may_use_what_its_format_has(home: Home) -> None:
    path = home.folder / "config.toml"
    path.write_text(f'native = false\nonly_idle = 2.5\nbusy = 0.5\nupload = 1048576\naccept_from = ["{KEY}"]\npackages = ["any"]\n')
    assert from_file(path) == Settings(
        native=False, only_idle_s=150.0, busy_share=0.5, upload_bytes_per_s=1 << 20, accept_from=(KEY,), packages=("any",)
    )
    assert from_file(home.folder / "nothing.toml") == Settings()


def test_a_term_is_taken_back_by_its_word(home: Home) -> None:
    older = from_flags(hours="22:00-07:00", accept_from=[KEY], only_idle="10", busy="30%", upload="1M", packages="any", runtimes="wasm")
    newer = from_flags(hours="always", accept_from=["all"], only_idle="0", busy="0", upload="0", packages="off", runtimes="all")
    policy = policy_of(newer.over(older), home.folder)
    assert (policy.hours, policy.submitters, policy.idle_s, policy.busy_share) == ((), (), 0.0, 0.0)
    assert (policy.upload_bytes_per_s, policy.environments, policy.runtimes) == (0, "off", Policy().runtimes)


@pytest.mark.parametrize(
    ("content", "says", "hint"),
    [
        ("only_idel = 5\n", "unknown key 'only_idel'", "did you mean 'only_idle'?"),
        ("zzz = 5\n", "unknown key 'zzz'", "known are name, cpus"),
        ("nice = 20\n", "nice: '20' is no niceness", "from 0"),
        ("nice = true\n", "nice: True is no whole number", ""),
        ("hours = 7\n", "hours: 7 is no text", ""),
        ("busy = nan\n", "busy: 'nan' is no share", "30%"),
        ("listen = 'here'\n", "listen: 'here' is no address", "127.0.0.1"),
        ("runtimes = ['nativ']\n", "runtimes: 'nativ' is no runtime", "did you mean 'native'?"),
        ("a b\n", "is not valid TOML", "repair"),
        (b"\xff = 1", "cannot be read", "repair"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_what_may_be_meant(home: Home, content: str | bytes, says: str, hint: str) -> None:
    path = home.folder / "config.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load(home)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert hint in caught.value.hint


def test_what_is_wrong_in_a_variable_or_a_flag_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PGRID_UPLOAD", "1K")
    with pytest.raises(ConfigError, match="P2PGRID_UPLOAD: '1K' a second is too little"):
        load(home)
    monkeypatch.setenv("P2PGRID_UPLOAD", "  ")
    assert load(home) == Settings()
    with pytest.raises(UsageError, match="--only-idle: 'soon' is no"):
        from_flags(only_idle="soon")


@pytest.mark.parametrize(
    ("read", "good", "value"),
    [
        (hours_of, "22:00-07:00, 12:15 - 13:00", ((1320, 420), (735, 780))),
        (hours_of, "00:00-24:00", ((0, 1440),)),
        (idle_of, "90s", 90.0),
        (idle_of, 5, 300.0),
        (share_of, "100%", 1.0),
        (share_of, 0, 0.0),
        (rate_of, "1M/s", 1 << 20),
        (truth_of, True, True),
        (truth_of, "OFF", False),
        (packages_of, "Zope.Interface", ("zope-interface",)),
        (runtimes_of, "wasm,native", ("native", "wasm")),
    ],
)
def test_ways_to_say_it(read: Any, good: Any, value: Any) -> None:
    assert read(good) == value


@pytest.mark.parametrize(
    ("read", "bad"),
    [
        *((hours_of, text) for text in ("", "7-9", "25:00-07:00", "12:60-13:00", "07:00-07:00", "24:00-07:00", "22:00", "22:00-25:00")),
        *((idle_of, value) for value in (-1, "8d", "inf", "nan", True, None)),
        *((share_of, value) for value in ("130%", -0.1, "half", True)),
        *((rate_of, value) for value in ("fast", "-1", "63K")),
        *((submitters_of, value) for value in ("abc", [KEY, 5], [])),
        *((packages_of, value) for value in ("a b", "any,numpy", "-x", "nump\u00fd", 5)),
        (runtimes_of, "java"),
        (truth_of, "perhaps"),
    ],
)
def test_ways_not_to_say_it(read: Any, bad: Any) -> None:
    with pytest.raises(UsageError):
        read(bad)


def test_a_node_that_its_owner_starts_for_a_job_works_at_once(home: Home) -> None:
    said = from_flags(only_idle="10", hours="22:00-07:00", busy="30%", nice=5, upload="1M")
    own = config_of(said, home.folder).policy
    assert (own.idle_s, own.hours, own.busy_share, own.on_battery) == (0.0, (), 0.0, True)
    assert (own.nice, own.upload_bytes_per_s) == (5, 1 << 20)
    lent = config_of(said, home.folder, volunteers=True).policy
    assert (lent.idle_s, lent.hours, lent.busy_share, lent.on_battery) == (600.0, ((1320, 420),), 0.3, False)
