"""What can be wrong with an instruction or a seed: told before a model is loaded."""

from __future__ import annotations

from kiwi.editing.errors import EditError

LONGEST_INSTRUCTION = 5000  # characters; those of the paper's data have a few hundred
SMALLEST_SEED, LARGEST_SEED = -(2**63), 2**64 - 1  # what torch's generators take


def check_instruction(said: str, subject: str = "the instruction") -> None:
    """Raises EditError for an instruction that is empty, no Unicode text, or longer than any model was trained with."""
    if not said.strip():
        raise EditError(f"{subject} is empty", 'say what to do, e.g. --prompt "make the red circle blue"')
    try:
        said.encode()
    except UnicodeEncodeError as error:
        raise EditError(f"{subject} is no text: {error.reason}", "give it in UTF-8") from error
    if len(said) > LONGEST_INSTRUCTION:
        raise EditError(
            f"{subject} has {len(said):,} characters, and at most {LONGEST_INSTRUCTION:,} are taken",
            "say what to change in a few sentences",
        )


def check_seed(seed: int) -> None:
    """Raises EditError for a seed that no generator takes."""
    if not SMALLEST_SEED <= seed <= LARGEST_SEED:
        raise EditError(f"the seed {seed} is out of range", f"give a whole number from -2^63 to {LARGEST_SEED}")
