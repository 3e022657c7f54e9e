"""The endpoints that a gateway sells: one mechanism (`answers`), and a small dialect for each."""

from typing import Final

from mpp_session.gateway.counting import read_answer
from mpp_session.gateway.endpoints import chat, completions, embeddings, responses
from mpp_session.gateway.endpoints.chat import parse_chat_request
from mpp_session.gateway.endpoints.completions import parse_completion_request
from mpp_session.gateway.endpoints.embeddings import parse_embedding_request, read_embeddings
from mpp_session.gateway.endpoints.endpoint import GatewayEndpoint
from mpp_session.gateway.endpoints.responses import ResponseReader, parse_response_request

__all__ = ["CHAT", "COMPLETIONS", "EMBEDDINGS", "ENDPOINTS", "RESPONSES", "GatewayEndpoint"]


CHAT: Final = GatewayEndpoint(
    name="chat.completions",
    path="/v1/chat/completions",
    parse=parse_chat_request,
    fields=chat.FIELDS,
    reader=lambda: read_answer,
)
COMPLETIONS: Final = GatewayEndpoint(
    name="completions",
    path="/v1/completions",
    parse=parse_completion_request,
    fields=completions.FIELDS,
    reader=lambda: read_answer,
)
RESPONSES: Final = GatewayEndpoint(
    name="responses",
    path="/v1/responses",
    parse=parse_response_request,
    fields=responses.FIELDS,
    reader=ResponseReader,
    nested="response",
    counts=("input_tokens", "output_tokens"),
    error_event="error",
)
EMBEDDINGS: Final = GatewayEndpoint(
    name="embeddings",
    path="/v1/embeddings",
    parse=parse_embedding_request,
    fields=embeddings.FIELDS,
    reader=lambda: read_embeddings,
    has_output=False,
)
ENDPOINTS: Final = (CHAT, COMPLETIONS, RESPONSES, EMBEDDINGS)
