"""``infer``: one prompt, its text on standard output."""

from __future__ import annotations

import sys
import uuid
from typing import TYPE_CHECKING, Any

import click

from rbee_keeper.error_lines import error_lines, failure_lines
from rbee_keeper.exit_codes import ExitCode
from rbee_keeper.failures import KeeperFailure, OutputClosed
from rbee_keeper.narration import Narrator
from rbee_keeper.parameters import BACKENDS, MODEL, NODE_NAME, FiniteRange, KeeperCommand, json_option
from rbee_keeper.partial_result import partial_folder, save_partial_result
from rbee_keeper.progress import ProgressDisplay
from rbee_keeper.results import Inference
from rbee_keeper.session import Session

if TYPE_CHECKING:
    from rbee_keeper.inference import InferenceRun, InferenceState

MAX_TEXT = 32768
MAX_STOPS = 4
MAX_STOP = 100
DEFAULT_MAX_TOKENS = 100


def _text(_ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A prompt or system text; ``-`` as prompt reads standard input, without its last line feed."""
    if value == "-" and param.name == "prompt" and sys.stdin is not None:
        value = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n")
    if value is None:
        return None
    if not value or len(value) > MAX_TEXT:
        raise click.BadParameter(f"a text of 1 to {MAX_TEXT} characters is needed, this one has {len(value)}")
    return _sound(value)


def _stops(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if len(values) > MAX_STOPS:
        raise click.BadParameter(f"at most {MAX_STOPS} may be given")
    for value in values:
        if not 1 <= len(value) <= MAX_STOP:
            raise click.BadParameter(f"a stop string has 1 to {MAX_STOP} characters")
        _sound(value)
    return values


def _sound(value: str) -> str:
    if "\x00" in value:
        raise click.BadParameter("NUL characters are not allowed")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise click.BadParameter("the text is not valid UTF-8") from None
    return value


@click.command(cls=KeeperCommand, epilog="Exit codes: 0 complete, 1 failed, 2 wrong usage, 130 interrupted.")
@click.option("--prompt", required=True, callback=_text, help="What to answer; - reads standard input.")
@click.option("--model", type=MODEL, help="Model reference; the embedded default model without it.")
@click.option("--node", type=NODE_NAME, help="Where to run it.  [default: localhost]")
@click.option("--max-tokens", type=click.IntRange(1, 2048), default=DEFAULT_MAX_TOKENS, show_default=True)
@click.option("--temperature", type=FiniteRange(0, 2), help="0 is greedy.  [default: 0.7]")
@click.option("--top-p", type=FiniteRange(0, 1, min_open=True), help="Nucleus sampling.  [default: 1.0]")
@click.option("--top-k", type=click.IntRange(0, 1000), help="0 is off.  [default: 0]")
@click.option("--repetition-penalty", type=FiniteRange(0, 2, min_open=True), help="[default: 1.0]")
@click.option(
    "--seed", type=click.IntRange(0, 4294967295), help="Equal seeds give equal texts.  [default: random]"
)
@click.option("--stop", multiple=True, callback=_stops, help="End before this text; up to four times.")
@click.option("--system", callback=_text, help="System message of the model's chat template.")
@click.option("--raw", is_flag=True, help="Send the prompt without the model's chat template.")
@click.option("--backend", type=click.Choice(BACKENDS), help="[default: the node's choice]")
@click.option("--device", type=click.IntRange(0), help="Index of the device; needs --backend.")
@click.option("--timeout", type=click.IntRange(1, 3600), help="Seconds for the inference.  [default: 300]")
@click.option(
    "--retry", type=click.IntRange(0, 10), help="Tries more while the worker is busy.  [default: 3]"
)
@click.option(
    "--ignore-cordon", is_flag=True, help="Run on --node although it takes no new tasks: to try it."
)
@click.option("--quiet", is_flag=True, help="Neither narration nor bars nor summary.")
@json_option
@click.pass_obj
def infer(session: Session, /, quiet: bool, **flags: Any) -> Inference:
    """Run one prompt and stream the text to standard output."""
    body = task_body(flags)
    session.node = flags["node"] or "localhost"
    return _InferCommand(session, body, quiet).execute()


def task_body(flags: dict[str, Any]) -> dict[str, Any]:
    """The body of ``POST /v2/tasks``: what was given; all else is the queen's to decide.

    Raises:
        click.UsageError: flags exclude each other.
    """
    if flags["raw"] and flags["system"] is not None:
        raise click.UsageError("--system cannot be used together with --raw.")
    if flags["device"] is not None and flags["backend"] is None:
        raise click.UsageError("--device needs --backend.")
    if flags.get("ignore_cordon") and flags.get("node") is None:
        raise click.UsageError("--ignore-cordon needs --node.")
    names = {"timeout": "timeout_seconds", "retry": "busy_retries"}
    given = {flag: value for flag, value in flags.items() if value is not None and value is not False}
    body = {names.get(flag, flag): value for flag, value in given.items() if value != ()}
    if "stop" in body:
        body["stop"] = list(body["stop"])
    return body


class _InferCommand:
    """One run of the command: what is shown while it runs, and how each way it can end is told."""

    def __init__(self, session: Session, body: dict[str, Any], quiet: bool) -> None:
        self._session = session
        self._terminal = session.terminal
        self._body = body
        self._quiet = quiet
        self._progress = ProgressDisplay(session.terminal, quiet=quiet)
        self._narrator = Narrator(session.terminal, self._progress, quiet=quiet)

    def execute(self) -> Inference:
        from rbee.core.errors import RbeeError
        from rbee_keeper.inference import InferenceState

        try:
            return self._run()
        except (RbeeError, KeeperFailure) as error:
            self._tell(failure_lines(error, self._session.error_context()))
            return self._result(InferenceState(error=error.fields()), ExitCode.FAILED)

    def _run(self) -> Inference:
        queen = self._session.queen(prestart_hive=self._session.node == "localhost")
        from rbee_keeper.inference import InferenceRun

        run = InferenceRun(queen, self._body, self._narrator, self._progress, self._show_token)
        try:
            run.run()
            return self._conclude(run.state)
        except KeyboardInterrupt:
            self._cancel(run)
            return self._result(run.state, ExitCode.INTERRUPTED)
        except OutputClosed:
            self._stop(run)
            raise
        finally:
            run.close()

    def _conclude(self, state: InferenceState) -> Inference:
        self._session.node = str(state.started.get("node") or self._session.node)
        if state.error is not None:
            self._tell(error_lines(state.error, self._session.error_context()))
            if state.pieces:
                self._save_partial(state)
            return self._result(state, ExitCode.FAILED)
        if not self._session.as_json:
            self._terminal.line()
        self._progress.settle()
        self._narrator.text_ended()
        done = state.done or {}
        if not self._quiet:
            self._terminal.note(f"{done.get('total_tokens')} tokens in {done.get('duration_ms')} ms")
        return self._result(state, ExitCode.OK)

    def _show_token(self, piece: str) -> None:
        if not self._session.as_json:
            self._terminal.text(piece)

    def _tell(self, lines: list[str]) -> None:
        self._progress.settle()
        self._terminal.end_text()
        self._narrator.text_ended()
        self._terminal.error(lines)

    def _save_partial(self, state: InferenceState) -> None:
        identity = state.request_id or str(uuid.uuid4())
        try:
            path = save_partial_result(state.text, identity, partial_folder(self._session.environ))
            self._terminal.note(f"Partial result saved to: {path}")
        except OSError as error:
            self._terminal.note(f"Partial result could not be saved: {error.strerror or error}")
        self._terminal.note(f"Tokens generated: {len(state.pieces)} / {self._body['max_tokens']}")

    def _cancel(self, run: InferenceRun) -> None:
        was_acknowledged = self._stop(run)
        self._progress.settle()
        self._terminal.blank()
        self._terminal.note("Canceled." if was_acknowledged else "Canceled. (worker may still be processing)")

    def _stop(self, run: InferenceRun) -> bool:
        interrupts = self._session.interrupts
        interrupts.begin_cleanup()
        return run.cancel(self._session.settings.timing.cancel_ack_timeout_s, lambda: interrupts.is_hurried)

    def _result(self, state: InferenceState, exit_code: ExitCode) -> Inference:
        done, started = state.done or {}, state.started
        return Inference(
            request_id=state.request_id,
            node=started.get("node") or self._body.get("node"),
            worker_id=started.get("worker_id"),
            model=started.get("model") or self._body.get("model"),
            text=state.text,
            total_tokens=done.get("total_tokens", len(state.pieces)),
            duration_ms=done.get("duration_ms"),
            stop_reason=done.get("stop_reason"),
            error=state.error,
            exit_code=exit_code,
        )
