"""The front door's part for looking: at jobs, counts and workers, and for changing them by hand."""

from collections.abc import Iterable, Sequence
from typing import Literal

from dutiful.asking import HasId, id_of, ids_of
from dutiful.core.values import whole
from dutiful.errors import ConfigError
from dutiful.front.base import Base
from dutiful.handle import Job
from dutiful.job import JobId, Record, State
from dutiful.payload import check_name
from dutiful.store.contract import Counts, Edit, Query, WorkerInfo
from dutiful.store.special import pauses
from dutiful.store.special.pauses import Paused
from dutiful.store.special.reseal import Rekeyed, reseal
from dutiful.versions import checked_task, task_of

EDIT_JOBS = 1000  # of a plural edit, in one commit: a few ms


class Looking(Base):
    """What a worker says of its store, and the edits by hand."""

    def job(self, job_id: JobId) -> Job:
        """
        Return the job with this id; asks the store only when it is used.

        Raises:
            ConfigError: That is no id.
        """
        return Job(self, id_of(job_id))

    def jobs(
        self,
        *,
        state: State | str | Sequence[State | str] = (),
        task: type | str | None = None,
        queue: str | None = None,
        before: JobId | None = None,
        limit: int = 100,
    ) -> list[Record]:
        """
        Return stored jobs, newest first, at most `limit`; `before` an id is the next page.

        `task` finds all versions of it, "task@2" that one. Secrets are masked.

        Raises:
            ConfigError: An argument is wrong.
        """
        states = [state] if isinstance(state, str) else state
        try:
            wanted = tuple(map(State, states))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{error}; there are {', '.join(State)}.") from error
        query = Query(
            wanted,
            None if task is None else self._task_to_find(task),
            None if queue is None else check_name(queue, "queue"),
            None if before is None else id_of(before),
            whole("limit", limit, 0, unchanged="Give a number of jobs."),
        )
        return [self.shown(record) for record in self.opened().find(query)]

    def _task_to_find(self, task: str | type) -> str:
        # A name is found as it is given, versions and all; a type in all its versions.
        return checked_task(task) if isinstance(task, str) else task_of(self._registry.resolve_task(task))

    def counts(self) -> Counts:
        """Count the jobs in the store by state."""
        return self.opened().counts()

    def workers(self) -> list[WorkerInfo]:
        """Return the workers that take jobs from this store, in all processes."""
        return self.opened().workers()

    def retry(self, jobs: Iterable[HasId | JobId] | HasId | JobId) -> list[JobId]:
        """
        Run finished jobs again, now, with their failures forgotten and their errors kept.

        Takes jobs or their ids, several or one. Returns the ids for which it was done: those of dead,
        cancelled and completed jobs.
        """
        return self._edit(jobs, "retry")

    def cancel(self, jobs: Iterable[HasId | JobId] | HasId | JobId) -> list[JobId]:
        """
        End jobs: pending ones at once, running ones as their kind allows (see `Job.cancel`).

        Takes jobs or their ids, several or one. Returns the ids for which it was done, or asked for.
        """
        return self._edit(jobs, "cancel")

    def delete(self, jobs: Iterable[HasId | JobId] | HasId | JobId) -> list[JobId]:
        """
        Remove jobs and their history.

        Takes jobs or their ids, several or one. Returns the ids for which it was done: all but running ones.
        """
        return self._edit(jobs, "delete")

    def _edit(self, jobs: Iterable[HasId | JobId] | HasId | JobId, edit: Edit) -> list[JobId]:
        job_ids = ids_of(edit, jobs)
        store = self.opened()
        done: list[JobId] = []
        for start in range(0, len(job_ids), EDIT_JOBS):  # in parts, so that no send waits long
            done += store.edit(job_ids[start : start + EDIT_JOBS], edit)
        if done:  # run again, or out of another's way
            store.ring()
            self.nudge()
        return done

    def rekey(self) -> Rekeyed:
        """
        Encrypt with the first key of `encrypt` what is stored with others, or in clear.

        Repeating goes on where it was. Workers go on meanwhile; each must have all keys before.

        Raises:
            ConfigError: This worker has no key. StoreError: What was done until then stays done.
        """
        if self._config.keyring is None:
            raise ConfigError(
                "rekey() needs a key, and this worker has none; nothing was changed. Give it to "
                "Worker(encrypt=…), or set DUTIFUL_KEY."
            )
        return reseal(self.opened(), self._config.keyring)

    def pause(self, *, queue: str | None = None, task: str | None = None) -> None:
        """
        Have no worker begin a job of this queue, or of this task, until it is resumed.

        Holds for all workers of the store, at once and after a restart. What runs already goes on;
        jobs can be sent, and wait. Repeating is harmless.

        Raises:
            ConfigError: Not one of the two was given, or it is no name. StoreError: Nothing was paused.
        """
        kind, name = _queue_or_task("pause", queue, task)
        with self.opened().sql() as sql:
            pauses.pause(sql, kind, name)
        self.reread()

    def resume(self, *, queue: str | None = None, task: str | None = None) -> bool:
        """
        Let jobs of this queue, or of this task, be taken again; return whether it was paused.

        Raises:
            ConfigError: Not one of the two was given, or it is no name. StoreError: Nothing was resumed.
        """
        kind, name = _queue_or_task("resume", queue, task)
        with self.opened().sql() as sql:
            was_paused = pauses.resume(sql, kind, name)
        if kind == "task":
            self.opened().unpark((name,))  # if this is cut short, workers do it
        self.reread()
        return was_paused

    def paused(self) -> list[Paused]:
        """Return the queues and tasks that are paused."""
        with self.opened().sql_look() as look:
            return pauses.listed(look)


def _queue_or_task(action: str, queue: str | None, task: str | None) -> tuple[Literal["queue", "task"], str]:
    if queue is not None and task is None:
        return "queue", check_name(queue, "queue")
    if task is not None and queue is None:
        return "task", check_name(task, "task")
    raise ConfigError(f"{action}() takes either queue= or task=; nothing was changed. Give one of them.")
