"""Everything that the READMEs show must exist: commands with their options, files, settings, messages and links."""

import ast
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from pydantic import BaseModel

from deploy.cli import COMMANDS, TRAINING_COMMANDS, streamgru
from pipeline.dead_letter_form import REASONS, dead_letter
from pipeline.event_headers import forecast_headers
from pipeline.flat_forecasts import flat_columns
from pipeline.forecaster.partitions import TRANSITIONS
from pipeline.forecaster.stuck_detection import ForecasterState
from pipeline.messages import (
    Forecast,
    InputPosition,
    ModelId,
    ReadingDecoder,
    Rejected,
    StateAge,
    decode_forecast,
)
from pipeline.outlook_messages import OutlookDecoder
from pipeline.settings import SETTINGS_FILE_VARIABLE, Settings, load_settings
from pipeline.settings.sections import TopicNames
from pipeline.settings.variables import read_variables
from tests.benchmarks.__main__ import SECTIONS
from tests.documents import DOCUMENTS, FOLDER_READMES, README, ROOT, Document

MOST_WORDS = 1_500  # limit of the root README
# The reader's own files, and files that a command writes.
NOT_OURS = {"my.toml", "air.toml", "my.csv", "ETTh1.csv", "scores.json", ".parquet"}
OURS = (".py", ".md", ".toml", ".yaml", ".yml", ".jars", ".png", ".parquet")

by_name = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)


# --- commands ---------------------------------------------------------------------------------------------------------


def shown_commands() -> list[str]:
    """Every `streamgru …` command of the documents, in blocks and in running text."""
    inline = [shlex.split(code) for document in DOCUMENTS for code in document.inline_code()]
    words = [*inline, *(words for document in DOCUMENTS for words in document.commands())]
    return sorted({shlex.join(command) for command in words if len(command) > 1 and command[0] == "streamgru"})


def found_command(words: list[str]) -> tuple[click.Context, list[str]]:
    """The context of the command that the words after `streamgru` name, and the remaining words."""
    if words[0] == "--settings":
        assert (ROOT / words[1]).exists()
        words = words[2:]
    context = click.Context(streamgru)
    while isinstance(context.command, click.Group) and words:
        # Also finds old names of commands, and raises for an unknown command.
        name, command, words = context.command.resolve_command(context, words)
        assert command is not None
        context = click.Context(command, info_name=name, parent=context)
    return context, words


