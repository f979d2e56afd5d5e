"""What is looked at when special jobs are claimed."""

from collections.abc import Sequence

import msgspec

from dutiful.job import Claim, JobId
from dutiful.store.special import extra as extras
from dutiful.store.special import gates
from dutiful.store.special.release import settle

EXPIRED = "Expired"
NEVER_SENT = "NeverSent"
_NEVER_SENT = (
    "its group was never completely sent: its sender has died, or nothing more came for an hour. "
    "The members that were stored have run, or will; send the group again"
)


def started(turn: gates.Turn, claims: Sequence[Claim], worker: str) -> list[Claim]:
    """Return the claims that may run; those that came too late are dead now."""
    sql = turn.sql
    ids = [claim.id for claim in claims if claim.extra is not None]
    late = {
        row[0]
        for row in sql.rows(
            "SELECT id FROM {job} WHERE id IN {ids} AND expires_at IS NOT NULL AND expires_at <= ?",
            ids,
            sql.now,
        )
    }
    kept: list[Claim] = []
    in_time: list[JobId] = []
    freed: list[JobId] = []
    for claim in claims:
        if claim.id in late:
            continue
        if claim.extra is None:
            kept.append(claim)
            continue
        extra = extras.read(claim.extra)
        if extra.frees_at_start:
            freed.append(claim.id)
        if extra.deadline_at is None:
            in_time.append(claim.id)
            kept.append(claim)
        else:
            sql.change("UPDATE {job} SET expires_at = ? WHERE id = ?", extra.deadline_at, claim.id)
            left_s = (extra.deadline_at - sql.now) / 1000
            text = extras.write(msgspec.structs.replace(extra, left_s=left_s))
            kept.append(msgspec.structs.replace(claim, extra=text))
    if in_time:
        sql.change("UPDATE {job} SET expires_at = NULL WHERE id IN {ids} AND expires_at IS NOT NULL", in_time)
    if freed:
        sql.change("UPDATE {job} SET unique_key = NULL WHERE id IN {ids}", freed)
    expire(turn, sorted(late), worker)
    return kept


def expire(turn: gates.Turn, ids: Sequence[JobId], worker: str) -> None:
    """End jobs that were not started in time, or are past their deadline."""
    if not ids:
        return
    sql = turn.sql
    # Behind the error of the attempt that failed last, if it was waiting to be tried again.
    sql.change(
        "INSERT INTO {error} (job_id, attempt, at, worker, type, message, traceback)"
        " SELECT id, attempt + (SELECT count(*) FROM {error} AS failed"
        " WHERE failed.job_id = job.id AND failed.attempt = job.attempt), ?, ?,"
        " CASE held WHEN 'group' THEN ? ELSE ? END,"
        " CASE held WHEN 'group' THEN ? ELSE 'it was not done in time' END, ''"
        " FROM {job} AS job WHERE id IN {ids}"
        " ON CONFLICT (job_id, attempt) DO NOTHING",
        sql.now,
        worker,
        NEVER_SENT,
        EXPIRED,
        _NEVER_SENT,
        list(ids),
    )
    sql.change(
        "UPDATE {job} SET state = 'dead', owner = NULL, finished_at = ?, held = NULL WHERE id IN {ids}",
        sql.now,
        list(ids),
    )
    settle(turn, ids)
