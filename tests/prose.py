"""Finds phrases that make a sentence hard to read: ``python -m tests.prose [FILE...]``.

In Python files it checks comments, docstrings, other strings of two words or more, and test names. In Markdown pages it
checks paragraphs; in settings, manifests and the Makefile, lines and comments. FILE defaults to all committed files.

Put a quoted phrase in backticks. No file is exempt except generated pages, whose third line begins with "Written by";
the strings of the program that writes them are checked. Add a use that is good English to ``allowed`` of its phrase.
"""

import argparse
import ast
import bisect
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
PYTHON: Final = (".py",)
PAGES: Final = (".md",)
COMMENTED: Final = (".toml", ".yaml", ".yml", ".properties", ".gitignore", "Makefile", "Dockerfile", "run")
CLAUSE_MARKS: Final = " .:;,(|\"'"
CONTEXT: Final = 28  # characters shown on either side of a phrase
QUOTED: Final = re.compile(r"(`+)[^`]{1,80}\1")  # code and quoted phrases
GENERATED: Final = re.compile(r"# .*\n\nWritten by `")

NOUNS: Final = (
    r"sensors?|features?|targets?|columns?|readings?|records?|offsets?|partitions?|topics?|brokers?|batch(?:es)?|states?|"
    r"models?|versions?|experts?|forecasts?|forecasters?|members?|process(?:es)?|services?|servers?|flows?|runs?|tests?|"
    r"files?|folders?|settings?|threads?|clients?|producers?|consumers?|transactions?|groups?"
)
PEOPLE: Final = (
    r"people|persons?|users?|readers?|engineers?|operators?|newcomers?|researchers?|practitioners?|someone|somebody|anyone|"
    r"anybody|everyone|everybody|nobody"
)
ASKED: Final = r"says?|said|tells?|told|telling|asks?|asked|knows?|known|explains?|learns?"
START: Final = r"(?:^|[.;:,(|\"'] ?)"  # of a sentence or clause
BE: Final = r"(?:is|are|was|were|be|been)"


@dataclass(frozen=True)
class Phrase:
    kind: str
    pattern: re.Pattern[str]
    advice: str
    allowed: re.Pattern[str] | None = None  # uses of the phrase that are good English


def phrase(kind: str, pattern: str, advice: str, allowed: str | None = None, *, any_case: bool = True) -> Phrase:
    flags = re.IGNORECASE if any_case else re.NOFLAG
    return Phrase(kind, re.compile(pattern, flags), advice, re.compile(allowed, re.IGNORECASE) if allowed else None)


