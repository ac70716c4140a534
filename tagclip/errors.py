"""One family of exceptions for everything a user can mend.

Each message is one line: which file or key, what was found, what was expected, what to do.
`tools/*` print it without a traceback and exit with 1; ``TAGCLIP_DEBUG=1`` shows the traceback.
"""

import errno
import re

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DatasetError",
    "NonFiniteLossError",
    "NotInstalledError",
    "OutputError",
    "ProcessError",
    "ProtocolError",
    "TagCLIPError",
    "VocabularyError",
]


# Paths have no blanks, most of the time.
_LONG_WORD = re.compile(r"(\S{120})\S{16,}(\S{120})")


class TagCLIPError(Exception):
    """Base of all errors that the user, not the programmer, can mend.

    Names and values from files stand in messages: what would act on a terminal is shown escaped,
    and of a very long name only the beginning and the end (``args`` hold all of it). Line feeds
    stay, for torch puts tracebacks of other processes into messages.
    """

    def __str__(self) -> str:
        text = _LONG_WORD.sub(r"\1...\2", self._text())
        if text.isprintable():
            return text
        # An escape of Python, without its quotes.
        return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)

    def _text(self) -> str:
        """Message before what is too long or not printable is shown otherwise."""
        return super().__str__()


class ConfigError(TagCLIPError):
    """A config file, key or command-line option does not make sense."""


class DatasetError(TagCLIPError):
    """An image, label file or dataset folder is missing, damaged or holds unexpected values."""


class VocabularyError(TagCLIPError):
    """A class list, its split or its json file is inconsistent."""


class CheckpointError(TagCLIPError):
    """A checkpoint or CLIP weight file is missing, damaged, unsafe or does not fit the model."""


class NonFiniteLossError(TagCLIPError, FloatingPointError):
    """A training loss became infinite or not a number."""


class NotInstalledError(TagCLIPError, ImportError):
    """A package that tagclip needs, but cannot bring along, is not installed."""


class OutputError(TagCLIPError, OSError):
    """A file or folder cannot be written: OutputError(errno, reason, path), as any OSError.

    ``filename`` is the path that was asked for, not that of a temporary file.
    """

    def _text(self) -> str:
        # A process of torch hands on a text alone.
        if self.filename is None:
            return super()._text()
        remedy = "free space or choose another place"
        if self.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "choose a place that can be written, or mend this one"
        return f"{self.filename}: cannot be written ({self.strerror}); {remedy}"


class ProcessError(TagCLIPError):
    """Another process of the same run ended, or cannot be reached."""


class ProtocolError(TagCLIPError):
    """Training depends on what the zero-shot protocol hides, or nothing could be shown."""
