"""The project's Markdown documents: their code blocks, commands, inline code, links and headings."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("pipeline", "model", "flows", "deploy", "tests")


@dataclass(frozen=True)
class Document:
    """A Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """The path from the root, for messages and test ids."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        """The whole file."""
        return self.path.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return re.sub(r"^ *```.*?^ *```", "", self.text, flags=re.MULTILINE | re.DOTALL)

    def blocks(self, language: str) -> list[str]:
        """The fenced blocks of a language, without their indentation."""
        found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", self.text, flags=re.MULTILINE | re.DOTALL)
        return [re.sub(rf"^{indent}", "", text, flags=re.MULTILINE) for indent, text in found]

    def inline_code(self) -> list[str]:
        """The content of every pair of backticks outside fenced blocks."""
        return re.findall(r"`([^`\n]+)`", self.prose)

    def commands(self) -> Iterator[list[str]]:
        """The words of each command in bash blocks, without comments; ``&&``, ``;`` and ``&`` end a command."""
        for line in "\n".join(self.blocks("bash")).splitlines():
            words: list[str] = []
            for word in shlex.split(line, comments=True):
                if word in ("&&", ";", "&"):
                    yield words
                    words = []
                else:
                    words.append(word)
            if words:
                yield words

    def links(self) -> list[str]:
        """The targets of all links and images."""
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    def anchors(self) -> set[str]:
        """The anchors that a hosting site gives to the headings."""
        headings = re.findall(r"^#+ (.+)$", self.prose, flags=re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


README = Document(ROOT / "README.md")
FOLDER_READMES = [Document(ROOT / folder / "README.md") for folder in FOLDERS]
DOCUMENTS = [
    README,
    *FOLDER_READMES,
    Document(ROOT / "CHANGELOG.md"),
    Document(ROOT / ".github" / "CONTRIBUTING.md"),
    Document(ROOT / ".github" / "SECURITY.md"),
]
