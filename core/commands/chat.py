"""A conversation with the running service, in the terminal.

    python comeapi.py chat                             with the model that is loaded
    echo "Tell me a story." | python comeapi.py chat   one answer, and nothing else

A line that ends with a backslash goes on in the next one; so does everything between two lines of three quotes.
Ctrl-C stops the answer, not the program; Ctrl-D or /quit ends it. /help says what else there is.
"""

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from core import options, output
from core.commands.service import Service, ServiceError, ServiceSettings, Stream, text_of
from core.cookie import state_folder
from core.options import between, setting
from core.terminal import harmless, paint

_QUOTES = '"""'
_HELP = """/help            this
/model           which models there are
/model NAME      talk to this one
/system TEXT     say how to answer; without a text: what was said, with "-": nothing any more
/clear           forget the conversation
/quit            end (Ctrl-D, too)
A line that ends with a backslash goes on in the next one; %s begins and ends several lines.
A message that begins with a slash: write two.""" % _QUOTES
_MOST_HISTORY = 1000


@dataclass(frozen=True)
class Config(ServiceSettings):
    """Whom to talk to, and how."""

    model: str = setting("", "model to talk to (default: the one that is loaded)", "chat", flags=("-m",))
    system: str = setting("", "what to say to the model before the conversation", "chat", metavar="TEXT")
    temperature: float = setting(-1.0, "how free the answers are; -1 for the service's default", "chat",
                                 check=between(-1, 2, float))  # fmt: skip
    max_tokens: int = setting(
        0, "most tokens of an answer; 0 for all that fit", "chat", flags=("-n",), check=between(0, 1 << 24)
    )


@dataclass
class Conversation:
    """What has been said, and to whom."""

    model: str
    system: str
    turns: List[Dict[str, str]] = field(default_factory=list)

    def messages(self) -> List[Dict[str, str]]:
        """Return all that the model is sent."""
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns


def main(argv: List[str]) -> None:
    """Talk until the person has had enough; where standard input is no terminal, answer it once."""
    config = options.parse(Config, __doc__, argv=argv, program="comeapi.py chat")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    service = Service(config)
    try:
        if sys.stdin.isatty():
            _Talk(config, service).run()
        else:
            _answer_once(config, service)
    except ServiceError as problem:
        options.fail(str(problem))


def _answer_once(config: Config, service: Service) -> None:
    text = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    if not text:
        options.fail("standard input is empty; write the question there, or start this on a terminal", 2)
    conversation = Conversation(config.model, config.system, [{"role": "user", "content": text}])
    try:
        with contextlib.closing(service.stream("/v1/chat/completions", _body(config, conversation))) as stream:
            for event in stream.events():
                _write(text_of(event, "content"))
    except KeyboardInterrupt:
        sys.exit(130)
    _write("\n")


def _body(config: Config, conversation: Conversation) -> Dict[str, Any]:
    body: Dict[str, Any] = {"messages": conversation.messages(), "stream": True}
    if conversation.model:
        body["model"] = conversation.model
    if config.temperature >= 0:
        body["temperature"] = config.temperature
    if config.max_tokens:
        body["max_tokens"] = config.max_tokens
    return body


def _write(text: str) -> None:
    """Write what a model or a server says: nothing of it commands the terminal."""
    sys.stdout.write(harmless(text))
    sys.stdout.flush()


# ------------------------------------------------------------------------------------------- the conversation


class _Talk:
    """One conversation on a terminal."""

    def __init__(self, config: Config, service: Service):
        self._config = config
        self._service = service
        self._conversation = Conversation(config.model, config.system)
        self._commands: Dict[str, Callable[[str], None]] = {
            "help": lambda rest: print(_HELP),
            "model": self._choose_model,
            "system": self._set_system,
            "clear": self._clear,
        }

    def run(self) -> None:
        """Ask for messages and answer them. Raises ServiceError where the service is not there at the beginning."""
        loaded = self._models()[0]
        print("%s at %s. /help says what there is; Ctrl-C stops an answer, Ctrl-D ends." % (
            paint(self._conversation.model or loaded or "No model is loaded", "bold"), self._service.url))  # fmt: skip
        with _history():
            for text in _messages():
                if text.startswith("/") and not text.startswith("//"):
                    if not self._obey(text):
                        return
                else:
                    self._answer(text[1:] if text.startswith("//") else text)

    def _obey(self, text: str) -> bool:
        """Do what a line that begins with a slash says; False where that is the end."""
        name, _, rest = text[1:].partition(" ")
        if name in ("quit", "exit", "bye"):
            return False
        command = self._commands.get(name)
        try:
            if command:
                command(rest.strip())
            else:
                print("There is no /%s; /help says what there is." % name)
        except ServiceError as problem:
            print(paint(str(problem), "red"))
        return True

    def _answer(self, text: str) -> None:
        """Send a message and show the answer. What fails, or is stopped before its first word, was never said."""
        turns = self._conversation.turns
        turns.append({"role": "user", "content": text})
        answer = _Answer()
        try:
            stream = self._service.stream("/v1/chat/completions", _body(self._config, self._conversation))
            with contextlib.closing(stream):
                answer.show(stream)
        except KeyboardInterrupt:
            answer.end()
            print(paint("(stopped)", "dim"))
        except ServiceError as problem:
            answer.end()
            print(paint("❌ " + str(problem), "red"))
        if answer.text:
            turns.append({"role": "assistant", "content": answer.text})
        else:
            turns.pop()

    # ---- commands

    def _choose_model(self, name: str) -> None:
        loaded, every = self._models()
        if not name:
            current = self._conversation.model or loaded
            print("\n".join(("→ " if each == current else "  ") + harmless(each) for each in every) or "none")
        elif any(name.lower() in (each.lower(), each.lower()[: -len(".gguf")]) for each in every):
            self._conversation.model = name
            print("Talking to %s." % harmless(name))
        else:
            print("There is no model %s here; /model says which there are." % harmless(name))

    def _models(self) -> Tuple[str, List[str]]:
        """Return the name of the model that is loaded ("" for none), and the names of all. Raises ServiceError."""
        told = self._service.get("/models").get("models")
        models = [each for each in told if isinstance(each, dict)] if isinstance(told, list) else []
        names = [str(each.get("name", "")) for each in models]
        loaded = [name for name, each in zip(names, models) if each.get("loaded")]
        return (loaded[0] if loaded else ""), names

    def _set_system(self, text: str) -> None:
        if text:
            self._conversation.system = "" if text == "-" else text
        print("System message: %s" % (self._conversation.system or "none"))

    def _clear(self, _: str) -> None:
        self._conversation.turns.clear()
        print("Forgotten.")


