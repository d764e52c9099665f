"""Services that are asked over the network: vision-language models behind any OpenAI-compatible server.

client = VlmClient(lambda: endpoint_of("judge"), Patience.from_settings(settings.service), cache)
for reply in client.ask(Question(("Which is better?", Picture(frame)), model, Verdict) for frame in frames): ...
"""

from kiwi.services.client import VlmClient
from kiwi.services.endpoint import Endpoint, endpoint_of
from kiwi.services.errors import ServiceError
from kiwi.services.patience import Patience
from kiwi.services.questions import Failure, Picture, Question, Reply, Tokens, Usage
from kiwi.services.session import Probe
from kiwi.services.subjects import Inquiry, ask_about

__all__ = [
    "Endpoint",
    "Failure",
    "Inquiry",
    "Patience",
    "Picture",
    "Probe",
    "Question",
    "Reply",
    "ServiceError",
    "Tokens",
    "Usage",
    "VlmClient",
    "ask_about",
    "endpoint_of",
]
