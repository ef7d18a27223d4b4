"""a sound file + a list of changes -> a damaged or hostile one.

Hypothesis chooses the changes, so a finding shrinks to the fewest that matter.
"""

from __future__ import annotations

import struct

from hypothesis import strategies as st

Change = tuple[str, float, int]  # what, where (0 to 1 of the content), and which value

NUMBERS = (
    *(b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff"),
    *(struct.pack("<h", n) for n in (-1, -32768, 32767)),
    *(struct.pack(order + "i", n) for order in "<>" for n in (-1, 0, 2**31 - 1, -(2**31))),
    *(
        struct.pack(order + "f", x)
        for order in "<>"
        for x in (float("nan"), float("inf"), 1e38, -1e-38)
    ),
    struct.pack("<q", 2**62),
)
TOKENS = (
    *(b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"9" * 5000, b"0.1", b"inf"),
    *(b"{}", b"[]", b'""', b"[" * 3000, b'{"a":' * 3000, b"a." * 2000 + b"b = 1\n"),
    *(
        b'"\\ud800"',
        b'"\\u0000"',
        b'"\\u001b[2J"',
        b'"\\n"',
        b'"' + b"x" * 600 + b'"',
        b"\xef\xbb\xbf",
    ),
    *(b"\xff\xfe", b"'(a+)+$'", b'"/**"', b'"../../x"', b'"%s%n"', b"1979-05-27", b"[[x]]\n"),
)
KINDS = ("flip", "number", "token", "cut", "double", "end", "swap", "key")


def changes(most: int = 5) -> st.SearchStrategy[list[Change]]:
    """One change to `most`."""
    place = st.floats(0, 1, exclude_max=True)
    return st.lists(
        st.tuples(st.sampled_from(KINDS), place, st.integers(0, 2**16 - 1)),
        min_size=1,
        max_size=most,
    )


def changed(content: bytes, todo: list[Change]) -> bytes:
    """The content after all changes, in order."""
    for kind, where, value in todo:
        content = _changed(content, kind, int(where * len(content)), value)
    return content


def _changed(content: bytes, kind: str, place: int, value: int) -> bytes:
    before, behind = content[:place], content[place:]
    if kind == "flip":
        return before + bytes(b ^ (1 << value % 8) for b in behind[:1]) + behind[1:]
    if kind == "number":
        number = NUMBERS[value % len(NUMBERS)]
        return before + number + behind[len(number) :]
    if kind == "token":  # in the place of the value that begins next, as JSON and TOML have them
        start = next((i for i, b in enumerate(behind) if b in b":=,["), None)
        if start is None:
            return content
        end = next((i for i, b in enumerate(behind[start + 1 :]) if b in b",}]\n"), 0)
        return (
            before + behind[: start + 1] + TOKENS[value % len(TOKENS)] + behind[start + 1 + end :]
        )
    if kind == "cut":
        return before + behind[1 + value % 64 :]
    if kind == "double":
        return before + behind[: 1 + value % 64] + behind
    if kind == "end":
        return before
    if kind == "key":
        return before + behind.replace(b'"', b'"x', 1)
    return before + behind[:8][::-1] + behind[8:]