class _Answer:
    """An answer as it comes: its reasoning dimmed, then its text; below it, how fast it was and who gave it."""

    def __init__(self) -> None:
        self.text = ""
        self._reasoning = False
        self._open = False  # the cursor is not at a line's beginning

    def show(self, stream: Stream) -> None:
        """Show a stream. Raises ServiceError, KeyboardInterrupt."""
        started, first, count, timings = time.monotonic(), None, 0, None
        for event in stream.events():
            timings = event.get("timings") or timings
            thought, text = text_of(event, "reasoning_content"), text_of(event, "content")
            if (thought or text) and first is None:
                first = time.monotonic()
            count += bool(thought or text)
            self._show_thought(thought)
            self._show_text(text)
        self.end()
        print(paint(_figures(started, first, count, timings, stream.backend), "dim"), flush=True)

    def end(self) -> None:
        """Go to a new line."""
        if self._open:
            _write("\n")
        self._open = False

    def _show_thought(self, thought: str) -> None:
        if thought:
            sys.stdout.write(paint(harmless(thought), "dim"))
            sys.stdout.flush()
            self._reasoning = self._open = True

    def _show_text(self, text: str) -> None:
        if text:
            if self._reasoning and not self.text:
                _write("\n\n")
            _write(text)
            self.text += text
            self._open = True


def _figures(started: float, first: Optional[float], count: int, timings: Any, backend: str) -> str:
    """Return how fast an answer was: by the server's own account, else by what was seen."""
    told = timings if isinstance(timings, dict) else {}
    tokens = told.get("predicted_n", count)
    rate = told.get("predicted_per_second")
    parts = ["%s tokens" % tokens]
    if isinstance(rate, (int, float)) and rate > 0:
        parts.append("%.1f tokens/s" % rate)
    if first is not None:
        parts.append("first after %.1f s" % (first - started))
    if told.get("cache_n"):
        parts.append("%s tokens of the prompt were cached" % told["cache_n"])
    if backend:
        parts.append(harmless(backend))
    return "(%s)" % ", ".join(parts)


# ------------------------------------------------------------------------------------------------ reading


def _messages() -> Iterator[str]:
    """Yield what the person writes, message by message, until there is no more. Ctrl-C drops what is being written."""
    while True:
        try:
            text = read_message(_line)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit ends.)")
            continue
        if text.strip():
            yield text


def _line(prompt: str) -> str:
    """Return a line of standard input. Raises EOFError, KeyboardInterrupt."""
    output.flush()  # what was printed comes before the prompt, which readline writes by itself
    return input(prompt)


def read_message(line: Callable[[str], str]) -> str:
    """Return one message, of one line or of several. `line(prompt)` reads a line; what it raises goes through."""
    text = line("> ")
    if text.strip().startswith(_QUOTES):
        return _quoted(text.strip()[len(_QUOTES) :], line)
    lines = []
    while text.endswith("\\"):
        lines.append(text[:-1])
        text = line(". ")
    return "\n".join(lines + [text])


def _quoted(text: str, line: Callable[[str], str]) -> str:
    lines = [text]
    while not lines[-1].rstrip().endswith(_QUOTES):
        lines.append(line(". "))
    lines[-1] = lines[-1].rstrip()[: -len(_QUOTES)]
    return "\n".join(lines).strip("\n")


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Keep the lines that were written from one talk to the next, where there is readline and a place for them."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    path = os.path.join(state_folder(), "comeapi", "chat_history")
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))  # conversations are nobody else's business
            readline.set_history_length(_MOST_HISTORY)
            readline.write_history_file(path)
