"""The fake pipelines server, and a cluster's door to it that does not wait."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from kiwi.cluster.api import Address, Cluster


def _fake_kfp():
    place = Path(__file__).with_name("fake_kfp.py")
    spec = importlib.util.spec_from_file_location("fake_kfp", place)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_kfp"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake():
    with _fake_kfp().serving() as server:
        yield server


@pytest.fixture
def cluster(fake):
    return Cluster(Address(fake.url, token="the-token"), "kiwi", pause=lambda seconds: None)
