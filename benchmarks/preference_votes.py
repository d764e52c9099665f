"""100,000 preference votes: reading them from SQLite and scoring them, against the floor of 2 seconds for both.

    taskset -c 0,1 python benchmarks/preference_votes.py [--votes N] [--rounds N] [--out FILE]

Four sets of edits on 2,000 samples, by 20 raters whose answers follow known strengths, so that the scores can be
checked too: the recorded error is how far the found scores are from the true ones (ties, as half wins, draw scores
together by their share). Scored is what `kiwi bench prefer
--results` shows: win rates by kind of edit, Bradley-Terry scores and Krippendorff's alpha with intervals of 1,000
resamples over samples, left share, raters and their checks. The fastest and the median of the rounds are recorded:
other work may share the cores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from machine import machine

from kiwi.benchmark.preference import votes as store_tables
from kiwi.benchmark.preference.results import results
from kiwi.benchmark.preference.scores import ELO
from kiwi.benchmark.preference.study import ClipFile, Study, StudySample
from kiwi.benchmark.preference.votes import VoteStore
from kiwi.workspace import write_json

FLOOR_SECONDS = 2.0
SAMPLES, RATERS = 2000, 20
STRENGTHS = {"base": -0.6, "distilled": -0.1, "ours": 0.2, "ours-large": 0.5}
CLIP = ClipFile("clip.mp4", 256, 256, 8.0, 2.0)


def made_study() -> Study:
    samples = tuple(
        StudySample(f"s{number:05d}", f"kind{number % 8}", "edit", CLIP, dict.fromkeys(STRENGTHS, CLIP))
        for number in range(SAMPLES)
    )
    return Study("b" * 16, tuple(STRENGTHS), samples, (), 0.0, {})


def fill(store: VoteStore, study: Study, number: int) -> None:
    """Votes of all raters, one in ten a tie and one in twenty both bad, straight into the tables."""
    draw = np.random.default_rng(0)
    raters = [store.join(f"rater {place}", RATERS).rater_id for place in range(RATERS)]
    pairs = list(combinations(STRENGTHS, 2))
    assignments: list[dict[str, Any]] = []
    votes: list[dict[str, Any]] = []
    items = [(sample.sample_id, pair) for sample in study.samples for pair in pairs]
    for place in range(number):
        sample, (one, other) = items[place % len(items)]
        flipped = bool(draw.random() < 0.5)
        first = draw.random() < 1 / (1 + np.exp(STRENGTHS[other] - STRENGTHS[one]))
        said = draw.random()
        choice = "tie" if said < 0.1 else "both_bad" if said < 0.15 else "left" if first != flipped else "right"
        # Rater by rater, so that no rater has an item twice.
        rater = (place // len(items) + place % len(items)) % RATERS
        key = f"{place:032d}"
        assignments.append(
            {"id": key, "study": study.study_id, "rater": raters[rater], "item": f"{sample}|{one}|{other}"}
            | {"kind": "pair", "place": place, "flipped": flipped, "round": 0, "issued_at": 0.0}
        )
        votes.append({"assignment": key, "choice": choice, "seconds": 9.0, "given_at": float(place)})
    with store._transaction() as connection:
        connection.execute(sa.insert(store_tables._assignment), assignments)
        connection.execute(sa.insert(store_tables._vote), votes)


def measure(number: int, rounds: int) -> dict[str, Any]:
    study = made_study()
    reading, scoring = [], []
    with tempfile.TemporaryDirectory(prefix="kiwi-preference-") as folder:
        store = VoteStore(str(Path(folder) / "votes.db"), study.study_id)
        fill(store, study, number)
        for _ in range(rounds):
            started = time.perf_counter()
            votes = store.votes()
            read = time.perf_counter()
            said = results(study, votes, overlap=2)
            scoring.append(time.perf_counter() - read)
            reading.append(read - started)
        store.close()
    assert len(votes) == number
    scores = said["all"]["scores"]
    errors = [abs((scores[name]["value"] - 1000) / ELO - value) for name, value in STRENGTHS.items()]
    both = [one + other for one, other in zip(reading, scoring, strict=True)]
    return {
        "votes": number,
        "samples": SAMPLES,
        "sets": len(STRENGTHS),
        "raters": RATERS,
        "resamples": 1000,
        "rounds": rounds,
        "fastest_seconds": {
            "read": round(min(reading), 3),
            "score": round(min(scoring), 3),
            "both": round(min(both), 3),
        },
        "median_seconds": {
            "read": round(statistics.median(reading), 3),
            "score": round(statistics.median(scoring), 3),
            "both": round(statistics.median(both), 3),
        },
        "floor_seconds": FLOOR_SECONDS,
        "within_floor": statistics.median(both) <= FLOOR_SECONDS,
        "largest_error_of_a_log_strength": round(max(errors), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--votes", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "preference_votes.json")
    arguments = parser.parse_args()
    result = measure(arguments.votes, arguments.rounds)
    write_json(arguments.out, {"machine": machine(), **result})
    for name in ("fastest", "median"):
        seconds = result[f"{name}_seconds"]
        print(f"{name:<8} read {seconds['read']:.2f} s, score {seconds['score']:.2f} s, both {seconds['both']:.2f} s")
    print(f"{result['votes']} votes; floor {FLOOR_SECONDS} s; written to {arguments.out.name}")


if __name__ == "__main__":
    main()
