"""The adapters by name. Each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from kiwi.sources.adapter import Adapter, SourceError

_PLACES = {
    "ditto-1m": "kiwi.sources.ditto:DITTO_JSON",
    "ditto-1m-csv": "kiwi.sources.ditto:DITTO_CSV",
    "reco": "kiwi.sources.reco:RECO_DATA",
    "openve-3m": "kiwi.sources.openve:OPENVE_3M",
    "gpt-image-edit-1.5m": "kiwi.sources.gpt_image_edit:GPT_IMAGE_EDIT_1_5M",
    "nhr-edit": "kiwi.sources.nhr_edit:NHR_EDIT_TRAIN",
    "refvie": "kiwi.sources.refvie:REFVIE",
    "training-csvs": "kiwi.sources.training_csvs:TRAINING_CSVS",
    "refvie-bench": "kiwi.sources.benchmarks:REFVIE_BENCH",
    "openve-bench": "kiwi.sources.benchmarks:OPENVE_BENCH",
    "pairs": "kiwi.sources.pairs:OWN_PAIRS",
}


def adapter_names() -> tuple[str, ...]:
    """Every adapter's name, in the order of the documentation."""
    return tuple(_PLACES)


def adapter_named(name: str) -> Adapter:
    """The adapter of that name. Raises SourceError listing the names that there are."""
    if name not in _PLACES:
        raise SourceError(f"no source adapter {name!r}", f"adapters: {', '.join(_PLACES)} (`kiwi data sources`)")
    module, _, attribute = _PLACES[name].partition(":")
    found: Adapter = getattr(import_module(module), attribute)
    return found
