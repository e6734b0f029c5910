"""What two tokenizers have in common: their tokens with the same bytes, and their control symbols with the same role."""

from typing import NamedTuple

import numpy as np

from data.text.tokenizer import Tokenizer


class Shared(NamedTuple):
    """The tokens that both share: token student_M[i] of the student is token teacher_M[i] of the teacher, int32 [M]."""

    student_M: np.ndarray
    teacher_M: np.ndarray


NOTHING_SHARED = Shared(np.zeros(0, np.int32), np.zeros(0, np.int32))


def spellings(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of each token within a text; those of the name of a control symbol."""
    ends = np.cumsum(tokenizer.bytes_per_token).tolist()
    whole = tokenizer.decode_bytes(np.arange(tokenizer.vocab_size))
    names = {i: name.encode() for name, i in tokenizer.controls.items()}
    return [names.get(i) or whole[begin:end] for i, (begin, end) in enumerate(zip([0, *ends], ends))]


def difference(ours: Tokenizer, theirs: Tokenizer) -> str | None:
    """Return why the teacher's tokenizer is another one; None if it has each of our tokens. It may have more of them."""
    if ours.fingerprint == theirs.fingerprint:
        return None
    a, b = spellings(ours), spellings(theirs)
    differs = next((i for i, (one, other) in enumerate(zip(a, b)) if one != other), None)
    if differs is not None:
        return f"token {differs} is {b[differs]!r} in its tokenizer and {a[differs]!r} in the student's"
    return f"its tokenizer has {len(b)} tokens and the student's {len(a)}" if len(b) < len(a) else None


def counterparts(student: Tokenizer, teacher: Tokenizer) -> dict[int, int]:
    """Return the teacher's control symbol for each of the student's that has one: of the same name, else of the same role.

    Roles are the begin and the end of a text. Other symbols have no counterpart: the teacher reads their names as text.
    """
    same = {i: teacher.controls[name] for name, i in student.controls.items() if name in teacher.controls}
    roles = {student.bos_id: teacher.bos_id, student.eos_id: teacher.eos_id}
    return {i: j for i, j in roles.items() if i is not None and j is not None} | same


def shared_tokens(student: Tokenizer, teacher: Tokenizer) -> Shared:
    """Return the pairs of tokens with the same bytes within a text, and of control symbols that are counterparts.

    TRL compares the names of tokens instead, in which a space is `▁` in SentencePiece and `Ġ` in a byte-level vocabulary. Of
    several tokens with the same bytes the last one counts: byte tokens come first, and are written only for want of another.
    """
    tables = []
    for tokenizer in (student, teacher):
        hidden = set(tokenizer.controls.values())
        tables.append({text: i for i, text in enumerate(spellings(tokenizer)) if text and i not in hidden})
    ours, theirs = tables
    pairs = {ours[text]: theirs[text] for text in ours if text in theirs}
    for i, j in counterparts(student, teacher).items():
        if j not in pairs.values():
            pairs[i] = j
    return Shared(np.asarray(sorted(pairs), np.int32), np.asarray([pairs[i] for i in sorted(pairs)], np.int32))
