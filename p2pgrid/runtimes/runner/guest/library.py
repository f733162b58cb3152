"""Imports the standard library while the runner is built: a guest has no files from which it could import anything later."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
import warnings

_USELESS = """antigravity curses ensurepip ftplib idlelib imaplib lib2to3 mailbox msilib pip poplib pydoc pydoc_data smtplib test this
    tkinter turtle turtledemo venv webbrowser wsgiref __main__ __hello__ __phello__ _ios_support _android_support _osx_support
    _apple_support"""
"""Nothing of these can work in here, or nobody would want it to."""
_PACKAGES = "collections compression concurrent email encodings html http importlib json logging os sqlite3 unittest urllib xml zipfile"
"""Their modules are imported, too."""
_ELSEWHERE = (".__main__", ".cp65001", ".mbcs", ".oem")
"""Endings of modules that belong to other systems, or that run when they are imported."""


def import_all() -> None:
    """Import all that can be imported."""
    warnings.simplefilter("ignore")
    whole_path = list(sys.path)
    # The tool offers whatever it finds in the environment it runs in; only the library it carries itself may come in.
    sys.path[:] = [place for place in whole_path if (place + "/").startswith("/python/")]
    for name in sorted(sys.stdlib_module_names - set(_USELESS.split())):
        _import(name)
    for package in _PACKAGES.split():
        path = getattr(sys.modules.get(package), "__path__", None)
        for module in pkgutil.walk_packages(path, f"{package}.") if path else ():
            if not module.name.endswith(_ELSEWHERE):
                _import(module.name)
    sys.path[:] = whole_path
    warnings.resetwarnings()


def _import(name: str) -> None:
    with contextlib.suppress(Exception):  # A module that wants a system says so in its own way.
        importlib.import_module(name)
