"""Any text survives JSON lines: signs that end lines elsewhere, halves of signs."""

import json

from hypothesis import given, seed, settings
from hypothesis import strategies as st

from clip_la.json_text import json_text

SIGNS = st.sampled_from('a\x85\u2028\u2029\x0b\x0c\x1c\n\r"\\é🎂\ud83d\udce9')


@seed(0)
@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.text(SIGNS | st.characters(), max_size=20), min_size=1, max_size=4))
def test_values_come_back_one_a_line(values: list[str]):
    text = "".join(json_text({value: value}) + "\n" for value in values)
    text.encode()
    # Only \n ends a line: to str.splitlines there must be no other end either.
    lines = text.removesuffix("\n").split("\n")
    assert text.splitlines() == lines
    # Two halves beside each other are one sign to every reader of JSON.
    meant = [json.loads(json.dumps(value)) for value in values]
    assert [json.loads(line) for line in lines] == [{value: value} for value in meant]


def test_letters_stay_letters():
    assert json_text({"größe": "🎂"}) == '{"größe": "🎂"}'
    assert json_text("a\u2028b") == '"a\\u2028b"'
