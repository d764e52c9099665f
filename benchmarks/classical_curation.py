"""What the classical curators cost on real clips, stage by stage, beside decoding the same clips, in one run.

    taskset -c 0,1 python benchmarks/classical_curation.py [--pairs FOLDER] [--rounds N] [--out FILE]

Every pair is decoded and goes through all stages before the next; recorded are the milliseconds of each stage (sum
over the pairs of each pair's best round, and its median pair), and how the time of decoding and all stages compares
with decoding alone. GrabCut, which is OpenCV's own and takes most of segmenting, is counted apart and left out of that
ratio. Fails where the ratio is above ALLOWED.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import cv2
from machine import machine

from kiwi.configuration import CurationSettings, SourceSettings
from kiwi.curation.curators.classical_ground import ClassicalGrounder
from kiwi.curation.curators.classical_score import ClassicalScorer
from kiwi.curation.curators.classical_segment import ClassicalSegmenter
from kiwi.curation.curators.classical_synthesize import ClassicalSynthesizer
from kiwi.curation.curators.classical_verify import ClassicalVerifier
from kiwi.curation.curators.registry import deduplicator
from kiwi.media import decode
from kiwi.sources.listing import list_pairs, open_pair
from kiwi.workspace import write_json

ALLOWED = 2.5
PAIRS = Path(os.environ.get("KIWI_REAL_PAIRS", "../shared/data/real"))
STAGES = ("decode", "score", "ground", "segment", "synthesize", "verify", "fingerprints", "grabcut")
SETTINGS = CurationSettings()

Result = TypeVar("Result")


class Stopwatch:
    """Milliseconds by stage of one pair. GrabCut's are taken off the stage that calls it."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(STAGES, 0.0)

    def timed(self, stage: str, call: Callable[[], Result]) -> Result:
        before, started = self.spent["grabcut"], time.perf_counter()
        result = call()
        self.spent[stage] += 1e3 * (time.perf_counter() - started) - (self.spent["grabcut"] - before)
        return result


def curate(source: bytes | Path, target: bytes | Path, task: object, watch: Stopwatch) -> None:
    """One pair through the stages as the pipeline runs them, up to the stage that refuses it."""
    before = watch.timed("decode", lambda: decode(source, pixel_budget=SETTINGS.pixel_budget).frames)
    after = watch.timed("decode", lambda: decode(target, pixel_budget=SETTINGS.pixel_budget).frames)
    watch.timed("score", lambda: ClassicalScorer().score_pair(before, after, task))
    first, edited, fingerprint = before[0], after[0], deduplicator(SETTINGS).fingerprint
    grounder = ClassicalGrounder(SETTINGS.min_region, SETTINGS.max_region)
    found = watch.timed("ground", lambda: grounder.ground_pair(first, edited, task))
    if found.reason is not None:
        return
    cut = watch.timed("segment", lambda: ClassicalSegmenter().segment_pair(first, edited, found.box, found.kind))
    limits = SETTINGS.max_aspect, SETTINGS.min_reference_side, SETTINGS.max_reference_side
    made = watch.timed(
        "synthesize", lambda: ClassicalSynthesizer(*limits).synthesize_frame(edited, cut.mask, found.kind)
    )
    if made.image is None:
        return
    verifier = ClassicalVerifier(SETTINGS.min_verify)
    watch.timed("verify", lambda: verifier.verify_reference(made.image, first, edited, cut.mask, found.kind))
    watch.timed("fingerprints", lambda: (fingerprint(edited), fingerprint(made.image)))


def measured(pairs: Path, rounds: int) -> list[dict[str, float]]:
    """By pair: the milliseconds of each stage, the best of `rounds`."""
    settings = SourceSettings(kind="pairs", pairs=str(pairs))
    watches: list[Stopwatch] = []
    plain = cv2.grabCut
    rows = []
    for pair in list_pairs(settings):
        media = open_pair(settings, pair)
        watches = []
        for _ in range(rounds):
            watch = Stopwatch()
            cv2.grabCut = lambda *given, watch=watch: watch.timed("grabcut", lambda: plain(*given))
            curate(media.source, media.target, pair.task, watch)
            watches.append(watch)
        rows.append({stage: min(watch.spent[stage] for watch in watches) for stage in STAGES})
    cv2.grabCut = plain
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, default=PAIRS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "classical_curation.json")
    arguments = parser.parse_args()
    if not (arguments.pairs / "pairs.csv").exists():
        raise SystemExit(f"no pairs.csv in {arguments.pairs}: give --pairs, or set KIWI_REAL_PAIRS")
    rows = measured(arguments.pairs, arguments.rounds)
    found = {}
    print(f"{'stage':<14} {'sum ms':>8} {'median':>8} {'pairs':>6}")
    for stage in STAGES:
        reached = [row[stage] for row in rows if row[stage] > 0]
        found[stage] = {
            "sum_ms": round(sum(reached), 1), "median_ms": round(statistics.median(reached), 1), "pairs": len(reached)
        }  # fmt: skip
        print(f"{stage:<14} {found[stage]['sum_ms']:>8} {found[stage]['median_ms']:>8} {len(reached):>6}")
    alone = found["decode"]["sum_ms"]
    ratio = round(sum(found[stage]["sum_ms"] for stage in STAGES if stage != "grabcut") / alone, 2)
    with_cut = round(sum(found[stage]["sum_ms"] for stage in STAGES) / alone, 2)
    print(f"decoding and curating takes {ratio} times decoding alone ({with_cut} with GrabCut)")
    said = {"rounds": arguments.rounds, "pixel_budget": SETTINGS.pixel_budget, "allowed": ALLOWED}
    totals = {"over_decoding": ratio, "over_decoding_with_grabcut": with_cut}
    write_json(
        arguments.out,
        {"machine": {**machine(), "load_average": round(os.getloadavg()[0], 1)}, **said, "stages": found, **totals},
    )
    print(f"written to {arguments.out.name}")
    if ratio > ALLOWED:
        raise SystemExit(f"curating takes {ratio} times decoding, at most {ALLOWED} is allowed")


if __name__ == "__main__":
    main()
