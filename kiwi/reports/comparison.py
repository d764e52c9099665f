"""The judged scores beside the champion's and a copy's, how sure that is, and what others published, kept apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kiwi.reports.figures import count, decimal, number, percent, words
from kiwi.reports.findings import Findings, Json

if TYPE_CHECKING:
    from kiwi.benchmark.tables import ScoreTable

Ends = tuple[float, float]
SUBJECT = ("identity_consistency", "temporal_consistency", "physical_consistency")
BACKGROUND = ("reference_similarity", "matting_quality", "video_quality")


@dataclass(frozen=True)
class Compared:
    """One figure of the candidate beside the champion's and that of copying the source, with 95% intervals.

    `lead` is the candidate less the champion, sample by sample where that is known; `lead_ends` its interval.
    """

    name: str
    group: str
    candidate: float | None
    champion: float | None
    copied: float | None
    ends: Ends | None = None
    champion_ends: Ends | None = None
    lead: float | None = None
    lead_ends: Ends | None = None


@dataclass(frozen=True)
class Lead:
    """How far the candidate is from another over the samples both edited, and the chance that it is the better one."""

    over: str
    samples: int
    difference: float
    ends: Ends | None
    chance: float | None
    about: str = ""


@dataclass(frozen=True)
class Unjudged:
    """A typed reason for which edits have no score: how many, and what was said of the first."""

    reason: str
    edits: int
    detail: str


@dataclass(frozen=True)
class Published:
    """A benchmark of the paper: its printed rows and ours of the same judge's kind, or why they are not shown."""

    title: str
    table: ScoreTable | None
    why_not: str = ""
    ours: str = ""


def criteria(found: Findings) -> list[Compared]:
    """The overall score and the criteria it is the mean of, each 1 to 5; an overall without a figure where no edit
    could be judged."""
    scores = found.scores or {}
    copied = _mapping(_mapping(scores.get("baselines")).get("copy_source"))
    champion = _mapping(scores.get("champion"))
    groups = _criterion_groups(scores)
    rows = [_compared("overall", "", scores, champion, copied)]
    rows += [
        _compared(name, groups.get(name, ""), scores, champion, copied) for name in _mapping(scores.get("criteria"))
    ]
    return rows if scores else []


def _compared(name: str, group: str, scores: Json, champion: Json, copied: Json) -> Compared:
    mine, its, copy = (_score(side, name) for side in (scores, champion, copied))
    comparison = _mapping(champion.get("comparison"))
    apart = comparison if name == "overall" else _mapping(_mapping(comparison.get("criteria")).get(name))
    lead = number(apart.get("difference"))
    if lead is None and mine is not None and its is not None:
        lead = mine - its
    return Compared(
        name,
        group,
        mine,
        its,
        copy,
        _interval(scores, name),
        _interval(champion, name),
        lead,
        ends(apart.get("interval")),
    )


def _score(side: Json, name: str) -> float | None:
    return number(side.get("overall") if name == "overall" else _mapping(side.get("criteria")).get(name))


def _interval(side: Json, name: str) -> Ends | None:
    known = _mapping(side.get("intervals"))
    return ends(known.get("overall") if name == "overall" else _mapping(known.get("criteria")).get(name))


