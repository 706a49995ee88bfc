"""Exceptions for broken contracts.  Outcomes of a solve are data, not exceptions: see `records.Outcome`."""


class ForebayError(Exception):
    """Base of every error that a user can mend; the command line prints its text without a traceback."""


class StudyError(ForebayError):
    """A study file that cannot be run: the text names key, value, constraint and remedy."""


class ProblemError(ForebayError):
    """A problem that breaks its contract (missing file or class, wrong shapes, a changed sparsity)."""


class DatasetError(ForebayError):
    """A data set that cannot be opened, written or trusted."""


class RunError(ForebayError):
    """A run folder that cannot be continued, or a run that had to stop."""
