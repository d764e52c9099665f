"""The fakes of the pipelines server and of the Kubernetes API, and doors to them that do not wait."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from kiwi.cluster.api import Address, Cluster
from kiwi.cluster.kubernetes import Kubernetes


def _module(name):
    place = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake():
    with _module("fake_kfp").serving() as server:
        yield server


@pytest.fixture
def cluster(fake):
    return Cluster(Address(fake.url, token="the-token"), "kiwi", pause=lambda seconds: None)


@pytest.fixture
def fake_kubernetes():
    with _module("fake_kubernetes").serving() as server:
        yield server


@pytest.fixture
def kubernetes(fake_kubernetes):
    return Kubernetes(fake_kubernetes.url, "kiwi", "the-token", pause=lambda seconds: None)
