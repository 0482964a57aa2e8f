"""Errors of a run."""


class TrainingError(Exception):
    """A run cannot start or go on. The message says why."""
