"""Clearing away what units left: however deep, whatever rights were taken away, and never outside."""

from __future__ import annotations

import os
from pathlib import Path

from p2pgrid.runtimes.worker.files import empty_folder


def test_a_tree_deeper_than_any_path_is_cleared_away(tmp_path: Path) -> None:
    number = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("folder", dir_fd=number)
        inner = os.open("folder", os.O_RDONLY, dir_fd=number)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.close(number)
        number = inner
    os.close(number)
    empty_folder(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_rights_that_were_taken_away_do_not_keep_it(tmp_path: Path) -> None:
    inside = tmp_path / "a" / "b" / "c"
    inside.mkdir(parents=True)
    for folder in (inside, inside.parent, inside.parent.parent):
        (folder / "file").write_text("x")
    for folder in (inside, inside.parent, inside.parent.parent, tmp_path):
        folder.chmod(0)
    empty_folder(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_links_are_removed_and_what_they_lead_to_is_not_touched(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    (outside / "kept").mkdir(parents=True)
    (outside / "kept").chmod(0o500)
    (folder / "deep").mkdir(parents=True)
    (folder / "link").symlink_to(outside)
    (folder / "deep" / "link").symlink_to(outside / "kept")
    empty_folder(str(folder))
    assert os.listdir(folder) == []
    assert os.listdir(outside) == ["kept"]
    assert (outside / "kept").stat().st_mode & 0o777 == 0o500
    empty_folder(str(tmp_path / "missing"))
    (tmp_path / "to-outside").symlink_to(outside)
    empty_folder(str(tmp_path / "to-outside"))
    assert os.listdir(outside) == ["kept"]


def test_names_that_look_like_ours_are_cleared_away_too(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    clash = tmp_path / f".up-{(tmp_path / 'x').stat().st_ino}-0" / "full"
    clash.mkdir(parents=True)
    empty_folder(str(tmp_path))
    assert os.listdir(tmp_path) == []
