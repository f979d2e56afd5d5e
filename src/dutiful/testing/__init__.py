"""
Testing what is built on dutiful: `StoreContract` says whether a store keeps its word.

Needs pytest.
"""

import pytest

pytest.register_assert_rewrite(
    *(
        f"dutiful.testing.{part}"
        for part in ("claims", "contract", "drafts", "jobs", "steps", "tools", "workers")
    )
)

from dutiful.testing.contract import StoreContract  # noqa: E402  # only from here on are asserts explained

__all__ = ["StoreContract"]
