"""Text reaches terminals, plots and pages only through the functions that escape it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# pattern in the source -> the only files that may contain it
SINKS = {
    r"click\.s?echo\(": ["deploy/terminal_text.py"],
    r"(?<!\.)\bprint\(": ["deploy/terminal_text.py"],
    r"\brich\.markup\b|\bfrom_markup\(": [],
    r"(?<![A-Za-z_])Console\(": ["deploy/literal_console.py"],
    r"(?<![A-Za-z_])TextColumn\(": ["deploy/literal_console.py"],
    r"\.set_title\(|\.legend\(|\.suptitle\(": ["pipeline/evaluation/plot_text.py"],
    r"create_(markdown|link|table|image)_artifact\(": ["flows/prefect_text.py"],
    r"update_model_version\(": ["pipeline/registry/versions.py"],
    r"\.describe\(": ["flows/retrain.py"],
    r"logging\.Formatter\(": ["pipeline/text/visible_text.py"],
    r"json\.dumps\(.*indent": [
        "pipeline/text/json_text.py",
        "deploy/commands/topics.py",
        "model/config.py",
        "model/artefact.py",
    ],
}


@pytest.mark.parametrize("pattern", SINKS)
def test_only_one_module_uses_a_sink(pattern: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in ("deploy", "flows", "pipeline", "model")
        for path in (ROOT / folder).rglob("*.py")
        if any(
            re.search(pattern, line) and not re.search(r"\w\.print\(|def |class ", line)
            for line in path.read_text(encoding="utf-8").splitlines()
        )
    }
    assert found <= set(SINKS[pattern])
