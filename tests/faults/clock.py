"""
A wall clock that can be set while a program runs, without touching the machine's.

A small shim, compiled on the spot and preloaded, adds an offset to the wall clock (`clock_gettime`
of the REALTIME clocks, `gettimeofday`, `time`), so Python and SQLite see the same moved time.
CLOCK_MONOTONIC and CLOCK_BOOTTIME are not touched, as when an administrator sets the clock. The
offset stands in a file that the program has mapped: `Clock.jump_to` takes effect at once. A wait until
a wall-clock instant (`sem_timedwait`, by which an older Python waits for a lock) keeps its length.

Not libfaketime: its 0.9.10, which Debian 12 ships, leaves MONOTONIC and BOOTTIME alone too (with
FAKETIME_DONT_FAKE_MONOTONIC=1), but then makes every `time.sleep` fail with EINVAL while an offset
is set, since `clock_nanosleep` mixes the two clocks up.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t zero = 0;
static volatile const int64_t *offset_ns = &zero;

__attribute__((constructor)) static void map_offset(void) {
    const char *path = getenv("TEST_CLOCK_OFFSET");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED) offset_ns = mapped;
    close(fd);
}

static void add(struct timespec *t, int64_t ns) {
    int64_t total = (int64_t)t->tv_sec * 1000000000 + t->tv_nsec + ns;
    t->tv_sec = total / 1000000000;
    t->tv_nsec = total % 1000000000;
}

int clock_gettime(clockid_t id, struct timespec *t) {
    int failed = syscall(SYS_clock_gettime, id, t);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_TAI))
        add(t, *offset_ns);
    return failed;
}

int gettimeofday(struct timeval *restrict tv, void *restrict zone) {
    struct timespec t;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    tv->tv_sec = t.tv_sec;
    tv->tv_usec = t.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}

int sem_timedwait(sem_t *restrict sem, const struct timespec *restrict until) {
    static int (*real)(sem_t *, const struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec true_until = *until;
    add(&true_until, -*offset_ns);
    return real(sem, &true_until);
}
"""


class Clock:
    """The wall clock of the programs started with `env`."""

    def __init__(self, folder: Path) -> None:
        self._offset = folder / "clock-offset"
        self.jump_to(0)
        self.env = {"LD_PRELOAD": str(_compiled(folder)), "TEST_CLOCK_OFFSET": str(self._offset)}

    def jump_to(self, offset_s: float) -> None:
        """Set the wall clock to the true time plus `offset_s`, at once, in all of them."""
        fd = os.open(self._offset, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(fd, struct.pack("q", round(offset_s * 1e9)), 0)
        finally:
            os.close(fd)


def _compiled(folder: Path) -> Path:
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(SHIM)
    argv = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl", "-pthread"]
    subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    return library


def cannot_move() -> str | None:
    """Say why the clock cannot be moved here, or None if it can."""
    return None if shutil.which("cc") else "a movable clock needs a C compiler (cc)"
