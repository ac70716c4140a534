"""Warnings that no user can mend do not stand around an error's one line."""

from __future__ import annotations

import logging
import multiprocessing
import subprocess
import sys
import warnings

import pytest

import tagclip
from tagclip.utils.cli import run_tool
from tagclip.utils.quiet import quiet_imports, silence


def test_a_tool_is_quiet_about_what_it_imports() -> None:
    def tool() -> None:
        warnings.warn("`torch.jit.script` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("TypedStorage is deprecated. It", UserWarning, stacklevel=1)
        warnings.warn("`broadcast_buffers` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("mend me", FutureWarning, stacklevel=1)

    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run_tool(tool)
            assert logger.level == logging.ERROR
        finally:
            logger.setLevel(before)
    assert [str(warning.message) for warning in caught] == ["mend me"]


def warn_twice() -> None:
    warnings.warn("`torch.jit.script` is deprecated. Please", FutureWarning, stacklevel=1)
    warnings.warn("mend me", FutureWarning, stacklevel=1)


def test_processes_that_a_tool_starts_are_quiet_from_the_first(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings():
        quiet_imports()
        quiet_imports()
    process = multiprocessing.get_context("spawn").Process(target=warn_twice)
    process.start()
    process.join()
    said = capfd.readouterr().err
    assert process.exitcode == 0 and "mend me" in said and "torch.jit" not in said
    assert len(sys.warnoptions) == 3


# The package itself, which imports everything, is replaced by an empty one.
_WITHOUT_TORCH = """
import sys, types
package = types.ModuleType("tagclip")
package.__path__ = [sys.argv[1]]
sys.modules["tagclip"] = package
sys.modules.update(dict.fromkeys(["torch", "numpy"]))
from tagclip.errors import ConfigError
from tagclip.utils.cli import run_tool
def main():
    raise ConfigError("SEED: found 1")
run_tool(main)
"""


def test_the_error_line_needs_no_torch() -> None:
    command = [sys.executable, "-c", _WITHOUT_TORCH, tagclip.__path__[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "ConfigError: SEED: found 1\n")


def test_silence_ends(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tagclip.anything")
    with silence(logging.WARNING):
        logger.warning("one")
        logger.error("two")
        with silence():
            logger.critical("three")
        logger.error("four")
    logger.warning("five")
    assert caplog.messages == ["two", "four", "five"]
