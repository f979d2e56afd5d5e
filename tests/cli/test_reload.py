"""Noticing that a source file changed, where the kernel has no watch to give."""

import itertools
import os
import threading
import time

import pytest

from dutiful.cli import reload


def test_without_a_watch_of_the_kernels_it_looks(tmp_path, monkeypatch, caplog):
    watchfiles = pytest.importorskip("watchfiles")
    real = watchfiles.main.RustNotify
    refused = threading.Event()

    def notify(paths, debug, force_polling, *rest):
        if not force_polling:
            refused.set()
            raise RuntimeError("Error creating recommended watcher: Too many open files (os error 24)")
        return real(paths, debug, force_polling, *rest)

    monkeypatch.setattr(watchfiles.main, "RustNotify", notify)
    (tmp_path / "app.py").write_text("a = 1\n")
    noticed = threading.Event()
    names = []

    end = reload.watch([tmp_path], lambda name: (names.append(name), noticed.set()))
    try:
        until = time.monotonic() + 10
        for at in itertools.count(1):  # when it has seen the folder as it was, nobody is told
            os.utime(tmp_path / "app.py", (at, at))
            if noticed.wait(0.05) or time.monotonic() > until:
                break
    finally:
        end()

    assert noticed.is_set()
    assert refused.is_set()
    assert names[0].endswith("app.py")
    assert "Too many open files" in caplog.text
