"""Prompt sets: the sentences a class name is put into, under a name and with a hash."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_la.errors import UserError, unknown
from clip_la.zeroshot.labels.classes import ClassSet, content_hash
from clip_la.zeroshot.labels.text_files import lines_of, parse_json, read_text

NAME_SLOT = "{c}"
DEFINITION_SLOT = "{d}"
SLOTS = re.compile(r"\{[cd]\}")
BUILT_IN = {
    "openai80": "OpenAI's 80 templates for ImageNet",
    "simple7": "OpenAI's 7 best of these",
    "plain": "a photo of a NAME.",
    "name": "the bare name",
    "definition": "a photo of a NAME: WordNet's definition.",
}
ONE_TEMPLATE = {"plain": "a photo of a {c}.", "name": "{c}", "definition": "a photo of a {c}: {d}."}


@dataclass(frozen=True)
class PromptSet:
    """Templates with the slots {c} (the class name) and, optionally, {d} (its definition)."""

    name: str
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.templates:
            raise UserError(f"prompt set '{self.name}' has no templates")
        slotless = next((t for t in self.templates if NAME_SLOT not in t), None)
        if slotless is not None:
            raise UserError(f"template '{slotless}' of prompt set '{self.name}' has no {NAME_SLOT} for the class name")

    @functools.cached_property
    def hash(self) -> str:
        """Content hash of the templates in their order."""
        return content_hash(self.templates)

    def check(self, classes: ClassSet) -> None:
        """Raises UserError where templates want definitions and the class set has none."""
        if any(DEFINITION_SLOT in template for template in self.templates) and not any(classes.definitions):
            uses = f"prompt set '{self.name}' uses definitions ({DEFINITION_SLOT})"
            raise UserError(f"{uses} and class set '{classes.label}' has none")

    def prompts(self, names: Sequence[str], definition: str) -> list[str]:
        """All prompts of one class: each template with each name, name by name."""

        def filled(template: str, name: str) -> str:
            # Both slots at once, since a name may hold what looks like one.
            values = {NAME_SLOT: name, DEFINITION_SLOT: definition}
            return SLOTS.sub(lambda slot: values[slot[0]], template)

        return [filled(template, name) for name in names for template in self.templates]


@functools.cache
def built_in(name: str) -> PromptSet:
    """One of the built-in prompt sets."""
    if name not in BUILT_IN:
        raise unknown("prompt set", name, BUILT_IN)
    if name in ONE_TEMPLATE:
        return PromptSet(name, (ONE_TEMPLATE[name],))
    from open_clip import zero_shot_metadata as metadata

    source = {"openai80": metadata.OPENAI_IMAGENET_TEMPLATES, "simple7": metadata.SIMPLE_IMAGENET_TEMPLATES}[name]
    # open_clip's templates are functions of the name; given the slot they return the template.
    return PromptSet(name, tuple(template(NAME_SLOT) for template in source))


def with_slot(template: str) -> str:
    """The template with {c} for its slot where it has the {} of open_clip and of the hub instead."""
    return template.replace("{}", NAME_SLOT) if NAME_SLOT not in template else template


def prompt_set(text: str) -> PromptSet:
    """What `--templates` says: a built-in name, a file, or one template with {c} in it.

    A file is a JSON list of templates, or text of one template a line (CLIP_benchmark's form).

    Raises:
        UserError: no such name or file, or no templates in it.
    """
    if text in BUILT_IN:
        return built_in(text)
    if NAME_SLOT in with_slot(text):
        return PromptSet(with_slot(text), (with_slot(text),))
    path = Path(text)
    if not text.endswith((".json", ".txt")) and not path.is_file():
        return built_in(text)
    if not path.is_file():
        raise UserError(f"no template file '{path}'; expected a JSON list or a text file of templates with {NAME_SLOT}")
    if path.suffix.lower() == ".json":
        templates = parse_json(read_text(path), path)
        if not isinstance(templates, list) or not all(isinstance(t, str) for t in templates):
            raise UserError(f"{path} holds no list of templates")
    else:
        templates = [line for line in lines_of(read_text(path)) if line]
    return PromptSet(path.stem, tuple(map(with_slot, templates)))
