"""Edits of a benchmark's list (RefVIE-Bench, OpenVE-Bench or one's own), as raters are to see them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from kiwi.benchmark.listed import Listed, ListedSample, load_listed, open_sample
from kiwi.benchmark.listed_edits import kept_edit
from kiwi.benchmark.preference.footage import Footage, Opened, Unusable
from kiwi.benchmark.rubric import MeasurementError
from kiwi.configuration import RunConfiguration
from kiwi.errors import UsageError

Read = Callable[[], Opened | Unusable]


def open_list_edits(
    configuration: RunConfiguration, edits: Mapping[str, Any], model: Mapping[str, Any], wanted: frozenset[str]
) -> Iterator[tuple[str, Read]]:
    """Each wanted sample with a function that reads it. Raises UsageError where the list is another one by now."""
    name = str(edits["benchmark"])
    listed = load_listed(configuration, f"{name}={edits['location']}")
    if listed.revision != edits["revision"]:
        said = f"the edits of {name} are of benchmark {edits['revision']}, its list is {listed.revision} now"
        raise UsageError(said, f"`kiwi bench run --benchmark {name}={edits['location']}` again")
    for sample in listed.samples:
        if sample.sample_id in wanted:
            yield sample.sample_id, partial(_read, configuration, listed, model, sample)


def _read(
    configuration: RunConfiguration, listed: Listed, model: Mapping[str, Any], sample: ListedSample
) -> Opened | Unusable:
    try:
        opened = open_sample(listed, sample)
        edit = kept_edit(configuration, model, sample)
    except MeasurementError as failure:
        return Unusable(failure.message)
    if edit is None or edit.ndim != opened.source.ndim:
        return Unusable("its edit is missing")
    return Opened(Footage(edit, opened.fps), Footage(opened.source, opened.fps), opened.reference)
