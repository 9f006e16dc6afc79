"""What one request is told when it gets no result."""

from __future__ import annotations

__all__ = ["RequestError"]


class RequestError(Exception):
    """A request that gets no result.

    Parameters
    ----------
    code : str
        Name of a gRPC status.
    message : str
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
