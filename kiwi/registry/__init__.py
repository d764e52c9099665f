"""Registered models: a gate that promotes only what is better, aliases moved one at a time, and their history."""

from kiwi.registry.approvals import NotApproved, NotPromoted
from kiwi.registry.export import export_model
from kiwi.registry.gate import Check, Decision, decide_gate
from kiwi.registry.history import Entry, HistoryUnavailable, default_who
from kiwi.registry.promotion import ChampionChanged, RolledBack, approve, delete_version, history, promote, rollback
from kiwi.registry.register import decide, hold_candidate, promote_candidate, register
from kiwi.registry.versions import (
    ModelVersion,
    RegistryError,
    champion,
    check_registered,
    download_model,
    list_models,
    list_versions,
    recorded_scores,
    show,
)

__all__ = [
    "ChampionChanged",
    "Check",
    "Decision",
    "Entry",
    "HistoryUnavailable",
    "ModelVersion",
    "NotApproved",
    "NotPromoted",
    "RegistryError",
    "RolledBack",
    "approve",
    "champion",
    "check_registered",
    "decide",
    "decide_gate",
    "default_who",
    "delete_version",
    "download_model",
    "export_model",
    "history",
    "hold_candidate",
    "list_models",
    "list_versions",
    "promote",
    "promote_candidate",
    "recorded_scores",
    "register",
    "rollback",
    "show",
]
