"""What minibule says when it cannot go on.

Every mistake a user can make ends in an `InputError`: one that says what was found, what was
expected, where, and what to do. `program.run` turns it into one clear message and an exit status,
so that a traceback on the screen always means a bug in minibule.
"""

from collections.abc import Sequence


class InputError(Exception):
    """Bad input from outside: a file, a flag, a setting. The message is meant for the user."""


class Terminated(BaseException):
    """SIGTERM: leave now, as KeyboardInterrupt is Ctrl-C. Only `program.run` is to catch it."""


def listed(problems: Sequence[str], limit: int = 20) -> str:
    """`problems` one a line, indented; after `limit` of them only how many more there are."""
    lines = [f"  {shortened(problem)}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  ... and {len(problems) - limit:,} more")
    return "\n".join(lines)


def shortened(text: str, most: int = 500) -> str:
    """`text`, or its beginning and end: what is wrong with a file may be as long as the file."""
    half = most // 2
    return text if len(text) <= most else f"{text[:half]} ... {text[-half:]}"
