"""
What the documentation shows is run, and what it links to is there.

A ```python block is a program of its own, run in an empty folder, unless an HTML comment
stands in the line before it:

    <!-- docs: continue -->   it goes on where the block before it ended
    <!-- docs: skip -->       it is not run
    <!-- docs: postgres -->   it finds the URL of an empty PostgreSQL database in DATABASE_URL
    <!-- docs: file app.py -->       it is a file of that name, of any kind, for the tests of the page
    <!-- docs: pytest test_app.py -->    it is such a test, which pytest runs

A ```text block right after a ```python block is what the program prints, all of it up to there.
"""

import inspect
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import dutiful

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED_FROM = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
EXAMPLES = [*sorted((ROOT / "examples").glob("*.py")), ROOT / "examples/stdlib_hashes/demo.py"]
SERVER = ROOT / "examples/webapp.py"  # serves until it is killed: webapp_crash.py runs it
RUN_S = 30

# A mark, the block, and what it prints.
BLOCK = re.compile(
    r"(?:<!-- docs: (?P<mark>\w+)(?: (?P<file>\S+))? -->\n)?^```python\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<prints>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
FILE = re.compile(
    r"<!-- docs: file (?P<name>\S+) -->\n^```\w+\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass
class Program:
    """One block, or a chain of blocks that continue each other."""

    name: str
    code: str = ""
    prints: str | None = None
    wants_postgres: bool = False
    test: str | None = None  # the name of its file, if it is a test
    files: dict[str, str] = field(default_factory=dict)


def programs_of(page: Path) -> list[Program]:
    """Return the programs of a page; each is named for the line where it begins."""
    text = page.read_text()
    files = {block["name"]: block["code"] for block in FILE.finditer(text)}
    found: list[Program] = []
    for block in BLOCK.finditer(text):
        if block["mark"] in ("skip", "file"):
            continue
        if block["mark"] != "continue":
            line = text.count("\n", 0, block.start("code"))
            name = f"{page.relative_to(ROOT)}:{line}"
            found.append(Program(name, wants_postgres=block["mark"] == "postgres"))
            if block["mark"] == "pytest":
                found[-1].test, found[-1].files = block["file"], files
        found[-1].code += block["code"]
        if block["prints"]:
            found[-1].prints = (found[-1].prints or "") + block["prints"]
    return found


def run(program: Path, folder: Path, *, by: tuple[str, ...] = (), **variables: str) -> str:
    """Run a program in `folder`, with warnings as errors, `by` such as pytest; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DUTIFUL")}
    environment |= variables
    done = subprocess.run(
        [sys.executable, "-W", "error", *by, program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # What is raised where nobody can catch it, such as a ResourceWarning, is only printed.
    assert "Exception ignored" not in done.stderr, done.stderr
    return done.stdout


# Starlette's test client would rather have a successor of httpx.
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "-W", "ignore:Using `httpx`")
PROGRAMS = [program for page in PAGES for program in programs_of(page)]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_block_of_the_documentation_runs_and_prints_what_it_says(
    program: Program, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for name, text in program.files.items():
        (tmp_path / name).write_text(text)
    file = tmp_path / (program.test or "shown.py")
    file.write_text(program.code)
    variables = {"DATABASE_URL": request.getfixturevalue("database_url")} if program.wants_postgres else {}

    printed = run(file, tmp_path, by=PYTEST if program.test else (), **variables)

    if program.prints is not None:
        assert printed == program.prints


@pytest.mark.parametrize("example", [each for each in EXAMPLES if each != SERVER], ids=lambda path: path.stem)
def test_an_example_runs(example: Path, tmp_path: Path) -> None:
    assert run(example, tmp_path)


@pytest.mark.parametrize("page", LINKED_FROM, ids=lambda path: path.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    relative = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    missing = [link for link in relative if not _leads_somewhere(page, link)]

    assert missing == []


def test_the_tests_that_the_guarantees_name_are_there() -> None:
    """A link to a test has the test's name, which is a sentence, for its text."""
    page = ROOT / "docs/guarantees.md"
    linked = re.findall(r"\[([^\]]*)\]\((\.\./(?:tests|src)/[^)\s]*)\)", page.read_text())
    missing = [
        sentence
        for sentence, path in linked
        if f"def test_{sentence.replace(' ', '_')}(" not in (page.parent / path).read_text()
    ]

    assert linked
    assert missing == []


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, heading = link.partition("#")
    target = (page.parent / path) if path else page
    if not target.exists():
        return False
    return not heading or target.suffix != ".md" or heading in map(_anchor, _headings(target))


def _headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)


def _anchor(heading: str) -> str:
    """Return a heading's name in a link, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_public_name_is_in_the_reference() -> None:
    text = (ROOT / "docs/api.md").read_text()
    missing = [name for name in dutiful.__all__ if not re.search(rf"`{name}\b", text)]

    assert missing == []


@pytest.mark.parametrize(
    "kind",
    [dutiful.Worker, dutiful.Handler, dutiful.Retry, dutiful.Backoff, dutiful.Keep],
    ids=lambda kind: kind.__name__,
)
def test_every_setting_is_in_the_reference(kind: type) -> None:
    text = (ROOT / "docs/api.md").read_text()
    section = text.partition(f"\n## {kind.__name__}\n")[2].partition("\n## ")[0]
    settings = [name for name in inspect.signature(kind).parameters if not name.startswith("_")]
    missing = [name for name in settings if f"`{name}`" not in section]

    assert missing == []


@pytest.mark.parametrize(
    "kind",
    [dutiful.Worker, dutiful.Job, dutiful.Context, dutiful.BatchContext, dutiful.Call, dutiful.Task],
    ids=lambda kind: kind.__name__,
)
def test_every_method_is_in_the_reference(kind: type) -> None:
    text = (ROOT / "docs/api.md").read_text()
    section = text.partition(f"\n## {kind.__name__}\n")[2].partition("\n## ")[0]
    # For our own parts: the worker's side of a Job and of a Context.
    inner = {
        "opened",
        "watch",
        "nudge",
        "reread",
        "unwatch",
        "listen",
        "unlisten",
        "stop_soon",
        "is_completed",
        "is_inside",
    }
    inner |= {"decode_result", "used_steps", "drafts", "take_progress", "about_to_complete"}
    methods = [name for name in vars(kind) if not name.startswith("_") and name not in inner]
    missing = [name for name in methods if not re.search(rf"`{name}\b", section)]

    assert missing == []
