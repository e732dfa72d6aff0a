"""Errors of projectors, which import no torch."""


class ProjectorError(Exception):
    """A mistake in how a projector is named, registered or configured."""


class IncompatibleError(ProjectorError):
    """A configuration that this backbone cannot satisfy; the cell is recorded as skipped, with this reason."""
