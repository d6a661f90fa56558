"""The files of the page: nothing inline, no foreign address, unchanged copies, readable colours, packaged."""

import hashlib
import re
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "deploy" / "serve" / "page"
VENDOR = PAGE / "vendor"
OWN = sorted(path for path in PAGE.glob("*") if path.suffix in (".html", ".js", ".css", ".svg"))
SCRIPTS = [path for path in OWN if path.suffix == ".js"]
NAMESPACE = "http://www.w3.org/2000/svg"  # names SVG elements; nothing is fetched from it
# Each of them runs text as code or markup, so that a sensor's name could become a script.
UNSAFE = (
    "innerHTML",
    "outerHTML",
    "insertAdjacentHTML",
    "document.write",
    "createContextualFragment",
    "eval(",
    "new Function",
    'setAttribute("style"',
    "cssText",
    "javascript:",
)
READABLE = 4.5  # contrast of text with its background, WCAG 2.2 AA
# (text, background) by the names of the style sheet
PAIRS = [
    *((text, ground) for text in ("ink", "muted", "accent", "good", "bad", "outside") for ground in ("surface", "bg")),
    ("accent", "accent-soft"),
    ("muted", "accent-soft"),
    ("outside", "accent-soft"),
    ("muted", "sunken"),
    ("bad", "bad-soft"),
    ("warn", "warn-soft"),
    ("on-accent", "accent"),
]


def test_vendored_files_are_the_released_ones() -> None:
    sums = dict(re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", (VENDOR / "SOURCE.md").read_text(), re.MULTILINE))
    files = {path.name for path in VENDOR.iterdir()} - {"SOURCE.md"}
    assert set(sums) == files
    for name, expected in sums.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == expected, name


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_no_file_names_a_foreign_address(path: Path) -> None:
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", path.read_text().replace(NAMESPACE, ""))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_turns_text_into_code_or_markup(path: Path) -> None:
    text = path.read_text()
    assert not [unsafe for unsafe in UNSAFE if unsafe in text]


def test_the_document_has_no_inline_script_or_style() -> None:
    text = (PAGE / "index.html").read_text()
    assert all(re.search(r"\bsrc=", tag) for tag in re.findall(r"<script\b[^>]*>", text))
    assert not re.search(r"<style|\sstyle=|\son\w+=", text)


def test_each_file_that_the_page_names_exists() -> None:
    named = re.findall(r"(?:src|href)=\"page/([^\"]+)\"", (PAGE / "index.html").read_text())
    assert len(named) >= 5
    for script in SCRIPTS:
        named += re.findall(r"from \"\./([^\"]+)\"", script.read_text())
    assert not [name for name in named if not (PAGE / name).is_file()]


def test_a_wheel_has_the_files_of_the_page() -> None:
    builder = WheelBuilder(str(ROOT))
    packed = {file.distribution_path for file in builder.recurse_included_files()}
    expected = {str(path.relative_to(ROOT)) for path in PAGE.rglob("*") if path.is_file()}
    assert expected <= packed


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_people_need(scheme: str) -> None:
    colours = _colours(scheme)
    poor = {
        f"{text} on {ground}": round(ratio, 2)
        for text, ground in PAIRS
        if (ratio := _contrast(colours[text], colours[ground])) < READABLE
    }
    assert not poor


def _colours(scheme: str) -> dict[str, str]:
    """The colours of a scheme, without the opacities and sizes among the variables."""
    light, _, rest = (PAGE / "base.css").read_text().partition("@media (prefers-color-scheme: dark)")
    dark = rest.partition("}\n}")[0]
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", light))
    return found if scheme == "light" else found | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", dark))


def _contrast(one: str, other: str) -> float:
    """The ratio of two colours' luminances (WCAG 2.2)."""
    brighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
