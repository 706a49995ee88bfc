"""Forebay turns PDE solvers into trained surrogates while they run."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("forebay")
except PackageNotFoundError:  # a source tree on PYTHONPATH, for example in a Ray job's working directory
    __version__ = "0.0.0+source"
