"""Every error RecPress raises on purpose, on one page.

The command line turns a `RecPressError` into one line on stderr and its `exit_code`; anything else is a bug and
keeps its traceback.
"""

from __future__ import annotations


class RecPressError(Exception):
    """Something the user can mend; the message says where, what came, what is allowed and what to do next."""

    exit_code = 2

    def __str__(self) -> str:
        """One line, whatever it quotes: line breaks and other control characters are written as escapes."""
        return "".join(each if each.isprintable() else repr(each)[1:-1] for each in super().__str__())


class RecipeError(RecPressError):
    """The recipe is not one: an unknown key, a value out of range, a stage that names no earlier stage."""


class LaunchError(RecPressError):
    """Several processes were started for a command, or a batch, that they cannot share."""


class DataError(RecPressError):
    """The interactions cannot be read, or nothing is left of them after filtering."""


class ArtifactError(RecPressError):
    """A stage's folder is missing, damaged, in use by another run, of an older schema, or cannot be written."""


class ParityError(RecPressError):
    """An exported graph does not answer as the PyTorch model it was made from."""


class BuildError(RecPressError):
    """TensorRT does not take a graph: the message names the operator and its reason."""


class GateFailed(RecPressError):
    """Everything ran; the result is not good enough for the gate."""

    exit_code = 3
