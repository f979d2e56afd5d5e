"""The contract suites, with asserts that pytest explains. Needs pytest."""

import pytest

pytest.register_assert_rewrite(
    *(
        f"dutiful.testing.{part}"
        for part in (
            "claims",
            "contract",
            "drafts",
            "groups",
            "jobs",
            "once",
            "payloads",
            "periodic",
            "special",
            "steps",
            "tools",
            "turns",
            "workers",
        )
    )
)

from dutiful.testing.contract import (  # noqa: E402  # only from here on are asserts explained
    DoorbellContract,
    DurableContract,
    SpecialContract,
    StoreContract,
    UsersTransactionContract,
)

__all__ = [
    "DoorbellContract",
    "DurableContract",
    "SpecialContract",
    "StoreContract",
    "UsersTransactionContract",
]
