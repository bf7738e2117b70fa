"""YAML that people write, against PyYAML's own reading of the same text; what it takes without a word is refused."""

import pytest
import yaml

from clip_la.errors import UserError
from clip_la.yaml_text import load_yaml

MERGED = "base: &b {lr: 1.0e-3, seed: 0}\nrun: {<<: *b, seed: 1}\nmore: [{<<: *b, lr: 2}, {<<: [*b], x: null}]\n"


@pytest.mark.parametrize("text", ["", "a: 1\nb: [1, {c: d}]\n", MERGED, "{x: {a: 1}, y: {a: 1}}"])
def test_text_is_read_as_pyyaml_reads_it(text: str) -> None:
    assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: [0]\nlr: 1\nseed: [1]\n", r"the key 'seed' stands twice at line 3, column 1"),
        ("a: {b: {c: 1, c: 2}}", r"the key 'c' stands twice at line 1, column 15"),
        ("- {a: 1}\n- {a: 1, 'a': 2}", "the key 'a' stands twice"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("[" * 3000, "not valid YAML: nested too deeply"),
    ],
)
def test_what_is_refused_is_one_line(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        load_yaml(text)
    assert "\n" not in str(error.value)
