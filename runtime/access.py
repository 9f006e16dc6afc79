"""Who may ask."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

__all__ = ["Access"]


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes
    ----------
    token : str or None
        A bearer token every call must carry.
    """

    token: str | None = None

    def allows(self, authorization: bytes) -> bool:
        """Whether a call with this header is entitled.

        Parameters
        ----------
        authorization : bytes
            Empty where there is none.
        """
        return self.token is None or hmac.compare_digest(authorization, f"Bearer {self.token}".encode())
