"""The pytest plugin, as a project's tests use it."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

APP = """
    from dataclasses import dataclass
    from dutiful import Worker

    worker = Worker("jobs.db")
    done = []

    @dataclass
    class Order:
        id: int

    @worker.handler
    def ship(order: Order) -> int:
        if order.id < 0:
            raise ValueError("no such order")
        done.append(order.id)
        return order.id
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with an app, and pytest told of its worker."""
    pytester.makepyfile(shop=APP)
    pytester.makeini(
        """
        [pytest]
        pythonpath = .
        dutiful_workers = shop:worker
        addopts = --strict-markers -p no:randomly -p no:xdist -p no:cacheprovider -p no:hypothesispytest
        filterwarnings = error
        """
    )
    return pytester


def run(project: pytest.Pytester, source: str, **outcomes: int) -> pytest.RunResult:
    """Run a project's test in a pytest of its own."""
    project.makepyfile(test_shop=source)
    result = project.runpytest_subprocess("-q")
    result.assert_outcomes(**outcomes)
    assert not (project.path / "jobs.db").exists()
    return result


def test_pytest_finds_it_by_itself() -> None:
    assert [each.value for each in entry_points(group="pytest11", name="dutiful")] == [
        "dutiful.testing.plugin"
    ]


def test_every_test_has_a_store_of_its_own_whether_it_asks_for_it_or_not(project) -> None:
    run(
        project,
        """
        import pytest
        from shop import Order, done, worker

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(number):
            assert worker.jobs() == []
            worker.send(Order(number))
            assert worker.drain() == 1
            assert done.pop() == number
        """,
        passed=2,
    )


def test_the_fixtures(project) -> None:
    run(
        project,
        """
        import shop
        from dutiful import State
        from shop import Order

        def test_the_worker(dutiful_worker):
            assert dutiful_worker is shop.worker
            job = dutiful_worker.send(Order(1))
            assert job.state is State.PENDING
            assert job.result() == 1

        def test_the_clock(dutiful_worker, dutiful_clock):
            job = dutiful_worker.send(Order(1), delay=3600)
            dutiful_clock.advance("1h")
            assert job.state is State.COMPLETED

        def test_inline(dutiful_inline, dutiful_sent):
            assert dutiful_inline.send(Order(1)).state is State.COMPLETED
            assert dutiful_sent(Order, id=1) == [Order(1)]
            assert dutiful_sent(Order, id=2) == []
        """,
        passed=3,
    )


def test_the_marker_says_how_jobs_are_run(project) -> None:
    run(
        project,
        """
        import pytest
        from dutiful import State
        from shop import Order, worker

        pytestmark = pytest.mark.dutiful(mode="inline")

        def test_a_module(): assert worker.send(Order(1)).state is State.COMPLETED

        @pytest.mark.dutiful(mode="manual")
        def test_the_nearest_wins(): assert worker.send(Order(1)).state is State.PENDING

        def test_errors_are_raised():
            with pytest.raises(ValueError, match="no such order"):
                worker.send(Order(-1))

        @pytest.mark.dutiful(errors="keep")
        def test_or_kept(): assert worker.send(Order(-1)).errors[0].type == "ValueError"

        @pytest.mark.dutiful(mode="manual", errors="keep")
        def test_or_kept_inline(dutiful_inline): assert worker.send(Order(-1)).errors

        @pytest.mark.dutiful(start="2030-01-01T00:00+00:00")
        def test_the_time(dutiful_clock): assert dutiful_clock.now().year == 2030

        @pytest.mark.dutiful(mode="threads")
        def test_threads():
            with worker:
                assert worker.send(Order(1)).result(20) == 1

        @pytest.mark.dutiful(mode="off")
        def test_off(): assert worker.label.endswith("jobs.db")
        """,
        passed=8,
    )


def test_the_settings_say_so_for_all(project) -> None:
    ini = project.path / "tox.ini"
    ini.write_text(ini.read_text() + "\ndutiful_mode = inline\ndutiful_errors = keep\n")
    run(
        project,
        """
        from shop import Order, done, worker

        def test_it():
            worker.send(Order(1))
            assert done == [1]
            assert worker.send(Order(-1)).errors
        """,
        passed=1,
    )


def test_a_handlers_exception_fails_the_test_with_its_traceback(project) -> None:
    result = run(
        project,
        """
        from shop import Order, worker

        def test_it(dutiful_inline):
            worker.send(Order(-1))
        """,
        failed=1,
    )

    result.stdout.fnmatch_lines(
        ["*def ship(order: Order)*", "E*ValueError: no such order", "E*handler of job 1 (Order), attempt 1*"]
    )


def test_a_failed_assertion_says_what_was_sent(project) -> None:
    result = run(
        project,
        """
        from dutiful.testing import assert_sent
        from shop import Order, worker

        def test_it():
            worker.send(Order(1))
            assert_sent(worker, Order, id=2)
        """,
        failed=1,
    )

    result.stdout.fnmatch_lines(
        [
            ">*assert_sent(worker, Order, id=2)",
            "E*Order was sent 0 times with id=2*",
            "E*Sent of it: Order(id=1)*",
        ]
    )


def test_an_app_that_makes_its_worker_in_a_function_has_a_fixture(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest
        from dutiful import Worker

        @pytest.fixture
        def app():
            return Worker("jobs.db", handlers={"note": lambda: "noted"})

        @pytest.fixture
        def dutiful_workers(app):
            return [app]
        """
    )
    run(
        pytester,
        """
        def test_it(app, dutiful_inline):
            assert app.send(None, task="note").result() == "noted"

        def test_one_that_does_not_ask(app):
            assert app.stand_in is None
        """,
        passed=2,
    )


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("", "*dutiful does not know your workers*"),
        ("dutiful_workers = nowhere:worker", "*'nowhere:worker', which cannot be imported: No module named*"),
        ("dutiful_workers = os:path.walker", "*'os:path.walker', which cannot be imported*"),
        ("dutiful_workers = os:path.join", "*'os:path.join', which is no Worker*"),
    ],
)
def test_a_wrong_setting_says_what_to_do(pytester: pytest.Pytester, named: str, said: str) -> None:
    pytester.makeini(f"[pytest]\n{named}\n")
    result = run(pytester, "def test_it(dutiful_worker): ...", errors=1)

    result.stdout.fnmatch_lines([said])


def test_a_wrong_marker_says_what_it_takes(project) -> None:
    result = run(
        project,
        """
        import pytest

        @pytest.mark.dutiful(inline=True)
        def test_it(): ...
        """,
        errors=1,
    )

    result.stdout.fnmatch_lines(["*the marker dutiful does not take inline*mode=*"])


def test_it_costs_a_project_that_does_not_use_it_next_to_nothing(pytester: pytest.Pytester) -> None:
    """Neither msgspec nor sqlite3 is loaded, nor any of ours beyond the plugin."""
    run(
        pytester,
        """
        import sys

        def test_it():
            names = {"dutiful", "msgspec", "sqlite3"}
            loaded = {name for name in sys.modules if name.partition(".")[0] in names}
            assert loaded == {"dutiful", "dutiful.testing", "dutiful.testing.plugin"}
        """,
        passed=1,
    )
