"""Everything that can go wrong, by what a caller can do about it.

TfdeployError              anything this package raises on purpose
├── InputError             something named in the call cannot be used; nothing was started
│   ├── NameNotFound       no variable, signature or metric of that name
│   ├── NotAModel          the thing is not a model we can convert
│   ├── ModelNotReady      a model, but unbuilt, on another backend, or with weights that are not finite
│   ├── DataError          calibration or test data that does not fit, is empty or is not finite
│   └── OutputError        the file cannot be written where it was asked for
├── UserCodeError          your generator or metric raised or hung; its own exception is the cause
├── BudgetNotMet           no file costs as little as was asked; the nearest is named
├── ServingError           a model server did not start, or what it was asked for did not happen
│   ├── ServerUnreachable  nothing answers at its address
│   ├── VersionFailed      a version of a model cannot be loaded; those that are served go on
│   └── RequestRefused     the server answered with an error of its own; ``status`` is its HTTP status
├── ConversionError        TensorFlow refused the model
│   └── ContractBroken     a file was made, but it is not what was asked for
│       └── VariablesLost  ... because its variables have no values
└── JobError               the isolated process did not finish; the kernel is unharmed
    ├── JobCancelled       stopped by the person
    ├── DeadlineExceeded   took longer than its deadline
    ├── MemoryLimitExceeded  used more memory than it was given
    ├── JobFailed          raised an exception that nothing above names
    └── JobCrashed         died by a signal
        └── ConversionCrashed  ... while converting or quantizing
"""

from __future__ import annotations

import signal as signals


class TfdeployError(Exception):
    """Base of every error this package raises on purpose; its text is always two lines.

    Args:
        what: The thing that failed, as a clause: "x_train is not a model".
        found: What was there.
        wanted: What would have worked.
        cure: What to type or change next, as a sentence.
    """

    def __init__(self, what: str, *, found: str, wanted: str, cure: str) -> None:
        self.what = what
        self.found = found
        self.wanted = wanted
        self.cure = cure
        super().__init__(f"{what}: found {found}.\nWanted {wanted}. {cure}")

    def as_fields(self) -> dict[str, str]:
        """Return the four parts, for crossing a process boundary as data."""
        return {"what": self.what, "found": self.found, "wanted": self.wanted, "cure": self.cure}


class InputError(TfdeployError):
    """Something named in the call cannot be used; nothing was started."""


class NameNotFound(InputError):
    """No variable, signature or metric of that name."""


class NotAModel(InputError):
    """The thing is not a model that can be converted."""


class ModelNotReady(InputError):
    """The model is unbuilt, on another backend, or has weights that are not finite."""


class DataError(InputError):
    """Calibration or test data that does not fit the model, is empty or is not finite."""


class OutputError(InputError):
    """The file cannot be written where it was asked for."""


class UserCodeError(TfdeployError):
    """The person's own generator or metric raised or hung; its exception is ``__cause__``."""


class BudgetNotMet(TfdeployError):
    """No file of a comparison costs as little as was asked."""


class ServingError(TfdeployError):
    """A model server did not start, or what it was asked for did not happen."""


class ServerUnreachable(ServingError):
    """Nothing answers at the server's address."""


class VersionFailed(ServingError):
    """A version of a model cannot be loaded; the versions that are served go on."""


class RequestRefused(ServingError):
    """The server answered with an error of its own.

    Args:
        what: What was asked, "digits was asked to predict".
        status: The canonical code, "INVALID_ARGUMENT", or the HTTP status as text where there is none.
        message: The server's words.
        cure: What to change.
    """

    def __init__(self, what: str, *, status: str, message: str, cure: str) -> None:
        self.status = status
        self.message = message
        first_line = (message.strip() or "no message").splitlines()[0][:300].rstrip(".")
        super().__init__(what, found=f"{status}: {first_line}", wanted="an answer", cure=cure)


class ConversionError(TfdeployError):
    """TensorFlow refused the model."""


class ContractBroken(ConversionError):
    """A file was made, but it is not what was asked for."""


class VariablesLost(ContractBroken):
    """A file was made, but variables of it never get a value: it would answer NaN."""


class JobError(TfdeployError):
    """The isolated process did not finish; the kernel is unharmed."""


class JobCancelled(JobError):
    """The person stopped the job."""


class DeadlineExceeded(JobError):
    """The job took longer than its deadline and was ended."""


class MemoryLimitExceeded(JobError):
    """The job used more memory than it was given and was ended."""


class JobFailed(JobError):
    """The job raised an exception that no other error here names.

    Args:
        exception: The exception's class name, "ConverterError".
        message: Its text, whole.
        trace: The traceback inside the job, as text.
    """

    def __init__(
        self, what: str, *, exception: str, message: str, trace: str, cure: str = "--debug shows where."
    ) -> None:
        self.exception = exception
        self.message = message
        self.trace = trace
        first_line = (message.strip() or "no message").splitlines()[0][:300].rstrip(".")
        super().__init__(what, found=f"{exception}: {first_line}", wanted="a result", cure=cure)


class JobCrashed(JobError):
    """The job died by a signal.

    Args:
        what: What it was doing.
        signal: The number of the signal that ended it, or None when that was not seen.
        stage: The stage it was in.
        last_lines: The end of its standard error.
        cure: The known cure, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        signal: int | None,
        stage: str,
        last_lines: tuple[str, ...],
        cure: str | None = None,
    ) -> None:
        self.signal = signal
        self.stage = stage
        self.last_lines = last_lines
        name = signals.Signals(signal).name if signal is not None else "no exit status"
        said = f'; its last words: "{last_lines[-1][:160].rstrip(".")}"' if last_lines else ""
        super().__init__(
            what,
            found=f"{name} in stage '{stage}'{said}",
            wanted="a result; your kernel and its variables are unharmed",
            cure=cure or "No cure is known: --debug shows all it printed.",
        )


class ConversionCrashed(JobCrashed):
    """The converter, calibrator or quantizer died by a signal."""


def from_fields(name: str, fields: dict[str, str]) -> TfdeployError:
    """Rebuild an error that crossed a process boundary.

    Args:
        name: The class name, one of this module's.
        fields: What :meth:`TfdeployError.as_fields` gave.
    """
    kind = globals().get(name)
    if not (isinstance(kind, type) and issubclass(kind, TfdeployError)) or kind.__init__ is not TfdeployError.__init__:
        kind = TfdeployError
    return kind(fields["what"], found=fields["found"], wanted=fields["wanted"], cure=fields["cure"])
