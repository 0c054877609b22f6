"""An answer in OpenAI's Responses API: its items as they grow, as events and as one object.

    deltas ── Answer.push ──> events      Answer.response(…)  the object, as it is now

An answer is items, one after the other: a reasoning, a message, a function_call. Each is added, grows and is done
before the next one is added. The events are those of OpenAI's reference, in its order, numbered by `sequence_number`:

    response.created, response.in_progress
      output_item.added
        content_part.added, reasoning_text.delta…, reasoning_text.done, content_part.done      of a reasoning
        content_part.added, output_text.delta…, output_text.done, content_part.done            of a message
        function_call_arguments.delta…, function_call_arguments.done                           of a function_call
      output_item.done
    response.completed, response.incomplete or response.failed
"""

import copy
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from core.chat.parser import CallDelta, Delta
from core.engine.outcome import Finished
from core.errors import APIError

Body = Dict[str, Any]
_LAST = (1 << 31) - 1  # the number of an event that comes after all others, however many they are


class Head(NamedTuple):
    """What an answer's object begins with. `nonce` is what the ids of its items are made of."""

    nonce: str
    created: int
    model: str
    told: Body  # what it repeats of the request

    @property
    def id(self) -> str:
        """The answer's id."""
        return "resp_" + self.nonce


class Answer:
    """One answer on its way. `logprobs`: how many likely tokens are shown with each of a message; None: none at all."""

    def __init__(self, head: Head, logprobs: Optional[int]):
        self._head = head
        self._logprobs = logprobs
        self._output: List[Body] = []
        self._open: Any = None  # what grows: "reasoning", "message", or a call's number
        self._grown: List[str] = []  # its text, or its arguments, in pieces: joining them each time would take long
        self._unsaid: List[Body] = []  # probabilities of tokens whose text is held back
        self._numbered = 0
        self._reasoning_tokens = 0

    # ---- what happens to it

    def begin(self, **more: Any) -> List[Body]:
        """Return the events before all others; `more` goes into the second."""
        started = self.response("in_progress")
        return [
            self._event("response.created", response=started),
            self._event("response.in_progress", response=started, **more),
        ]

    def push(self, deltas: List[Delta], probabilities: List[Body]) -> Iterator[Body]:
        """Yield the events that tell deltas."""
        self._unsaid += _logprobs(probabilities, self._logprobs)
        for delta in deltas:
            yield from self._grow(delta)

    def count(self, tokens: int) -> None:
        """Note the tokens that the last deltas came with: they count as reasoning's while a reasoning grows."""
        if self._open == "reasoning":
            self._reasoning_tokens += tokens

    def finish(self, reason: str) -> Iterator[Body]:
        """Yield the events of the last item's end, which is incomplete where the reason is length."""
        if not self._output:
            yield from self._add("message")
        if self._open == "message":
            self._output[-1]["content"][0]["logprobs"] += self._take_unsaid()
        yield from self._close("incomplete" if reason == "length" else "completed")

    def end(self, response: Body) -> Body:
        """Return the last event, with the object as it is now."""
        return self._event("response." + response["status"], response=response)

    def failed(self, error: APIError) -> Body:
        """Return the last event of an answer that comes to no good end.

        It may be asked for before the first one, for an answer that another backend begins; nothing changes here.
        """
        codes = {429: "rate_limit_exceeded", 400: "invalid_prompt"}
        failure = {"code": codes.get(error.status, "server_error"), "message": error.message}
        event = {"type": "response.failed", "sequence_number": self._numbered or _LAST}
        return dict(event, response=dict(self.response("failed"), error=failure))

    # ---- the object

    def response(self, status: str, end: Optional[Finished] = None) -> Body:
        """Return the answer's object. `end` tells its usage."""
        head = self._head
        self._settle()
        why = {"reason": "max_output_tokens"} if status == "incomplete" else None
        body = {"id": head.id, "object": "response", "created_at": head.created, "status": status, "error": None}
        body.update(incomplete_details=why, model=head.model, output=copy.deepcopy(self._output), usage=None)
        if end:
            body["usage"] = self._usage(end)
        return dict(body, **head.told)

    def _usage(self, end: Finished) -> Body:
        return {
            "input_tokens": end.prompt_tokens,
            "input_tokens_details": {"cached_tokens": end.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": end.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
            "total_tokens": end.prompt_tokens + end.completion_tokens,
        }

    # ---- items

    def _grow(self, delta: Delta) -> Iterator[Body]:
        if delta.call:
            yield from self._grow_call(delta.call)
        elif delta.reasoning:
            self._unsaid = []
            yield from self._grow_text("reasoning", "reasoning_text", delta.reasoning)
        else:
            logprobs = self._take_unsaid()
            yield from self._grow_text("message", "output_text", delta.content, logprobs=logprobs)
            self._output[-1]["content"][0]["logprobs"] += logprobs

    def _grow_text(self, kind: str, part: str, text: str, **more: Any) -> Iterator[Body]:
        if self._open != kind:
            yield from self._add(kind)
        self._grown.append(text)
        yield self._of_item("response.%s.delta" % part, content_index=0, delta=text, **more)

    def _grow_call(self, call: CallDelta) -> Iterator[Body]:
        self._unsaid = []
        if self._open != call.index:
            yield from self._add(call.index, call)
        if call.arguments:
            self._grown.append(call.arguments)
            yield self._of_item("response.function_call_arguments.delta", delta=call.arguments)

    def _add(self, what: Any, call: CallDelta = CallDelta(0)) -> Iterator[Body]:
        """Add an item; the one that grew is done."""
        yield from self._close("completed")
        self._open, self._grown = what, []
        self._output.append(self._new_item(what, call))
        item = self._output[-1]
        empty = dict(item, content=[]) if "content" in item else dict(item)
        yield self._event("response.output_item.added", output_index=len(self._output) - 1, item=empty)
        if "content" in item:
            part = copy.deepcopy(item["content"][0])
            yield self._of_item("response.content_part.added", content_index=0, part=part)

    def _new_item(self, what: Any, call: CallDelta) -> Body:
        name = "%s%d" % (self._head.nonce, len(self._output))
        if what == "reasoning":
            content = [{"type": "reasoning_text", "text": ""}]
            item = {"id": "rs_" + name, "type": "reasoning", "summary": [], "content": content}
            return dict(item, encrypted_content=None, status="in_progress")
        if what == "message":
            text = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item = {"id": "msg_" + name, "type": "message", "role": "assistant", "content": [text]}
        else:
            item = {"id": "fc_" + name, "type": "function_call", "call_id": call.id, "name": call.name, "arguments": ""}
        return dict(item, status="in_progress")

    def _close(self, status: str) -> Iterator[Body]:
        """Yield the events that tell that the item that grows is done."""
        if self._open is None:
            return
        self._settle()
        self._open = None
        item = self._output[-1]
        item["status"] = status
        if "content" in item:
            part = copy.deepcopy(item["content"][0])
            more = {name: part[name] for name in ("text", "logprobs") if name in part}
            yield self._of_item("response.%s.done" % part["type"], content_index=0, **more)
            yield self._of_item("response.content_part.done", content_index=0, part=part)
        else:
            told = {name: item[name] for name in ("name", "arguments")}
            yield self._of_item("response.function_call_arguments.done", **told)
        yield self._event("response.output_item.done", output_index=len(self._output) - 1, item=copy.deepcopy(item))

    def _settle(self) -> None:
        """Write into the item that grows what it has grown by."""
        if self._open is None:
            return
        item, text = self._output[-1], "".join(self._grown)
        self._grown = [text]
        if "content" in item:
            item["content"][0]["text"] = text
        else:
            item["arguments"] = text

    def _of_item(self, kind: str, **more: Any) -> Body:
        index = len(self._output) - 1
        return self._event(kind, item_id=self._output[index]["id"], output_index=index, **more)

    def _event(self, kind: str, **more: Any) -> Body:
        number, self._numbered = self._numbered, self._numbered + 1
        return dict({"type": kind, "sequence_number": number}, **more)

    def _take_unsaid(self) -> List[Body]:
        unsaid, self._unsaid = self._unsaid, []
        return unsaid


def _logprobs(probabilities: List[Body], top: Optional[int]) -> List[Body]:
    """Return tokens' probabilities as the API shows them."""
    if top is None:
        return []
    return [
        dict(_token(each), top_logprobs=[_token(one) for one in each["top_logprobs"][:top]]) for each in probabilities
    ]


def _token(each: Body) -> Body:
    return {"token": each["token"], "logprob": each["logprob"], "bytes": each["bytes"]}
