"""Approvals: promotion waits for so many different people, and for approvals of the very files that it promotes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from kiwi.configuration import GateSettings, RunConfiguration
from kiwi.errors import UsageError
from kiwi.hashing import contents_digest
from kiwi.registry import (
    NotApproved,
    RegistryError,
    approve,
    champion,
    decide,
    history,
    promote,
    promote_candidate,
    register,
)
from kiwi.tracking import silent
from kiwi.tracking.server import connect
from tests.unit.registry.registering import NAME, registered, trained

Asking = Callable[..., RunConfiguration]


@pytest.fixture
def asking(configuration: RunConfiguration, monkeypatch: pytest.MonkeyPatch) -> Asking:
    """A configuration, trained by `trainer`, that asks for approvals."""
    monkeypatch.setenv("KIWI_USER", "trainer")
    return lambda *approvers, approvals=2: configuration.model_copy(
        update={"gate": GateSettings(approvals=approvals, approvers=approvers)}
    )


def test_promotion_waits_for_so_many_different_people(asking: Asking) -> None:
    configuration = asking()
    registered(configuration)
    uri = configuration.tracking_uri
    with pytest.raises(NotApproved, match="0 of 2 approvals"):
        promote(uri, NAME, "1")
    assert approve(uri, NAME, "1", who="Ada", why="looked at all of them") == (("Ada",), 2)
    assert approve(uri, NAME, "challenger", who="  ada ") == (("Ada",), 2)
    with pytest.raises(NotApproved, match=r"1 of 2 approvals \(Ada\)"):
        promote(uri, NAME, "1", force=True, why="force replaces no approval")
    assert champion(configuration) is None
    assert approve(uri, NAME, "1", who="Grace") == (("Ada", "Grace"), 2)
    assert promote(uri, NAME, "1").aliases == ("champion",)
    told = [(entry.action, entry.who, entry.why) for entry in history(uri, NAME) if entry.action == "approve"]
    assert told == [
        ("approve", "Ada", "looked at all of them [entered by trainer]"), ("approve", "Grace", "[entered by trainer]"),
    ]  # fmt: skip
    assert not history(uri, NAME)[-1].forced


def test_an_approval_is_for_the_files_that_were_approved(asking: Asking) -> None:
    configuration = asking(approvals=1)
    version = registered(configuration)
    uri, weights = configuration.tracking_uri, Path(version.source) / "weights.safetensors"
    approve(uri, NAME, "1", who="Ada")
    weights.write_bytes(b"other weights")
    for attempt in (lambda: promote(uri, NAME, "1"), lambda: approve(uri, NAME, "1", who="Grace")):
        with pytest.raises(RegistryError, match="not those that were registered"):
            attempt()
    digest = contents_digest(Path(version.source))
    connect(uri).set_model_version_tag(NAME, "1", "model.digest", digest)
    with pytest.raises(NotApproved, match="0 of 1 approvals"):
        promote(uri, NAME, "1")
    assert approve(uri, NAME, "1", who="Ada") == (("Ada",), 1)
    promote(uri, NAME, "1")
    assert [entry.content == digest for entry in history(uri, NAME) if entry.action == "approve"] == [False, True]


def test_an_approval_of_one_version_is_none_of_another(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = asking(approvals=1)
    for attempt in ("run-1", "run-2"):
        monkeypatch.setenv("KIWI_RUN_ID", attempt)
        registered(configuration)
    approve(configuration.tracking_uri, NAME, "1", who="Ada")
    with pytest.raises(NotApproved):
        promote(configuration.tracking_uri, NAME, "2")


def test_who_trained_a_version_does_not_approve_it(asking: Asking) -> None:
    configuration = asking(approvals=1)
    registered(configuration)
    with pytest.raises(UsageError, match="trained this version"):
        approve(configuration.tracking_uri, NAME, "1", who="Trainer")


def test_who_trained_a_version_does_not_approve_it_where_no_approval_is_asked_for_either(asking: Asking) -> None:
    configuration = asking(approvals=0)
    registered(configuration)
    with pytest.raises(UsageError, match="trained this version"):
        approve(configuration.tracking_uri, NAME, "1", who="trainer")
    assert approve(configuration.tracking_uri, NAME, "1", who="Ada") == (("Ada",), 0)


def test_where_approvers_are_named_nobody_else_approves(asking: Asking) -> None:
    configuration = asking("Ada", "Grace", "trainer", approvals=2)
    registered(configuration)
    with pytest.raises(UsageError) as refused:
        approve(configuration.tracking_uri, NAME, "1", who="Mallory")
    assert "may approve: Ada, Grace" in refused.value.remedy
    assert "trainer" not in refused.value.remedy
    assert [entry.action for entry in history(configuration.tracking_uri, NAME)] == ["register"]


@pytest.mark.parametrize("wrong", ["", "   ", "a\x1b[31mb", "x" * 81])
def test_what_is_no_name_approves_nothing(asking: Asking, wrong: str) -> None:
    configuration = asking()
    registered(configuration)
    with pytest.raises(UsageError, match="no name of a person"):
        approve(configuration.tracking_uri, NAME, "1", who=wrong)


def test_a_pipeline_leaves_a_candidate_that_needs_approvals_a_challenger_and_says_so(asking: Asking) -> None:
    configuration = asking()
    trained(configuration)
    register(configuration, silent())
    assert decide(configuration, silent()) == "promote"
    said = promote_candidate(configuration, silent())
    assert (said["decision"], said["aliases"]) == ("promote", ["challenger"])
    assert said["waits"]["for"] == "approvals"
    assert "0 of 2 approvals" in said["waits"]["why"]


def test_fewer_approvers_than_approvals_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(ValidationError, match="2 people must approve, and 1 may"):
        GateSettings(approvals=2, approvers=("Ada", "ada"))
