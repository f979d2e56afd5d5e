"""Exit codes, and the error that carries one."""

OK = 0
FAILED = 1
USAGE = 2
STORE = 3
AT_ONCE = 128  # plus the signal's number, as shells do: 130 for Ctrl-C, 143 for SIGTERM
BROKEN_PIPE = 141  # 128 + SIGPIPE

EPILOG = """\
exit codes:
  0    done
  1    not done, or not all of it: no such job, its state does not allow it, a bad line;
       for doctor: there is something to look at; for watch: the job is dead or cancelled
  2    wrong usage: an option, or what module:worker leads to
  3    trouble with the store: not there, busy, full, damaged, moved away;
       for move: refused, or not finished
  130, 143
       ended at once by Ctrl-C or SIGTERM (for `run`: by the second one)
  141  the reader of the output went away, as `| head` does"""


class Refused(Exception):
    """
    What was asked for cannot be done; the text says why, in one line.

    Attributes:
        code: The exit code.
    """

    def __init__(self, text: str, code: int = USAGE) -> None:
        super().__init__(text)
        self.code = code