def ends(value: Any) -> Ends | None:
    """[low, high] as recorded; None for everything else."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def _criterion_groups(scores: Json) -> dict[str, str]:
    known = dict.fromkeys(SUBJECT, "subject reference") | dict.fromkeys(BACKGROUND, "background reference")
    return known | {str(name): words(group) for name, group in _mapping(scores.get("groups")).items()}


def champion_name(found: Findings) -> str:
    """ "champion version 3", or "" where there is none."""
    champion = _mapping((found.scores or {}).get("champion")) or _mapping((found.decision or {}).get("champion"))
    return f"champion version {champion.get('version', '?')}" if champion else ""


def unmeasured_champion(found: Findings) -> str:
    """Why there are no figures of the champion although there is one; "" where there are, or none."""
    return str(_mapping((found.scores or {}).get("champion")).get("unmeasured") or "")


def leads(found: Findings) -> list[Lead]:
    """Over the champion, where there is one with scores sample by sample, and over copying the source."""
    scores = found.scores or {}
    champion = _mapping(scores.get("champion"))
    about = {"record": "its recorded scores", "this run": "edited the same samples in this run"}
    sides = [
        (champion_name(found), champion, about.get(str(champion.get("scores_from")), "")),
        ("copying the source", _mapping(_mapping(scores.get("baselines")).get("copy_source")), ""),
    ]
    return [lead for over, side, said in sides if (lead := _lead(over, _mapping(side.get("comparison")), said))]


def _lead(over: str, comparison: Json, about: str) -> Lead | None:
    difference = number(comparison.get("difference"))
    if not over or difference is None:
        return None
    samples = int(number(comparison.get("samples")) or 0)
    return Lead(
        over, samples, difference, ends(comparison.get("interval")), number(comparison.get("chance_better")), about
    )


def unjudged(found: Findings) -> list[Unjudged]:
    """Why edits have no score, the most frequent reason first."""
    failures = [each for each in (found.scores or {}).get("failures") or [] if isinstance(each, dict)]
    counted = Counter(str(each.get("reason") or "unknown") for each in failures)
    first = {str(each.get("reason") or "unknown"): str(each.get("detail") or "") for each in reversed(failures)}
    return [Unjudged(reason, edits, first[reason]) for reason, edits in counted.most_common()]


def published(found: Findings) -> list[Published]:
    """Tables 2 and 3 of the paper, each where its own benchmark was judged by a multimodal model, else why not.

    Ours stand in parts of their own, and nothing is ranked: even then the judge is another one.
    """
    from kiwi.benchmark.published import published_tables

    return [_published(name, found.listed.get(name), found) for name in published_tables()]


def _published(name: str, scores: Json | None, found: Findings) -> Published:
    from kiwi.benchmark.published import published_table
    from kiwi.benchmark.tables import score_table
    from kiwi.errors import KiwiError

    table = published_table(name)
    if scores is None:
        judge = (found.scores or {}).get("judge")
        on = _mapping(found.scores).get("benchmark") or "its own held-out samples"
        own = f"this run was judged by {judge} on {on}; " if judge else ""
        how = f"kiwi bench run --benchmark {name}=FOLDER, then kiwi bench judge --judge mllm"
        return Published(table.title, None, f"Not shown: {own}{table.title} was not run on this model ({how}).")
    if is_measured(str(scores.get("judge"))):
        why = "measures pixels, and its figures never stand beside those of a multimodal model"
        return Published(table.title, None, f"Not shown: the judge {scores.get('judge')} {why}.")
    try:
        rows = score_table(table, [(found.configuration.model_name, scores)])
        return Published(table.title, rows, ours=_sureness(scores))
    except (KiwiError, KeyError, TypeError, ValueError) as error:
        return Published(table.title, None, f"Not shown: its scores cannot be read ({error}).")


def _sureness(scores: Json) -> str:
    """How sure our own overall of a published benchmark is, in a sentence; "" where that is not known."""
    sure, coverage = _interval(scores, "overall"), number(scores.get("coverage"))
    overall = decimal(scores.get("overall"))
    between = f", 95% interval {decimal(sure[0])} to {decimal(sure[1])}" if sure else ", too few for an interval"
    judged = f"; {percent(coverage)} of {count(scores.get('samples'))} samples judged" if coverage is not None else ""
    return f"Ours over all samples: {overall}{between}{judged}."


def is_measured(judge: str) -> bool:
    """Whether it is the judge that computes its scores from pixels."""
    return judge.split("/")[0] == "measured"


def _mapping(value: Any) -> Json:
    return value if isinstance(value, dict) else {}
