"""Listings that are broken or meant to do harm: a bad entry fails as its own row, a broken file by name and line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kiwi.configuration import SourceSettings
from kiwi.dataset.schema import EditPair, Reason
from kiwi.sources import delimited, json_entries
from kiwi.sources.adapter import SourceError
from kiwi.sources.listing import list_pairs
from kiwi.sources.registry import adapter_named

Written = Callable[[dict[str, Any]], str]
HEADER = "src_video,tgt_video,prompt\n"


def own(written: Written, text: str | bytes) -> list[EditPair]:
    return list_pairs(SourceSettings(kind="pairs", pairs=written({"pairs.csv": text})))


def ditto(written: Written, text: str | bytes) -> list[EditPair]:
    return list(adapter_named("ditto-1m").entries(written({"training_metadata/a.json": text})))


def entry(**changes: object) -> dict[str, object]:
    values = {"source_path": "s.mp4", "edited_path": "e.mp4", "instruction": "Make it red.", **changes}
    return {key: value for key, value in values.items() if value is not ...}


def test_bad_entries_of_a_json_list_keep_their_places_and_say_what_is_wrong(written_here: Written) -> None:
    entries = [
        entry(),
        entry(instruction=7),
        entry(instruction=...),
        entry(source_path=None),
        entry(edited_path=["e.mp4"]),
        "no object",
        None,
        [1, 2],
        entry(),
    ]
    pairs = ditto(written_here, json.dumps(entries))
    assert [pair.position for pair in pairs] == list(range(9))
    assert [pair.problem for pair in pairs] == [None] + [Reason.LISTING_MALFORMED] * 7 + [None]
    told = [pair.problem_detail for pair in pairs[1:6]]
    assert told[0] == "instruction is a number: not text"
    assert told[1] == "entry 3: no key instruction (found: source_path, edited_path)"
    assert told[2:4] == ["source is missing: not text", "target is a list: not text"]
    assert told[4] == "entry 6 is no object"


@pytest.mark.parametrize("text", ["\\u0000abc", "a\\u0000", "\\u0001\\u0002\\u001b", "\\u0007", "\\ud83d", "x\\udc80y"])
def test_an_instruction_that_is_no_text_fails_as_unreadable(written_here: Written, text: str) -> None:
    pairs = ditto(written_here, f'[{{"source_path": "s", "edited_path": "e", "instruction": "{text}"}}]')
    assert pairs[0].problem is Reason.INSTRUCTION_UNREADABLE
    pairs[0].prompt.encode(), pairs[0].problem_detail.encode()


def test_bytes_that_are_no_utf8_fail_their_row_only(written_here: Written) -> None:
    text = HEADER.encode() + b"a.mp4,b.mp4,caf\xe9\na.mp4,b.mp4,caf\xc3\xa9\nb\xff.mp4,b.mp4,x\n"
    pairs = own(written_here, text)
    assert [pair.problem for pair in pairs] == [Reason.INSTRUCTION_UNREADABLE, None, Reason.LISTING_MALFORMED]
    assert pairs[0].prompt == "caf\\udce9", "what could not be read is spelt out"
    assert pairs[1].prompt == "café"
    listed = b'[{"source_path": "s", "edited_path": "e", "instruction": "caf\xe9"}]'
    assert ditto(written_here, listed)[0].problem is Reason.INSTRUCTION_UNREADABLE


def test_whatever_is_listed_can_be_written_as_utf8(written_here: Written) -> None:
    columns = b"src_video,tgt_video,prompt,id,edit_type,ref_image,license,source_dataset\n"
    pairs = own(written_here, columns + b",".join(bytes([number]) * 3 for number in range(200, 208)) + b"\n")
    odd = (
        b'{"source_file_name": "a", "edited_file_name": "b", "edit_instruction": "x", "category": "\xff"}\n{"\xfe": 1}'
    )
    pairs += adapter_named("nhr-edit").entries(written_here({"train/metadata.jsonl": odd}))
    pairs += ditto(written_here, b'[{"\xfe": 1}]')
    assert len(pairs) == 4
    for pair in pairs:
        json.dumps(pair.__dict__, ensure_ascii=False).encode("utf-8")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        ("NaN", "a number"),
        ("Infinity", "a number"),
        ("9" * 6000, "a number"),
        ("true", "a truth value"),
        ("{}", "an object"),
    ],
)
def test_numbers_that_json_has_no_word_for_fail_their_row(written_here: Written, number: str, said: str) -> None:
    text = f'[{{"source_path": {number}, "edited_path": "e", "instruction": "x"}}, {json.dumps(entry())}]'
    pairs = ditto(written_here, text)
    assert [pair.problem for pair in pairs] == [Reason.LISTING_MALFORMED, None]
    assert pairs[0].problem_detail == f"source is {said}: not text"


@pytest.mark.parametrize("length", [100_000, 200_000])
def test_a_very_long_instruction_is_listed_whole(written_here: Written, length: int) -> None:
    """Its length is for ingest to judge; csv's own limit of 131,072 characters would fail the file instead."""
    assert len(own(written_here, HEADER + f'a.mp4,b.mp4,"{"x" * length}"\n')[0].prompt) == length
    assert len(ditto(written_here, json.dumps([entry(instruction="x" * length)]))[0].prompt) == length


