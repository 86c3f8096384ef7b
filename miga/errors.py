"""The error tree of the whole project; the coordinator decides by `scope` and `retryable` alone.

    MigaError
    ├── UsageError          the command, a config or an argument is wrong          scope run
    │   └── ConfigError     an unknown key, a wrong type, a value out of range
    ├── InputError          a prompt file cannot be read at all                    scope run
    ├── OutputError         OUT holds something else, or cannot be written         scope run
    │   ├── LeaseHeldError  another run is writing in OUT
    │   └── OutputFullError there is no room left where OUT is
    ├── LeaseLostError      another run has taken OUT over from this one           scope run
    ├── ModelError          a checkpoint is missing, broken or of another kind     scope run
    ├── RowError            one row cannot be made                                 scope row
    │   ├── BadRowError     the row itself is wrong (found before any GPU time)
    │   ├── BadVideoError   a video that is to be evaluated cannot be read, or is another
    │   ├── NonFiniteError  the network returned NaN or infinity
    │   └── CheckpointError the file of a video in the making is of another one, broken, or cannot be written
    └── WorkerError         the worker failed, not the row                         scope worker, retryable

Every class pickles: its only state is the message and the hint, so Ray hands it on whole.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Scope = Literal["row", "worker", "run"]


class MigaError(Exception):
    """An error that a user can act on.

    Args:
        message: what was wrong and where.
        hint: what to do about it.
    """

    scope: ClassVar[Scope] = "run"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class UsageError(MigaError):
    """The command, a config or an argument is wrong."""


class ConfigError(UsageError):
    """A config holds an unknown key, a wrong type or a value out of range."""


class InputError(MigaError):
    """A prompt file cannot be read at all."""


class OutputError(MigaError):
    """OUT holds something else, or cannot be written."""


class LeaseHeldError(OutputError):
    """Another run is writing in OUT."""


class OutputFullError(OutputError):
    """There is no room left where OUT is: a full disk, a used-up quota."""


class LeaseLostError(MigaError):
    """Another run has taken OUT over from this one, which must write nothing more."""


class ModelError(MigaError):
    """A checkpoint is missing, broken or of another kind."""


class RowError(MigaError):
    """One row cannot be made; the others can."""

    scope = "row"


class BadRowError(RowError):
    """The row itself is wrong, which is known before any GPU time is spent."""


class BadVideoError(RowError):
    """A video that is to be evaluated cannot be read, or is not the one that was made."""


class NonFiniteError(RowError):
    """The network returned NaN or infinity."""


class CheckpointError(RowError):
    """The file of a video in the making is of another one, broken, or cannot be written."""


class WorkerError(MigaError):
    """The worker failed, not the row: worth another try elsewhere."""

    scope = "worker"
    retryable = True
