"""What a model is asked and what comes back: questions of texts and pictures, and replies that fit a schema or fail."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

Image = NDArray[np.uint8]
JPEG_QUALITY = 95  # without subsampling of colour, which would smear the very edges that are judged
MEDIA_TYPE = "image/jpeg"

FailureKind = Literal["refused", "unusable", "picture"]


@dataclass(frozen=True)
class Encoded:
    """A picture as it is sent: its JPEG in base64, and the JPEG's SHA-256, by which it is known in a key."""

    base64: bytes = field(repr=False)
    sha256: str

    @classmethod
    def of(cls, jpeg: bytes) -> Encoded:
        return cls(base64.b64encode(jpeg), hashlib.sha256(jpeg).hexdigest())


class Picture:
    """An image uint8 [H,W,3] on its way to a server. It is prepared and encoded once, on whatever thread asks first;
    its pixels are let go then. One picture may stand in several questions."""

    def __init__(self, pixels: Image, prepare: Callable[[Image], Image] | None = None) -> None:
        self._held: Encoded | tuple[Image, Callable[[Image], Image] | None] = pixels, prepare
        self._lock = threading.Lock()

    def encoded(self) -> Encoded:
        """JPEG of quality 95, 4:4:4. Raises ValueError for what is no RGB image."""
        with self._lock:
            if not isinstance(self._held, Encoded):
                pixels, prepare = self._held
                self._held = Encoded.of(jpeg_bytes(prepare(pixels) if prepare else pixels))
            return self._held


def jpeg_bytes(pixels: Image) -> bytes:
    """JPEG of an RGB image uint8 [H,W,3]; the same pixels give the same bytes."""
    import cv2  # here, so that a client without the data packages can look whether a server answers

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(f"no RGB image: shape {pixels.shape}, type {pixels.dtype}")
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, *sampling]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ValueError(f"an image of shape {pixels.shape} does not encode as JPEG")
    return data.tobytes()


Part: TypeAlias = str | Picture


@dataclass(frozen=True)
class Question:
    """One user message of texts and pictures, in their order.

    Attributes:
        model: the name under which the server serves it.
        schema: a pydantic class; its JSON schema goes with the request, and every reply must fit it strictly.
            None takes any text that is not blank.
        seed: of the first of `n` answers; the others have the numbers after it.
        n: answers wanted, an ensemble.
        system: an instruction that comes before the message; "" for none.
    """

    parts: tuple[Part, ...]
    model: str
    schema: type[BaseModel] | None = None
    temperature: float = 0.0
    seed: int = 0
    max_tokens: int = 1024
    n: int = 1
    system: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a question has no answer, where the server is not at fault.

    `refused`: the server does not take this request (too long, a picture it does not read). `unusable`: no reply could
    be used, after other seeds were tried. `picture`: a picture does not encode.
    """

    kind: FailureKind
    detail: str


@dataclass(frozen=True)
class Tokens:
    """As the server counted them; of a cached reply, as it counted them then."""

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)


@dataclass(frozen=True)
class Reply:
    """The `n` answers to a question, or the failure.

    Attributes:
        texts: the raw answers that could be used.
        values: the same as instances of the question's schema (the texts themselves where it has none).
        cached: no request was made for it.
    """

    texts: tuple[str, ...] = ()
    values: tuple[Any, ...] = ()
    failure: Failure | None = None
    tokens: Tokens = field(default_factory=Tokens)
    cached: bool = False

    @property
    def text(self) -> str:
        """The first answer. Only of a reply that did not fail."""
        return self.texts[0]


@dataclass
class Usage:
    """What was asked of a server since its client was made; counted on one thread."""

    requests: int = 0
    retried: int = 0
    cached: int = 0
    refused: int = 0
    unusable: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