PHRASES: Final = (
    phrase(
        "what",
        r"\bwhat\b",
        "name the noun: the readings, offsets, states, settings",
        allowed=rf"{START}(?:and )?(?:for )?\bwhat\b[^.!?;:]*\?"  # a question
        rf"|\b(?:{ASKED}) (?:(?:{PEOPLE}|it|them|him|us|you|me) )?\bwhat\b"  # an indirect question
        r"|(?<=[\w,] )\bwhat (?:happens|happened|went wrong|goes wrong|to do)\b|\bno matter\swhat\b",
    ),
    phrase(
        "who",
        r"\bwho\b",
        "name the person, process or forecaster",
        allowed=rf"\b(?:{PEOPLE}|one|those),?\swho\b|\bwho\b[^.!?;]*\?",
    ),
    phrase("whoever", r"\bwho(?:so|m)?ever\b", "name the person, process or forecaster"),
    phrase("whatever", r"\bwhat(?:so)?ever\b", "name the noun, with 'any' or 'every'; or 'regardless of'"),
    phrase(
        "such",
        rf"\bsuch(?=[.,;:)!?]|$| (?:{BE}|of|that|which|in|with|from|by|to|for|on|at|and|or|has|have|had|can|may|must"
        r"|could|would|will|does|do)\b)",
        "name the noun",
        allowed=r"\bno\ssuch\b",
    ),
    phrase(
        "others",
        r"\bothers\b",
        "add the noun: other sensors, other forecasters",
        allowed=rf"\b(?:{NOUNS})\b[^.;:]*\bthe\sothers\b",  # the noun stands before, in the same clause
    ),
    phrase("likewise", r"\blikewise\b", "repeat the words"),
    phrase("of-those", r"\bof those\b", "add the noun, or begin with it", allowed=rf"\bof\sthose (?:\d|(?:{NOUNS})\b)"),
    phrase(
        "of-these",
        rf"\bof these(?=[.,;:)!?]|$| (?:{BE}|may|can|must|has|have|had|that|which|on|in|at|to|from|with|without|by|and"
        r"|or|only|alone|go|goes|begin|begins|left|held)\b)",
        "add the noun, or begin with it",
    ),
    phrase(
        "of-then",
        r"\bof (?:then|now|before|after|later|earlier|behind)\b",
        "say which time, which version or which generation",
        allowed=r"\bas\sof (?:now|then)\b",
    ),
    phrase("so-many", r"\bso (?:many|few)\b", "name the number: `steps` steps", allowed=r"\bso many\s\w+ that\b"),
    phrase("so-long", r"\b(?:for|after|than|lasts?|every) so long\b(?! that)", "name the duration or the setting"),
    phrase("is-none", rf"\b{BE} none\b(?! of)", "say None, missing, invalid, empty", any_case=False),
    phrase(
        "none-where",
        rf"{START}none (?:where|if|when|for|without|before|until|yet|as long)\b",
        "write `None` if it is the value",
        any_case=False,
    ),
    phrase(
        "is-no",
        rf"\b{BE} no\b(?! (?:longer|more|less|fewer|other|later|earlier|matter)\b| \w+er than\b)",
        "use the adjective or negate the verb: invalid, non-finite, is not a",
        allowed=rf"\bthere\s(?:(?:can|could|may|might|must|would|will|has|have|had) )?{BE} no\b",
    ),
    phrase("finite", r"\bno finite numbers?\b|\bnot finite\b", "non-finite"),
    phrase("else", rf"{START}else\b(?! than)|\bor else\b", "otherwise"),
    phrase("rest", r"\bat rest\b", "idle, stopped, unchanged"),
    phrase(
        "anew",
        r"\banew\b",
        "again, from scratch, recreate, reset",
        allowed=r"^\W*begun\sanew\W*$",  # this is a key in the output of `streamgru verify --json`
    ),
    phrase("news", r"\bnews\b", "new readings, new records"),
    phrase("nothing-of", r"\bnothing of\b", "give the sentence a subject", allowed=r"\bknows?\snothing of\b"),
    phrase("but-for", r"\bbut (?:for (?:the|its|a|one|what|these|those)|where|what|if)\b", "except, unless"),
    phrase("not-there", rf"\b{BE} not (?:all )?there\b", "missing, deleted, does not exist"),
    phrase("not-known", r"\bnot known to\b", "unknown; or name the two outcomes"),
    phrase(
        "so",
        rf"\b(?:{BE}|stays?|stayed|remains?|arrived?|came|kept|left) so(?=[.,;:)]|$| again\b| there\b| from\b)",
        "repeat the adjective",
    ),
    phrase(
        "to-be", r"\bTo be \w+(?:ed|en|un|one)\b(?=[^,]*(?:[.:;]|$))", "use the imperative: Retry, Call", any_case=False
    ),
    phrase("want", r"\b(?:for|in) want of\b", "without; because ... is missing"),
)


@dataclass(frozen=True)
class Passage:
    """Text to check as one line, with the places of its source lines."""

    text: str
    starts: list[int]  # position of each source line in ``text``
    lines: list[int]  # number of each source line in the file

    def line(self, position: int) -> int:
        return self.lines[bisect.bisect_right(self.starts, position) - 1]


@dataclass(frozen=True)
class Fault:
    path: str
    line: int
    kind: str
    found: str
    context: str
    advice: str

    def __str__(self) -> str:
        return f'{self.path}:{self.line}: "{self.found}" in "{self.context}": {self.advice}'


@dataclass
class _Lines:
    """Collects lines until the passage ends."""

    found: list[tuple[int, str]] = field(default_factory=list)

    def end(self) -> Iterator[Passage]:
        if self.found:
            yield passage(self.found)
        self.found = []


def passage(lines: Sequence[tuple[int, str]]) -> Passage:
    starts, text = [], ""
    for _, line in lines:
        text += " " if text else ""
        starts.append(len(text))
        text += " ".join(line.split())
    return Passage(text, starts, [number for number, _ in lines])


def faults(path: str, source: str) -> list[Fault]:
    """The faults in one file, by line.

    Raises:
        SyntaxError: the Python file cannot be parsed.
    """
    found = set()
    for piece in passages(path, source):
        text = QUOTED.sub(lambda code: "`" * len(code[0]), piece.text)
        for each in PHRASES:
            masked = each.allowed.sub(lambda good: "#" * len(good[0]), text) if each.allowed else text
            for match in each.pattern.finditer(masked):
                phrase_at = match.end() - len(match[0].lstrip(CLAUSE_MARKS))
                begin, end = max(0, phrase_at - CONTEXT), match.end() + CONTEXT
                context = "…" * (begin > 0) + piece.text[begin:end].strip() + "…" * (end < len(piece.text))
                line = piece.line(phrase_at)
                found.add(Fault(path, line, each.kind, match[0].strip(CLAUSE_MARKS), context, each.advice))
    return sorted(found, key=lambda fault: (fault.line, fault.kind, fault.context))


