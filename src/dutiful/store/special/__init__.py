"""
Jobs that ask for more than plain ones: a key, a limit, jobs to wait for, uniqueness, an expiry.

Written once, for every store that speaks SQL (contract.Sql). A plain job never comes here:
its `extra` is NULL.

    insert    new jobs, and those run again by hand
    gates     what a blocked job waits for, and who may go next
    release   what a job's end sets free
    start     what is looked at when a job is claimed
    clockwork what becomes due by itself
"""