@pytest.mark.parametrize("command", shown_commands())
def test_commands_of_the_documents_accept_their_arguments(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my.csv").write_text("when,station,temperature\n")
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    if words in (["--help"], ["COMMAND", "--help"]):
        return
    context, arguments = found_command(words)
    if "--help" in arguments or (not arguments and command not in commands_in_blocks()):
        return  # running text may name a command without its arguments
    if not isinstance(context.command, click.Group):  # the next line raises for a wrong option or argument
        context.command.make_context(context.info_name, arguments, parent=context.parent)


def commands_in_blocks() -> set[str]:
    return {shlex.join(words) for document in DOCUMENTS for words in document.commands()}


def test_every_command_is_shown_and_the_root_readme_shows_those_for_newcomers() -> None:
    def shown(document: Document) -> set[str]:
        words = [*map(shlex.split, document.inline_code()), *document.commands()]
        return {command[1] for command in words if len(command) > 1 and command[0] == "streamgru"}

    (operating,) = (document for document in FOLDER_READMES if document.name == "deploy/README.md")
    assert set(COMMANDS) - shown(operating) == set()
    assert set(COMMANDS) - shown(README) - {"demo", "schema", "status", "alerts"} == set()


@by_name
def test_every_line_of_a_bash_block_is_a_command_that_a_test_knows(document: Document) -> None:
    for words in document.commands():
        program, *arguments = words
        if program == "export":
            check_exports(arguments)
        elif program == "make":
            assert is_target(arguments[0]), words
        elif program.endswith("/pytest"):
            check_files(arguments)
        elif program.endswith("/python"):
            check_module(arguments)
        elif program.endswith("/torchrun"):
            module, command = arguments[arguments.index("-m") + 1 :]
            assert (module, command in TRAINING_COMMANDS) == ("deploy.cli", True)
        elif program in ("docker", "kubectl"):
            check_files(arguments)
        else:
            assert program == "streamgru", words  # tested above


def check_exports(assignments: list[str]) -> None:
    for variable, _, value in (assignment.partition("=") for assignment in assignments):
        if variable == SETTINGS_FILE_VARIABLE:
            assert value in NOT_OURS or load_settings(ROOT / value)
        elif variable != "PATH":
            read = read_variables({variable: value}, Settings)
            assert read.values, variable
            assert not read.faults, value


def check_files(arguments: list[str]) -> None:
    for argument in arguments:
        path = argument.partition("::")[0]
        if "/" in path:
            assert (ROOT / path).exists(), argument


def check_module(arguments: list[str]) -> None:
    flag, module, *options = arguments
    assert flag == "-m"
    place = ROOT / module.replace(".", "/")
    source = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
    text = source.read_text(encoding="utf-8")
    for option in options:
        if option.startswith("--"):
            assert f'"{option}"' in text, f"{module} has no option {option}"
        elif module == "tests.benchmarks":
            assert option in SECTIONS


def is_target(name: str) -> bool:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.search(rf"^{name}:", makefile, flags=re.MULTILINE) is not None


@by_name
def test_make_targets_modules_and_options_in_running_text_exist(document: Document) -> None:
    known = set(all_options(streamgru, click.Context(streamgru)))
    for code in document.inline_code():
        words = code.split()
        if words[0] == "make" and len(words) > 1:
            assert is_target(words[1]), code
        if words[:2] == ["python", "-m"]:
            check_module(words[1:])
        if words[0].startswith("--"):
            unknown = [word for word in words if word.startswith("--") and word not in known]
            assert unknown == [], code


def all_options(command: click.Command, context: click.Context) -> Iterator[str]:
    yield from (name for option in command.params for name in (*option.opts, *option.secondary_opts))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from all_options(below, click.Context(below, info_name=name, parent=context))


# --- settings ---------------------------------------------------------------------------------------------------------


def is_setting(variable: str) -> bool:
    """Whether an environment variable sets a setting, as `STREAMGRU_KAFKA__PARTITIONS` does."""
    return has_field(variable.removeprefix("STREAMGRU_").lower().split("__"))


def has_field(path: list[str]) -> bool:
    model: type[BaseModel] | None = Settings
    for name in path:
        if model is None or name not in model.model_fields:
            return False
        kind = model.model_fields[name].annotation
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
    return True


@by_name
def test_named_settings_exist_and_take_the_shown_values(document: Document) -> None:
    for code in document.inline_code():
        variable = code.partition("=")[0]
        if re.fullmatch(r"STREAMGRU_\w+[A-Z]", variable) and variable != SETTINGS_FILE_VARIABLE:
            assert is_setting(variable), code
        if re.fullmatch(r"[\w.]+ = .+", code):
            Settings(**tomllib.loads(code))
        section, _, field = code.partition(".")
        is_name = section in Settings.model_fields and re.fullmatch(r"[a-z_.]+", field)
        is_topic = code in TopicNames().model_dump().values()
        if is_name and not is_topic and named_file(document, code) is None:
            assert has_field(code.split(".")), code


# --- files, names in them, and links ----------------------------------------------------------------------------------


def named_file(document: Document, code: str) -> Path | None:
    """The file of this project that inline code names, from the document's folder or the root."""
    is_path = re.fullmatch(r"(\.\./)*[\w.-]+(/[\w.-]+)*/?", code) is not None
    is_ours = code.endswith(OURS) or code.endswith("/")
    if not is_path or not is_ours or code in NOT_OURS:
        return None
    folder = document.path.parent
    places = [folder / code, ROOT / code, *folder.glob(f"*/{code}")]
    return next((place for place in places if place.exists()), places[0])


@by_name
def test_named_files_exist(document: Document) -> None:
    named = {code: named_file(document, code) for code in document.inline_code()}
    assert sorted(code for code, path in named.items() if path is not None and not path.exists()) == []


@by_name
def test_names_in_files_exist(document: Document) -> None:
    """Running text names a class, function or constant as "`name` in `file`"."""
    for name, code in re.findall(r"`(\w+)` in `([^`]+)`", document.prose):
        path = named_file(document, code)
        if path is not None and path.suffix == ".py":
            assert name in names_defined(path), f"{name} in {code}"


def names_defined(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@by_name
def test_links_lead_to_existing_files_and_headings(document: Document) -> None:
    documents = {each.path: each for each in DOCUMENTS}
    for link in document.links():
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = (document.path.parent / target).resolve() if target else document.path
        assert path.exists(), link
        if anchor:
            assert anchor in documents[path].anchors(), link


@pytest.mark.parametrize("document", FOLDER_READMES, ids=lambda document: document.name)
def test_every_module_of_a_folder_is_in_its_readme(document: Document) -> None:
    """The root README links to these READMEs only, so a reader finds a module only through them."""
    folder = document.path.parent
    named = set(re.findall(r"[\w./-]+", " ".join(document.inline_code())))
    parts = [path for path in folder.iterdir() if (path / "__init__.py").exists()]
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    if folder.name == "pipeline":
        modules += (path for path in folder.glob("forecaster/*.py") if path.name != "__init__.py")
    missing = [path.name for path in modules if path.name not in named]
    missing += [path.name for path in parts if f"{path.name}/" not in named]
    assert sorted(missing) == []


@pytest.mark.parametrize("document", FOLDER_READMES, ids=lambda document: document.name)
def test_folder_readmes_answer_a_newcomers_questions(document: Document) -> None:
    assert {"parts-from-top-to-bottom", "where-is-"} <= document.anchors()
    assert "\nStart with `" in document.prose
    assert "import" in document.prose


def test_the_root_readme_stays_short() -> None:
    assert len(README.text.split()) <= MOST_WORDS


# --- messages and programs --------------------------------------------------------------------------------------------


@by_name
def test_example_messages_decode(document: Document) -> None:
    for block in document.blocks("json"):
        content = json.loads(block)
        if "quantiles" in content:
            forecast = decode_forecast(block.encode())
            assert {len(values) for levels in forecast.quantiles.values() for values in levels.values()} == {2}
        elif "forecast_for" in content:
            assert list(content) == list(flat_columns((0.1, 0.5, 0.9)))
        elif "outlook" in content:
            decoder = OutlookDecoder(("TEMP", "WSPM"), {"beijing": ("dongsi", "tiantan")})
            key = content.get("sensor_id", content.get("group")).encode()
            outlook = decoder.decode(key, block.encode(), (), Rejected("malformed"))
            assert outlook is not None
            assert outlook.values[0, 0] == np.float32(3.1)
        elif "connector.class" not in content:
            reading = ReadingDecoder(tuple(content["values"])).decode(content["sensor_id"].encode(), block.encode())
            assert (reading.sensor_id, reading.values[0]) == ("roof", 11.5)
            assert content["values"]["humidity"] is None


def test_consuming_takes_ten_lines_of_python() -> None:
    (program,) = README.blocks("python")  # tests/integration/test_readme.py runs it
    ast.parse(program)
    assert len([line for line in program.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("document", FOLDER_READMES, ids=lambda document: document.name)
def test_programs_of_the_folder_readmes_run(document: Document) -> None:
    for program in document.blocks("python"):
        if "bootstrap_servers" in program:  # tests/integration/test_readme.py runs it
            continue
        exec(compile(program, document.name, "exec"), {})


def pipeline_readme() -> Document:
    return next(document for document in FOLDER_READMES if document.name == "pipeline/README.md")


def first_column(document: Document, heading: str) -> list[str]:
    """The code in the first column of the first table after a heading."""
    _, _, rest = document.text.partition(f"\n{heading}\n")
    table = re.search(r"^\|.*?(?=^[^|]|\Z)", rest, flags=re.MULTILINE | re.DOTALL)
    assert table is not None, heading
    return re.findall(r"^\| `([^`]+)` \|", table.group(), flags=re.MULTILINE)


def test_dead_letter_reasons_and_headers_are_those_of_the_code() -> None:
    assert first_column(pipeline_readme(), "### readings.dlq") == list(REASONS)
    letter = dead_letter(b"key", b"value", [], Rejected("malformed"), InputPosition("readings", 0, 1), 4)
    code = set(pipeline_readme().inline_code())
    assert {name for name, _ in letter.headers} <= code


def test_fields_and_headers_of_forecasts_are_those_of_the_code() -> None:
    fields = first_column(pipeline_readme(), "### forecasts")
    assert set(fields) == set(Forecast.__struct_fields__) - {"sensor_id", "cadence_s"}
    (block,) = (block for block in pipeline_readme().blocks("json") if "quantiles" in block)
    example = decode_forecast(block.encode())
    assert isinstance(example.model, ModelId)
    assert isinstance(example.state, StateAge)
    code = set(pipeline_readme().inline_code())
    assert {name for name, _ in forecast_headers(example, b"parent")} <= code


def test_states_of_the_health_endpoint_are_those_of_the_code() -> None:
    (operating,) = (document for document in FOLDER_READMES if document.name == "deploy/README.md")
    assert set(first_column(operating, "## Health and counts")) == {state.value for state in ForecasterState}


def test_the_lifecycle_is_that_of_the_code() -> None:
    _, _, rest = pipeline_readme().text.partition("\n## The lifecycle of a partition\n")
    rows = re.findall(r"^\| `([A-Z]+)` \|[^|]*\|([^|]*)\|$", rest, flags=re.MULTILINE)
    shown = {state: set(re.findall(r"`([A-Z]+)`", following)) for state, following in rows}
    assert shown == {state.value: {each.value for each in following} for state, following in TRANSITIONS.items()}


# --- changelog and workflow -------------------------------------------------------------------------------------------


def test_the_changelog_has_sections_for_the_version_and_for_unreleased_changes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[:2] == ["Unreleased", project["version"]]


def test_the_workflow_runs_make_test_with_timeouts() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert job["timeout-minutes"]
    assert all(step["timeout-minutes"] for step in job["steps"])
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
