"""The OpenAI API's endpoints: between a request, openai_shapes.py's shapes and the jobs that answer it.

GET  /v1/models, /v1/models/{id}
POST /v1/completions            text in, text out
POST /v1/chat/completions       messages in, a message out
POST /v1/embeddings             texts in, vectors out
"""

import contextlib
import time
import uuid
from typing import Any, Dict, Iterator, List

from core.apis import openai_shapes
from core.apis.endpoint import Endpoints, Runner
from core.apis.openai_shapes import Chats, CompletionAsk, Completions, Origin, Streaming
from core.chat.conversation import Conversation, read, seed_of, steps
from core.engine.jobs import Finished, Job, Prompt
from core.http.messages import IDLE, Request, json_reply
from core.http.routing import Route
from core.http.sse import event_stream


class OpenAIEndpoints(Endpoints):
    """The routes."""

    def __init__(self, runner: Runner, template: str, fingerprint: str):
        super().__init__(runner, template, fingerprint)
        self._started = int(time.time())

    def routes(self) -> List[Route]:
        """Return the routes."""
        return [
            Route("GET", "/v1/models", self.models),
            Route("GET", "/v1/models/{id}", self.model),
            Route("POST", "/v1/completions", self.completions),
            Route("POST", "/v1/chat/completions", self.chat),
            Route("POST", "/v1/embeddings", self.embeddings),
        ]

    def models(self, request: Request) -> Any:
        """GET /v1/models: the models in the folder."""
        usable = [each for each in self._runner.folder.list() if not each.problem]
        return json_reply(openai_shapes.model_list([openai_shapes.model_card(each, self._started) for each in usable]))

    def model(self, request: Request) -> Any:
        """GET /v1/models/{id}: one of them. Raises APIError 404."""
        model = self._runner.folder.find(request.params["id"], "model")
        return json_reply(openai_shapes.model_card(model, self._started))

    def _origin(self, prefix: str, model: str) -> Origin:
        return Origin(prefix + uuid.uuid4().hex, int(time.time()), model, self._fingerprint)

    # ---- chats

    def chat(self, request: Request) -> Any:
        """POST /v1/chat/completions: the message that follows others."""
        ask, streaming, logprobs = openai_shapes.read_chat(request.json())
        conversation = self._conversation(ask)
        chats = Chats(self._origin("chatcmpl-", conversation.model.name), logprobs)
        jobs = conversation.jobs()
        if streaming.on:
            return event_stream(self._chat_chunks(jobs, conversation, chats, streaming))
        answers = self._runner.results(jobs, request)
        choices = [
            chats.choice(index, message, reason, answer.probabilities)
            for index, (answer, (message, reason)) in enumerate(zip(answers, read(answers, conversation)))
        ]
        ends = [answer.end for answer in answers]
        return json_reply(chats.whole(choices, openai_shapes.total_usage(ends, ask.count), timings=ends[0].timings))

    def _chat_chunks(
        self, jobs: List[Job], conversation: Conversation, chats: Chats, streaming: Streaming
    ) -> Iterator[Any]:
        begun = set()
        ends: Dict[int, Finished] = {}
        for step in steps(self._runner.events(jobs), conversation):
            if step is IDLE:
                yield IDLE
                continue
            if step.index not in begun:
                begun.add(step.index)
                yield chats.begin(step.index)
            yield from chats.chunks(step.index, step.deltas, step.probabilities)
            if step.end:
                ends[step.index] = step.end
                yield chats.end(step.index, step.reason, timings=step.end.timings)
        if streaming.usage:
            yield chats.usage(openai_shapes.total_usage(_in_order(ends), len(jobs)))

    # ---- completions

    def completions(self, request: Request) -> Any:
        """POST /v1/completions: texts that follow prompts."""
        ask = openai_shapes.read_completion(request.json())
        model = self._runner.model(ask.model)
        completions = Completions(self._origin("cmpl-", model.name), ask.logprobs)
        jobs = [
            Job(
                model,
                prompt,
                ask.max_tokens,
                ask.stop,
                seed_of(ask.sampling, index),
                ask.cache_prompt,
                suffix=ask.suffix,
            )
            for prompt in ask.prompts
            for index in range(ask.count)
        ]
        echoes = [echo for prompt in ask.prompts for echo in [self._echo(prompt, ask)] * ask.count]
        if ask.stream.on:
            return event_stream(self._completion_chunks(jobs, echoes, ask, completions))
        answers = self._runner.results(jobs, request)
        choices = [
            completions.choice(index, echo + answer.text, answer.probabilities, answer.end.reason)
            for index, (echo, answer) in enumerate(zip(echoes, answers))
        ]
        ends = [answer.end for answer in answers]
        usage = openai_shapes.total_usage(ends, ask.count)
        return json_reply(completions.whole(choices, usage, timings=ends[0].timings))

    def _echo(self, prompt: Prompt, ask: CompletionAsk) -> str:
        """Return a prompt as text, where the answers are to begin with it."""
        if not ask.echo:
            return ""
        return prompt if isinstance(prompt, str) else self._runner.text(prompt)

    def _completion_chunks(
        self, jobs: List[Job], echoes: List[str], ask: CompletionAsk, completions: Completions
    ) -> Iterator[Any]:
        ends: Dict[int, Finished] = {}
        echoes = list(echoes)
        with contextlib.closing(self._runner.events(jobs)) as events:
            for each in events:
                if each is IDLE:
                    yield IDLE
                    continue
                index, event = each
                if echoes[index]:
                    yield completions.chunk(index, echoes[index], [])
                    echoes[index] = ""
                if isinstance(event, Finished):
                    ends[index] = event
                    yield dict(completions.chunk(index, "", [], event.reason), timings=event.timings)
                elif event.text or event.probabilities:
                    yield completions.chunk(index, event.text, event.probabilities)
        if ask.stream.usage:
            yield completions.usage(openai_shapes.total_usage(_in_order(ends), ask.count))

    # ---- embeddings

    def embeddings(self, request: Request) -> Any:
        """POST /v1/embeddings: vectors of texts."""
        ask = openai_shapes.read_embeddings(request.json())
        model = self._runner.model(ask.model, embeds=True)
        jobs = [Job(model, text, embed=True) for text in ask.inputs]
        return json_reply(openai_shapes.embeddings(ask, model.name, self._runner.results(jobs, request)))


def _in_order(ends: Dict[int, Finished]) -> List[Finished]:
    return [ends[index] for index in sorted(ends)]
