"""YAML that people write: read as plain data, or refused in one line."""

from typing import Any

import yaml

from clip_la.errors import UserError

MERGE_TAG = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which PyYAML keeps the last without a word, though YAML forbids it."""

    # As the text is composed: later on, `<<` has put the keys of other mappings beside a mapping's own.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE_TAG:
                if key.value in keys:
                    text = f"the key '{key.value}' stands twice"
                    raise yaml.composer.ComposerError(problem=text, problem_mark=key.start_mark)
                keys.add(key.value)
        return node


def load_yaml(text: str) -> Any:
    """What a text holds: mappings, lists, strings, numbers, dates, true, false and null.

    Raises UserError for text that is no YAML, has a key twice, asks for other types, or is nested without end.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
        raise UserError(f"not valid YAML: {said}") from None
    except RecursionError:
        raise UserError("not valid YAML: nested too deeply") from None
