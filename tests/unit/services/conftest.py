"""What tests of services share: no address, key or switch of this machine's environment reaches them."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KIWI_VLM") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
