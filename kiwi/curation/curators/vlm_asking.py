"""What the curators that ask a vision-language model have in common: the client, the version that names all that their
answers depend on, and what a failed reply means for a row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, WithJsonSchema

from kiwi.configuration import ServiceSettings, VlmSettings, digest
from kiwi.dataset.schema import Reason
from kiwi.services import Failure, Patience, Probe, VlmClient, endpoint_of
from kiwi.services.questions import FailureKind

PROMPTS = Path(__file__).parent / "prompts"
REVISION = "2"  # of what the models are shown beside the prompts: raise it where that changes
REASONS: dict[FailureKind, Reason] = {
    "refused": Reason.REQUEST_REFUSED,
    "unusable": Reason.REPLY_UNUSABLE,
    "picture": Reason.CURATOR_ERROR,
}

# Bounds that hold a model to the point stand in the schema only: a long reason makes no mark unusable.
Reasoning = Annotated[str, WithJsonSchema({"type": "string", "maxLength": 1000})]
Label = Annotated[str, WithJsonSchema({"type": "string", "maxLength": 80})]


def whole(low: int, high: int) -> WithJsonSchema:
    """What the schema says of a mark: an integer. A fraction within the bounds is taken all the same."""
    return WithJsonSchema({"type": "integer", "minimum": low, "maximum": high})


class Answer(BaseModel):
    """A model's answer: no keys besides in the schema, while others that come anyway are passed over."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"additionalProperties": False})


def version_of(revision: str, settings: VlmSettings, prompts: Mapping[str, str], *more: Any) -> str:
    """REVISION-MODEL-HASH: the hash is over the prompts' text and every setting that an answer depends on."""
    asked = settings.model_dump(mode="json", exclude={"prompt", "model"})
    model = re.sub(r"[^\w.]+", "-", settings.model).strip("-")[-60:]
    return f"{revision}-{model}-{digest(settings.model, asked, dict(prompts), *more)[:8]}"


Purpose = Literal["score", "ground", "verify"]


def client_of(
    purpose: Purpose, version: str, service: ServiceSettings, cache: str | None, probe: Probe | None = None
) -> VlmClient:
    """A client for one stage. The address is read from the environment when the first question is asked."""
    kept = cache if service.cache else None
    namespace = f"{purpose}-{version}"
    return VlmClient(lambda: endpoint_of(purpose), Patience.from_settings(service), kept, namespace, probe)


def stumbled_over(error: Exception) -> dict[str, Any]:
    """`reason` and `detail` of a sample of which no question could be made."""
    return {"reason": Reason.CURATOR_ERROR, "detail": f"{type(error).__name__}: {error}"}


def failed_as(failure: Failure, where: str = "") -> dict[str, Any]:
    """`reason` and `detail` of a row that got no usable reply."""
    return {"reason": REASONS[failure.kind], "detail": f"{where}{failure.detail}"}


def mean(values: list[float]) -> float:
    return float(np.mean(values))


def spread(values: list[float]) -> float:
    """Standard deviation; 0 of one value."""
    return float(np.std(values))