def passages(path: str, source: str) -> Iterator[Passage]:
    if path.endswith(PYTHON):
        yield from _comments(source)
        yield from _strings(source)
    elif path.endswith(PAGES):
        if not GENERATED.match(source):
            yield from _paragraphs(source)
    elif path.endswith(COMMENTED):
        yield from _commented_lines(source)


def _comments(source: str) -> Iterator[Passage]:
    """Comments of Python code; comments on consecutive lines are one passage."""
    block = _Lines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        number, column = token.start
        if token.line[:column].strip() or (block.found and block.found[-1][0] != number - 1):
            yield from block.end()
        block.found.append((number, token.string.lstrip("#!: ")))
        if token.line[:column].strip():
            yield from block.end()
    yield from block.end()


def _strings(source: str) -> Iterator[Passage]:
    """Docstrings by paragraph, other strings of two words or more, and test names."""
    lines = source.splitlines()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield passage([(node.lineno, node.name.removeprefix("test_").replace("_", " "))])
        if isinstance(node, ast.JoinedStr):
            waiting += [part.value for part in node.values if isinstance(part, ast.FormattedValue)]
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            yield from _string(text, node, lines)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _string(node.value, node, lines)
        else:
            waiting += ast.iter_child_nodes(node)


def _string(text: str, node: ast.Constant | ast.JoinedStr, source: list[str]) -> Iterator[Passage]:
    if not re.search(r"\w[,;:]? \w|\w\n *\w|\w \{\}|\{\} \w", text):
        return
    first, last = node.lineno, node.end_lineno or node.lineno
    parts = text.split("\n")
    if last - first == len(parts) - 1:  # line by line as in the source
        yield from _joined(enumerate(parts, first))
        return
    # Concatenated literals: look for the first word of each part in the source, not before the preceding part.
    found, number = [], first
    for part in re.split(r"(?<=\s)(?=\S)", text):
        word = part.split("{}")[0].strip()
        number = next((line for line in range(number, last + 1) if word in source[line - 1]), number)
        found.append((number, part))
    yield passage(found)


def _paragraphs(page: str) -> Iterator[Passage]:
    yield from _joined(enumerate(page.splitlines(), 1))


def _joined(lines: Iterator[tuple[int, str]]) -> Iterator[Passage]:
    """Paragraphs, each up to an empty line, heading, list item or table row; each line of code alone."""
    block, in_code = _Lines(), False
    for number, line in lines:
        text = line.strip()
        if text.startswith("```"):
            in_code = not in_code
            yield from block.end()
            continue
        if in_code or not text or re.match(r"[|#>]|[-*+] |\d+\. ", text):
            yield from block.end()
        if text:
            block.found.append((number, text.lstrip("#>|-*+ ")))
        if in_code or text.startswith(("#", "|")):
            yield from block.end()
    yield from block.end()


def _commented_lines(source: str) -> Iterator[Passage]:
    """Comments after ``#``, consecutive ones as one passage, and each line without its comment."""
    block = _Lines()
    for number, line in enumerate(source.splitlines(), 1):
        code, mark, comment = re.match(r"(.*?)(?:(?<!\S)(#+!?)(.*))?$", line).groups()  # type: ignore[union-attr]
        if code.strip():
            yield from block.end()
            yield passage([(number, code)])
        if mark:
            block.found.append((number, comment.strip()))
        if code.strip() or not mark:
            yield from block.end()
    yield from block.end()


def committed_files() -> list[str]:
    """The files that git would commit, of the kinds that the check reads."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    kinds = (*PYTHON, *PAGES, *COMMENTED)
    return sorted(path for path in set(listed.split("\0")) if path.endswith(kinds) and (ROOT / path).is_file())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.prose", description="Find phrases that are hard to read.")
    parser.add_argument("files", nargs="*", help="files to check; default: all that git would commit")
    paths = parser.parse_args(arguments).files or committed_files()
    found = [fault for path in paths for fault in faults(path, (ROOT / path).read_text(encoding="utf-8"))]
    for fault in found:
        print(fault)
    if found:
        print(f"phrases to rewrite: {len(found)}; files with such phrases: {len({fault.path for fault in found})}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
