"""JSON that any encoding takes and any reader of lines keeps whole."""

import json
import re
from typing import Any

# Line ends to str.splitlines, JavaScript and others, which JSON leaves as they are; and halves of signs: lone
# surrogates, as Python has them in names of files that are not UTF-8. All stand inside of strings only.
_ESCAPED = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def json_text(value: Any, **options: Any) -> str:
    """`json.dumps` with letters as they are, but for signs that end a line or that UTF-8 lacks: those as escapes."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
