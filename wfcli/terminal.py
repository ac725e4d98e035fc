"""The two streams: results go to stdout; warnings, errors and progress to stderr."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, BinaryIO, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

from wfcli.errors import OutputError, WfError
from wfcli.units import percent

# Of several processes that train together (`accelerate launch`) one speaks; errors come from each.
RANK = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
SPEAKS = RANK == "0"


# Letters that move the cursor, change colours or turn the direction of writing: files may bring them in their names.
# A terminal shows pictures of them instead; in JSON and TOML they are written as escapes, which mean the same.
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0), *range(0x200E, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
_KEPT = {ord("\n"), ord("\t")}
_PICTURES = {c: chr(0x2400 + c) if c < 0x20 else "\ufffd" for c in _CONTROLS if c not in _KEPT}
_ESCAPES = {c: f"\\u{c:04x}" for c in _CONTROLS if c not in _KEPT}


class _Console(Console):
    """rich's console for text of which nobody knows where it is from."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Draw in segments without letters that a terminal obeys; rich's own colours are no letters yet."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else text.translate(_PICTURES), style, control)


def write(result: RenderableType, aside: bool = False) -> None:
    """Print a result to stdout, or `aside` to stderr: a string (JSON, TOML) as it is, anything else drawn by rich."""
    if not SPEAKS:
        return
    stream = sys.stderr if aside else sys.stdout
    if isinstance(result, str):
        _send(stream, result.translate(_ESCAPES) + "\n")
    else:
        _send(stream, _drawn(_Console(file=stream, highlight=False), result))


def print_error(error: WfError) -> None:
    """Print every problem on a line of its own, and after those that it is for the hint, to stderr."""
    lines: list[Text] = []
    for problems, hint in error.parts:
        lines += [_labelled("error", "bold red", problem) for problem in problems] + _hint(hint)
    _print_lines(*lines)


def print_interrupted(said: str, hint: str | None = None) -> None:
    """Say on stderr that the command was stopped, and how to go on."""
    _print_lines(Text(said, style="bold"), *_hint(hint))


def flush() -> None:
    """Send what others have written to stdout: Python would do it at exit, with a traceback where that fails."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _send_nowhere(sys.stdout)


def _hint(hint: str | None) -> list[Text]:
    return [_labelled("hint", "bold cyan", hint)] if hint else []


def _print_lines(*lines: Text) -> None:
    if not SPEAKS:
        lines = tuple(Text.assemble(f"rank {RANK}: ", line) for line in lines)
    _send(sys.stderr, _drawn(_stderr(), Text("\n").join(lines)))


def _labelled(label: str, style: str, message: str) -> Text:
    # A message of several lines stays one message: a name with a line break is not to look like another error.
    return Text.assemble((f"{label}:", style), " ", message.replace("\n", "\n  "))


def _stderr() -> Console:
    return _Console(file=sys.stderr, highlight=False, soft_wrap=True)


def _drawn(console: Console, what: RenderableType) -> str:
    with console.capture() as capture:
        console.print(what)
    # rich pads the lines of a table to its full width
    return "\n".join(line.rstrip() for line in capture.get().split("\n"))


def _send(stream: TextIO, text: str) -> None:
    """Write and flush. A reader that has gone (`wfcli ... | head`) has read what it wanted: no error.

    Raises:
        OutputError: standard output cannot be written (the disk is full, say).
    """
    encoding = stream.encoding or "utf-8"
    data = text.encode(encoding, "replace")
    try:
        if isinstance(getattr(stream, "buffer", None), io.RawIOBase):
            write_whole(stream.buffer, data)
        else:
            stream.write(data.decode(encoding))
        stream.flush()
    except BrokenPipeError:
        _send_nowhere(stream)
    except OSError as error:
        _send_nowhere(stream)
        if stream is sys.stdout:
            what = f"standard output: cannot be written ({error.strerror})"
            raise OutputError(what, hint="look at where it goes; what was made is there") from error


def write_whole(stream: BinaryIO, data: bytes) -> None:
    """Write all of it. Without a buffer (PYTHONUNBUFFERED) a write may take a part alone and say so by its count."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _send_nowhere(stream: TextIO) -> None:
    """Let all that is still to come go nowhere: Python flushes once more at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Watched:
    """Standard error while our bar is drawn: before anybody else writes there, a download's bar say, ours goes."""

    def __init__(self, stream: TextIO, hide: Callable[[], None]) -> None:
        self._stream, self._hide = stream, hide

    def write(self, text: str) -> int:
        """Write as the stream does."""
        self._hide()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        """Give all else that a stream has."""
        return getattr(self._stream, name)


class TerminalHooks:
    """Warnings to stderr, each once; where that is a terminal, one bar with rate and time left.

    The bar is there from the first progress on, and goes when others write to stderr, until the next progress: two that
    are drawn at once, ours and that of the Hub's client, spoil each other.
    """

    def __init__(self) -> None:
        self._console = _stderr()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._warned: set[str] = set()
        self._stream = sys.stderr  # while the bar is not drawn

    def __enter__(self) -> TerminalHooks:
        if sys.stderr.isatty() and SPEAKS:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("[dim]{task.fields[rate]}[/]"),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                TextColumn("[cyan]{task.fields[figures]}[/]"),
                console=self._console,
                transient=True,
                redirect_stderr=False,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hide()

    def _show(self, progress: Progress) -> None:
        if not isinstance(sys.stderr, _Watched):
            self._stream = sys.stderr
            sys.stderr = cast("TextIO", _Watched(self._stream, self._hide))
            progress.start()

    def _hide(self) -> None:
        if self._progress is not None and isinstance(sys.stderr, _Watched):
            self._progress.stop()
            sys.stderr = self._stream

    def progress(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Draw one bar, for the stage at work."""
        if self._progress is None:
            return
        self._show(self._progress)
        if self._task is None or stage != self._stage:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._stage = stage
            self._task = self._progress.add_task(stage, total=total, rate="", figures="")
        speed = self._progress.tasks[-1].speed
        self._progress.update(
            self._task,
            completed=done,
            total=total,
            rate=f"{speed:.3g}/s" if speed else "",
            figures="  ".join(f"{name.replace('_', ' ')} {_figure(name, value)}" for name, value in figures.items()),
        )

    def warn(self, message: str) -> None:
        """Print a warning, unless it was printed before."""
        if message not in self._warned and SPEAKS:
            self._warned.add(message)
            text = _labelled("warning", "bold yellow", message)
            if self._progress is not None:
                self._progress.console.print(text)  # above the bar
            else:
                _send(sys.stderr, _drawn(self._console, text))


def _figure(name: str, value: float) -> str:
    if name.startswith("top1"):
        return f"{percent(value, 1)} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
