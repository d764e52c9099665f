"""The verifier that asks a vision-language model whether a reference shows what the edit put into the target."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from kiwi.configuration import ServiceSettings, VlmSettings
from kiwi.curation.curators.protocols import Image, RegionKind, Verification, VerifyRequest
from kiwi.curation.curators.vlm_asking import (
    PROMPTS,
    REVISION,
    Answer,
    Reasoning,
    client_of,
    failed_as,
    mean,
    spread,
    stumbled_over,
    version_of,
    whole,
)
from kiwi.dataset.schema import Reason
from kiwi.services import Inquiry, Picture, Question, Reply, ask_about
from kiwi.services.pictures import layout
from kiwi.services.prompts import filled, read_prompts
from kiwi.services.subjects import Asker

SCALE = 10
MAX_ASPECT = 4.0
PROMPT_OF: dict[RegionKind, str] = {"object": "verify_object", "foreground": "verify_background"}
Tenths = Annotated[float, Field(ge=0, le=SCALE, allow_inf_nan=False), whole(0, SCALE)]


class Verdict(Answer):
    """Three marks of 0-10, and whether there is anything to mark at all."""

    reasoning: Reasoning
    identity: Tenths
    appearance: Tenths
    cleanness: Tenths
    degenerate: bool

    @property
    def consistency(self) -> float:
        """The weakest mark, 0-1: a clean picture of another object is no reference, nor is an unclean one of it."""
        return float(min(self.identity, self.appearance, self.cleanness)) / SCALE


@dataclass(frozen=True)
class VlmVerifier:
    """consistency = the mean over passes of the weakest of three marks.

    The model sees the reference, the target's first frame and the source's. The mask is not shown, and a reference that
    came with its pair is judged alike.

    Attributes:
        min_consistency: 0-1, what a reference needs.
    """

    client: Asker
    settings: VlmSettings
    prompts: dict[str, str]
    min_consistency: float
    version: str
    name: str = "vlm"
    measures: tuple[str, ...] = ("identity", "appearance", "cleanness", "degenerate", "spread", "passes")

    @classmethod
    def from_settings(
        cls, settings: VlmSettings, service: ServiceSettings, cache: str | None, min_consistency: float
    ) -> VlmVerifier:
        """Reads the prompts, and nothing else. `cache`: where replies are kept; None keeps none."""
        prompts = read_prompts(settings.prompt, PROMPTS, tuple(PROMPT_OF.values()))
        version = version_of(REVISION, settings, prompts)
        return cls(client_of("verify", version, service, cache), settings, prompts, min_consistency, version)

    def verify(self, requests: Iterable[VerifyRequest]) -> Iterator[Verification]:
        """See protocols."""
        return ask_about(self.client, requests, self._inquiry, lambda error: Verification(**stumbled_over(error)))

    def _inquiry(self, request: VerifyRequest) -> Inquiry[Verification]:
        prompt = filled(self.prompts[PROMPT_OF[request.kind]], {"instruction": request.prompt})
        shown = [self._picture(image) for image in (request.reference, request.target, request.source)]
        asked = self.settings
        marks = (asked.model, Verdict, asked.temperature, asked.seed, asked.max_tokens, asked.passes)
        return Inquiry((Question((*shown, prompt), *marks),), lambda replies: self._judged(replies[0]))

    def _picture(self, image: Image) -> Picture:
        height, width = image.shape[:2]
        shown = layout(height, width, self.settings.image_pixels, max_aspect=MAX_ASPECT)
        return Picture(image, shown.draw)

    def _judged(self, reply: Reply) -> Verification:
        if reply.failure is not None:
            return Verification(**failed_as(reply.failure))
        verdicts: list[Verdict] = list(reply.values)
        each = [verdict.consistency for verdict in verdicts]
        consistency = mean(each)
        measures = {
            "identity": mean([verdict.identity / SCALE for verdict in verdicts]),
            "appearance": mean([verdict.appearance / SCALE for verdict in verdicts]),
            "cleanness": mean([verdict.cleanness / SCALE for verdict in verdicts]),
            "degenerate": mean([float(verdict.degenerate) for verdict in verdicts]),
            "spread": spread(each),
            "passes": float(len(verdicts)),
        }
        if measures["degenerate"] > 0.5:
            said = "the model sees nothing that could be recognised in the reference"
            return Verification(measures, Reason.REFERENCE_DEGENERATE, said, consistency)
        if consistency < self.min_consistency:
            detail = f"consistency {consistency:.2f}, needed {self.min_consistency:.2f}"
            return Verification(measures, Reason.REFERENCE_INCONSISTENT, detail, consistency)
        return Verification(measures, None, "", consistency)