def test_a_cell_beyond_all_measure_is_told_as_an_open_quote(written_here: Written) -> None:
    text = HEADER + f'a.mp4,b.mp4,"{"x" * (delimited.LONGEST_CELL + 1)}"\n'
    with pytest.raises(SourceError, match=r"pairs\.csv: line 2: field larger than field limit"):
        own(written_here, text)


def test_a_quote_without_end_does_not_swallow_the_rows_behind_it(written_here: Written) -> None:
    text = HEADER + 'a.mp4,b.mp4,one\na.mp4,b.mp4,"two\na.mp4,b.mp4,three\na.mp4,b.mp4,four\n'
    with pytest.raises(SourceError, match=r"pairs\.csv: line 3: a quote is opened and never closed"):
        own(written_here, text)
    with pytest.raises(SourceError, match="line 2"):
        own(written_here, HEADER + 'a.mp4,b.mp4,"two')


def test_an_unquoted_comma_fails_its_row_instead_of_cutting_the_instruction(written_here: Written) -> None:
    pairs = own(written_here, HEADER + "a.mp4,b.mp4,Make it red, please\na.mp4,b.mp4,fine,,\n")
    assert [pair.problem for pair in pairs] == [Reason.LISTING_MALFORMED, None]
    assert pairs[0].problem_detail == "line 2: 4 cells where the header has 3; quote a cell that holds ','"


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_quoted_newlines_line_ends_and_a_byte_order_mark_make_no_difference(
    written_here: Written, ends: str, mark: str
) -> None:
    text = mark + HEADER + 'a.mp4,b.mp4,"first\nsecond ""quoted"", third"\n\n"c.mp4",d.mp4,last'
    pairs = own(written_here, text.replace("\n", ends))
    assert [pair.src_video for pair in pairs] == ["a.mp4", "c.mp4"]
    assert pairs[0].prompt.splitlines() == ["first", 'second "quoted", third']
    assert pairs[1].prompt == "last"


def test_text_in_utf16_and_columns_that_come_twice_are_told(written_here: Written) -> None:
    with pytest.raises(SourceError, match="UTF-8"):
        own(written_here, (HEADER + "a,b,c\n").encode("utf-16"))
    with pytest.raises(SourceError, match="column prompt comes twice"):
        own(written_here, "src_video,tgt_video,prompt,prompt\na,b,c,d\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: broken JSON: the file ends early"),
        ('{"a": 1}', "is no JSON list"),
        ('[{"a": 1},\n{"a": }]', "line 2: broken JSON"),
        ('[{"a": 1}\n{"a": 2}]', "line 2: broken JSON: a comma"),
        ('[{"a": 1},\n', "line 2: broken JSON: the file ends early"),
        ('[{"a": "x', "broken JSON: Unterminated string"),
        ("[" * 200_000, "nested too deeply"),
        ("[1, 2,]", "broken JSON"),
        ("\x00\x00\x00", "is no JSON list"),
    ],
)
def test_a_broken_json_list_is_told_with_its_line(written_here: Written, text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        ditto(written_here, text)
    assert "a.json" in caught.value.message
    assert caught.value.remedy


def test_a_line_without_end_is_refused_before_it_fills_the_memory(written_here: Written) -> None:
    root = written_here({"train/metadata.jsonl": "{}\n" + " " * 5000, "pairs.csv": HEADER + "x" * 5000})
    with patch.object(json_entries, "LONGEST_LINE", 1000), pytest.raises(SourceError, match="line 2: more than 1000"):
        list(adapter_named("nhr-edit").entries(root))
    with patch.object(delimited, "LONGEST_LINE", 1000), pytest.raises(SourceError, match="line 2: a line of more than"):
        list_pairs(SourceSettings(kind="pairs", pairs=root))


def test_one_broken_file_among_several_fails_the_whole_listing(written_here: Written) -> None:
    root = written_here({"training_metadata/a.json": [entry()], "training_metadata/b.json": "[{"})
    with pytest.raises(SourceError, match=r"b\.json"):
        list(adapter_named("ditto-1m").entries(root))


def test_a_list_of_something_else_is_told_before_a_run_starts(written_here: Written) -> None:
    root = written_here({"training_metadata/a.json": [{"video": "a", "caption": "b"}] * 200})
    with pytest.raises(SourceError, match=r"a\.json: no key source_path, edited_path, instruction \(found: video"):
        adapter_named("ditto-1m").check(root)


def test_a_check_reads_the_beginning_of_a_list_only(written_here: Written) -> None:
    text = "[" + ",".join([json.dumps(entry())] * 5) + ", {broken"
    adapter_named("ditto-1m").check(written_here({"training_metadata/a.json": text}))


VALUES = st.none() | st.floats(allow_nan=False) | st.text(max_size=6) | st.lists(st.text(max_size=2), max_size=2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.dictionaries(st.text(max_size=2), VALUES, max_size=3), max_size=5), st.integers(1, 40))
def test_a_json_list_reads_the_same_however_small_the_pieces_it_is_read_in(
    values: list[dict[str, object]], chunk: int
) -> None:
    data = json.dumps(values, ensure_ascii=False, indent=chunk % 3 or None).encode("utf-8", "surrogatepass")
    with patch.object(json_entries, "_CHUNK", chunk):
        assert [found.values for found in json_entries.json_list(io.BytesIO(data), "x")] == values
