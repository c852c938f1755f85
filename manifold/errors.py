"""The errors of rhoscope: each names the argument, what was expected, what came, and the fix."""

from __future__ import annotations

from typing import Any


class RhoscopeError(Exception):
    """Base of every error that rhoscope raises on purpose; the command line prints it as one line."""

    exit_code = 2


class InputError(RhoscopeError, ValueError):
    """An argument does not make sense; the message says what was expected, what came and the fix."""


class CheckpointError(RhoscopeError):
    """A checkpoint cannot be read: missing, truncated, too large, not finite, or of the wrong shape."""


class UntrustedCheckpointError(CheckpointError):
    """A checkpoint asks to run code or hides its content; it was refused and nothing was executed."""


class LayoutError(RhoscopeError):
    """The tensors of a checkpoint do not fit the layout (or no layout could be guessed)."""


class OutputExistsError(RhoscopeError):
    """An output file exists already and ``--force`` was not given."""


class OutputError(RhoscopeError):
    """Standard output cannot be written: the disk behind it is full, or it is closed."""


class TooLargeError(RhoscopeError):
    """The problem does not fit in memory; the message says how large it is and what would fit."""


class NotConvergedError(RhoscopeError):
    """An iteration stopped before its tolerance; ``partial`` is the frozen result reached so far."""

    exit_code = 3

    def __init__(self, message: str, partial: Any = None):
        super().__init__(message)
        self.partial = partial


class NotIntegrableError(RhoscopeError):
    """A density grows without bound; ``direction`` is a unit vector along which it does."""

    def __init__(self, message: str, direction: Any = None):
        super().__init__(message)
        self.direction = direction


class InfeasibleMomentsError(RhoscopeError):
    """No probability measure has these moments; ``certificate`` holds the separating direction."""

    def __init__(self, message: str, certificate: Any = None):
        super().__init__(message)
        self.certificate = certificate
