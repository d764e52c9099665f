"""From what a listing says of a pair to an EditPair, types and text checked: a bad entry fails as its own row."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kiwi.dataset.schema import EditPair, Reason
from kiwi.sources.tasks import KindOf, names_a_reference

_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")
_LOST = re.compile(r"[\ud800-\udfff]")  # what is left of bytes that were no UTF-8, or of half a JSON escape
_NO_TEXT = re.compile(r"[\s\x00-\x1f\x7f-\x9f]*")


def pair_of(
    position: int,
    pair_id: object,
    source: object,
    target: object,
    prompt: object,
    *,
    kind: KindOf,
    source_dataset: str,
    license: str,
    reference: object = "",
    problem: str = "",
) -> EditPair:
    """One listed entry as a pair. What does not fit is told in `problem`, with the texts as far as they can be kept.

    Args:
        source, target, prompt, reference: as listed, of whatever type; `reference` may be None or "".
        problem: why the entry as a whole cannot be read (a line that is no JSON, too many cells), if so.
    """
    reason, detail = (Reason.LISTING_MALFORMED, problem) if problem else (None, "")
    if isinstance(source, str) and isinstance(target, str) and isinstance(prompt, str) and isinstance(reference, str):
        src, tgt, said, ref = source.strip(), target.strip(), prompt.strip(), reference.strip()
    else:
        src, tgt, said, ref = _text(source), _text(target), _text(prompt), _text(reference)
        wrong = _wrong_types(source, target, prompt, reference or "")
        if reason is None and wrong:
            reason, detail = Reason.LISTING_MALFORMED, wrong
    name = _identifier(pair_id)
    if not (src.isascii() and tgt.isascii() and said.isascii() and ref.isascii() and name.isascii()):
        if reason is None:
            reason, detail = _undecoded(said, {"source": src, "target": tgt, "reference": ref, "id": name})
        src, tgt, said, ref, name = (readable(text) for text in (src, tgt, said, ref, name))
    if reason is None and said:
        if "\0" in said:
            reason, detail = Reason.INSTRUCTION_UNREADABLE, "the instruction holds a NUL character"
        elif not said.isprintable() and _NO_TEXT.fullmatch(said):
            reason, detail = Reason.INSTRUCTION_UNREADABLE, "the instruction is control characters only"
    edit_type, task = kind(said)
    told = (edit_type, source_dataset, license, detail)
    if not all(map(str.isascii, told)):
        edit_type, source_dataset, license, detail = (readable(text) for text in told)
    return EditPair(
        position=position,
        pair_id=name,
        src_video=src,
        tgt_video=tgt,
        prompt=said,
        edit_type=edit_type,
        task=task,
        source_dataset=source_dataset,
        license=license,
        ref_image=ref,
        media="image" if suffix_of(src) in _IMAGES and suffix_of(tgt) in _IMAGES else "video",
        needs_reference=bool(ref) and names_a_reference(said),
        problem=reason,
        problem_detail=detail,
    )


def suffix_of(listed: str) -> str:
    """The extension of a listed path: lower case, with the dot; "" where there is none that could be one."""
    name = listed[max(listed.rfind("/"), listed.rfind("\\")) + 1 :]
    dot = name.rfind(".")
    suffix = name[dot:].lower() if dot > 0 else ""
    return suffix if _SUFFIX.fullmatch(suffix) else ""


def readable(text: str) -> str:
    """Text that can be written as UTF-8: what could not be decoded is spelt out (`\\udce9`), nothing is dropped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8") if _LOST.search(text) else text


def missing_keys(entry: dict[str, object], keys: Sequence[str]) -> str:
    """Why an entry cannot be read, where keys are missing; else ""."""
    for key in keys:
        if key not in entry:
            break
    else:
        return ""
    absent = [key for key in keys if key not in entry]
    return f"no key {', '.join(absent)} (found: {', '.join(map(str, entry))[:200]})"


def _identifier(pair_id: object) -> str:
    if isinstance(pair_id, float) and pair_id.is_integer():
        return str(int(pair_id))
    return str(pair_id).strip()


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""


def _undecoded(prompt: str, others: dict[str, str]) -> tuple[Reason | None, str]:
    """The reason where a text was no UTF-8."""
    lost = [key for key, text in others.items() if _LOST.search(text)]
    if lost:
        return Reason.LISTING_MALFORMED, f"{', '.join(lost)}: no UTF-8 text"
    if _LOST.search(prompt):
        return Reason.INSTRUCTION_UNREADABLE, "the instruction is no UTF-8 text"
    return None, ""


def _wrong_types(source: object, target: object, prompt: object, reference: object) -> str:
    named = (("source", source), ("target", target), ("instruction", prompt), ("reference", reference))
    wrong = [f"{key} is {_kind_of(value)}" for key, value in named if not isinstance(value, str)]
    return f"{', '.join(wrong)}: not text" if wrong else ""


def _kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "a truth value", float: "a number", int: "a number"}
    return "missing" if value is None else names.get(type(value), type(value).__name__)
