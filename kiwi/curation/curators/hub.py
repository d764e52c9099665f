"""The hub that weights come from: where it does not answer, only what is in the local cache is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ANSWER_SECONDS = 5.0


@contextmanager
def cached_where_hub_is_away(model: str) -> Iterator[None]:
    """Asks the hub once before weights of `model` are loaded. Its library would ask each file five times, with pauses,
    and say so each time: 52 s until weights that are nowhere were said to be missing."""
    from huggingface_hub import constants

    if Path(model).is_dir() or constants.HF_HUB_OFFLINE or _answers():
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _answers() -> bool:
    """Whether anything answers at the hub's address, through the proxy where there is one, within ANSWER_SECONDS."""
    from huggingface_hub import constants
    from requests import RequestException, head  # type: ignore[import-untyped,unused-ignore]
    from requests.exceptions import SSLError  # type: ignore[import-untyped,unused-ignore]

    try:
        head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
    except SSLError:  # whom the hub's own library trusts (SSL_CERT_FILE) is another question
        return True
    except RequestException:
        return False
    return True
