"""The same answers in the form of each endpoint, for servers that a test controls."""

import json
from collections.abc import Sequence
from typing import Any

from tests.mpp_session.model_server import chunk, sse

__all__ = ["DIALECTS", "Dialect"]

DONE = sse("[DONE]")


class Dialect:
    """How a model server answers under one path."""

    path = "/v1/chat/completions"
    bound = "max_tokens"
    made, read = "completion_tokens", "prompt_tokens"

    def ask(self, **fields: Any) -> dict[str, Any]:
        """A request."""
        return {"model": "tiny", **self.prompt(), **fields}

    def prompt(self) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": "hello"}]}

    def text(self, text: str) -> str:
        """An event that brings a text."""
        return chunk(content=text)

    def usage(self, made: int | None, read: int = 9) -> dict[str, Any]:
        return {self.made: made, self.read: read, "total_tokens": (made or 0) + read}

    def end(self, texts: Sequence[str], usage: dict[str, Any] | None) -> list[str]:
        """The events that end a stream."""
        assert texts
        choice = {"index": 0, **self.nothing(), "finish_reason": "stop"}
        last = [sse(json.dumps({"choices": [choice]}))]
        if usage is not None:
            last.append(sse(json.dumps({"choices": [], "usage": usage})))
        return [*last, DONE]

    def nothing(self) -> dict[str, Any]:
        return {"delta": {}}

    def stream(self, texts: Sequence[str], usage: dict[str, Any] | None) -> list[str]:
        return [*map(self.text, texts), *self.end(texts, usage)]

    def whole(self, text: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        return {"choices": [{**choice, "finish_reason": "stop"}], "usage": usage}

    def texts_of(self, body: str) -> str:
        """All text in a stream."""
        events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
        return "".join(map(self.text_of, events))

    def text_of(self, event: dict[str, Any]) -> str:
        choices = event.get("choices") or []
        return "".join((one.get("delta") or {}).get("content") or "" for one in choices)

    def costs(self, body: str) -> list[str]:
        """The amounts that the usage records of a stream state."""
        found = []
        for line in body.splitlines():
            if line.startswith('data: {"'):
                event = json.loads(line[6:])
                usage = (event.get("response") or event).get("usage") or {}
                if "cost_details" in usage:
                    found.append(usage["cost_details"]["amount"])
        return found


class _Completions(Dialect):
    path = "/v1/completions"

    def prompt(self) -> dict[str, Any]:
        return {"prompt": "hello"}

    def text(self, text: str) -> str:
        return sse(json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": None}]}))

    def nothing(self) -> dict[str, Any]:
        return {"text": ""}

    def whole(self, text: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "finish_reason": "stop"}
        return {"object": "text_completion", "choices": [choice], "usage": usage}

    def text_of(self, event: dict[str, Any]) -> str:
        return "".join(one.get("text") or "" for one in event.get("choices") or [])


class _Responses(Dialect):
    path = "/v1/responses"
    bound = "max_output_tokens"
    made, read = "output_tokens", "input_tokens"

    def prompt(self) -> dict[str, Any]:
        return {"input": "hello"}

    def event(self, kind: str, **fields: Any) -> str:
        return f"event: {kind}\n{sse(json.dumps({'type': kind, **fields}))}"

    def text(self, text: str) -> str:
        return self.event(
            "response.output_text.delta", output_index=0, content_index=0, delta=text, item_id="m"
        )

    def stream(self, texts: Sequence[str], usage: dict[str, Any] | None) -> list[str]:
        item = {"type": "message", "id": "m", "role": "assistant", "content": []}
        return [
            self.event("response.created", response={"id": "r", "status": "in_progress"}),
            self.event("response.output_item.added", output_index=0, item=item),
            *super().stream(texts, usage),
        ]

    def end(self, texts: Sequence[str], usage: dict[str, Any] | None) -> list[str]:
        whole = self.whole("".join(texts), usage)
        item = whole["output"][0]
        return [
            self.event("response.output_text.done", output_index=0, text="".join(texts)),
            self.event("response.output_item.done", output_index=0, item=item),
            self.event("response.completed", response=whole),
        ]

    def whole(self, text: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        part = {"type": "output_text", "text": text, "annotations": []}
        item = {"type": "message", "id": "m", "role": "assistant", "content": [part]}
        answer: dict[str, Any] = {"id": "r", "object": "response", "status": "completed"}
        return answer | {"output": [item], "usage": usage, "error": None}

    def text_of(self, event: dict[str, Any]) -> str:
        return event["delta"] if event.get("type") == "response.output_text.delta" else ""


DIALECTS = {"chat": Dialect(), "completions": _Completions(), "responses": _Responses()}
