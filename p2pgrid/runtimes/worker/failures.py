"""Exceptions of foreign code, told in a bounded text. Nothing here may fail, whatever the exception does when it is shown."""

from __future__ import annotations

from . import frames


def describe_exception(error: BaseException, *, skip_frames: int) -> bytes:
    """The payload for a unit that raised; ``skip_frames`` of the worker's own frames are left out of the traceback."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ in ("builtins", "p2pgrid_job") else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error)
    except BaseException:
        message = "(its message cannot be shown)"
    return frames.describe(str(name), message, _traceback(error, skip_frames))


def _traceback(error: BaseException, skip_frames: int) -> str:
    try:
        import traceback

        trace = error.__traceback__
        while skip_frames and trace is not None:
            trace = trace.tb_next
            skip_frames -= 1
        # A bounded number of frames: a runaway recursion has thousands.
        return "".join(traceback.TracebackException(type(error), error, trace, limit=-20).format())
    except BaseException:
        return ""
