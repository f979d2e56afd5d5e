"""The contract: stores look at no text, and find a task in all its versions."""

import pytest

from dutiful.job import ErrorInfo, State
from dutiful.store.contract import Query, Store
from dutiful.testing.tools import QUEUE, Hooks, ack, draft, one, put, step, take

# What is stored of secret and of encrypted values is no JSON.
TEXTS = ("sealed:1:0123abcd:AAAA+/==", 'secret:{"a":1}', "secret:null", "")


class PayloadContract(Hooks):
    """Texts as they are; versions as part of a task's name."""

    @pytest.mark.parametrize("text", TEXTS)
    def test_payloads_results_and_errors_are_any_text(self, store: Store, text: str) -> None:
        owner = store.join("w", [QUEUE], 1)
        good, bad = put(store, draft(text, text))
        first, second = take(store, owner)
        assert (first.payload, second.payload) == (text, text)

        error = ErrorInfo("ValueError", text, text)
        step(store, acks=[ack(first, result=text), ack(second, State.DEAD, error=error)])

        assert (one(store, good).payload, one(store, good).result) == (text, text)
        (written,) = one(store, bad).errors
        assert (written.message, written.traceback) == (text, text)

    def test_find_takes_a_task_for_all_its_versions(self, store: Store) -> None:
        tasks = ["a", "a@2", "a@17", "a#0123abcd", "a@2#0123abcd", "ab", "b@2", "ba", "_", "x@2"]
        ids = dict(zip(tasks, put(store, *(draft(task=task) for task in tasks)), strict=True))

        def found(task: str) -> list[str]:
            return [job.task for job in store.find(Query(task=task))]

        assert sorted(found("a")) == sorted(["a", "a@2", "a@17", "a#0123abcd", "a@2#0123abcd"])
        assert sorted(found("a@2")) == ["a@2", "a@2#0123abcd"]
        assert found("_") == ["_"]
        assert found("A") == []
        assert ids["a@2"] in [job.id for job in store.find(Query(task="a", states=(State.PENDING,)))]

    def test_a_version_that_is_not_known_is_left_untouched(self, store: Store) -> None:
        owner = store.join("w", [QUEUE], 1, ["a"])
        known, newer = put(store, draft(task="a"), draft(task="a@2"))

        claims = take(store, owner, known={"a"})

        assert [claim.id for claim in claims] == [known]
        assert (one(store, newer).state, one(store, newer).attempt) == (State.PENDING, 0)
