"""Messages about invalid settings: the setting, its variable or line, its value, and how to write it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from pipeline.settings.file import SettingsFile
from pipeline.settings.variables import (
    PREFIX,
    SECTION_MARK,
    SETTINGS_FILE_VARIABLE,
    SettingPath,
    Variables,
    form,
    is_secret,
    is_section,
    setting_paths,
    shown,
    suggestion,
    variable_name,
)

# Pydantic's messages that use Python's words, in the words of a settings file.
_PLAINER: Final = {
    "tuple_type": "Input should be a list",
    "list_type": "Input should be a list",
    "set_type": "Input should be a list",
    "frozen_set_type": "Input should be a list",
    "model_type": "Input should be a section",
    "dict_type": "Input should be a table of names and values",
    "string_type": "Input should be text",
    "string_unicode": "Input should be text in UTF-8",
    "bool_type": "Input should be true or false",
    "bool_parsing": "Input should be true or false",
    "path_type": "Input should be the path of a file or folder, as text",
}
_MOST_LINES: Final = 20
_MOST_PARTS: Final = 4  # variables of a section that a message names


def unknown_variable(name: str, settings: type[BaseModel]) -> str:
    """A sentence about a variable that names no setting, without its value, which may be a password."""
    known = [variable_name(path) for path in setting_paths(settings)] + [SETTINGS_FILE_VARIABLE]
    similar = suggestion(name.upper()[len(PREFIX) :], [each[len(PREFIX) :] for each in known], SECTION_MARK)
    return f"{_printable(name)} is not a setting" + (f"; did you mean {PREFIX}{similar}?" if similar else "")


def describe_faults(variables: Variables, settings: type[BaseModel]) -> str:
    """A message about the variables whose text has not the form of their setting, or that name none in a section."""
    lines = []
    for fault in variables.faults:
        hidden = is_section(settings, fault.path) or is_secret(settings, fault.path) or not fault.text
        holds = "" if hidden else f" (it holds {shown(fault.text)})"
        what = form(settings, fault.path, toml=False)
        trouble = f"{_printable(fault.variable)} {fault.trouble}{holds}"
        lines.append(f"  {_dotted(fault.path)}: {trouble}" + (f"; {what}" if what else ""))
    lines += [f"  {unknown_variable(name, settings)}" for name in variables.refused]
    return _message(_sources(None), lines)


def describe_invalid(
    error: ValidationError, settings: type[BaseModel], variables: Variables, file: SettingsFile | None
) -> str:
    """A message with a line for each invalid value."""
    lines = []
    errors = error.errors(include_url=False, include_context=False)
    for item in errors:
        consequence = item["type"] == "default_factory_not_called" or (
            # The items that are invalid do not count.
            item["type"] == "too_short" and any(each is not item and each["loc"][:-1] == item["loc"] for each in errors)
        )
        if consequence and len(errors) > 1:
            continue
        path = tuple(part for part in item["loc"] if isinstance(part, str))
        if item["type"] == "extra_forbidden":
            lines.append(f"  {_unknown(path, settings, variables, file)}")
            continue
        said = _PLAINER.get(item["type"], item["msg"].removeprefix("Value error, ").replace("Tuple", "The list"))
        found = "" if item["type"] == "missing" else _found(path, item["input"], settings, variables, file)
        lines.append(f"  {_dotted(path)}: {said}{found}")
    return _message(_sources(file), lines)


def describe_folder(
    path: SettingPath, folder: Path, obstacle: Path, variables: Variables, file: SettingsFile | None
) -> str:
    """A message about a setting that names a folder where a file is."""
    variable = _variable_of(path, variables)[1]
    place = f"; {_printable(variable)} says so" if variable else _on_line(path, file)
    trouble = "is a file" if obstacle == folder else f"cannot be made, because {obstacle} is a file"
    said = f"  {_dotted(path)}: {folder} {trouble}{place}; name a folder, or one that does not exist yet"
    return _message(_sources(file), [said])


def _unknown(path: SettingPath, settings: type[BaseModel], variables: Variables, file: SettingsFile | None) -> str:
    known = [".".join(each) for each in setting_paths(settings)]
    similar = suggestion(_dotted(path), known, ".")
    owner, variable = _variable_of(path, variables)
    if variable is not None:
        whole = owner == path
        subject = _printable(variable) if whole else f"{_dotted(path)}, in {_printable(variable)},"
        better = f"; did you mean {variable_name(similar.split('.')) if whole else similar}?" if similar else ""
    else:
        subject = f"{_dotted(path)}{_on_line(path, file)}"
        better = f"; did you mean {similar}?" if similar else ""
    return f"{subject} is not a setting{better}"


def _found(
    path: SettingPath, value: Any, settings: type[BaseModel], variables: Variables, file: SettingsFile | None
) -> str:
    """The value of a setting, its place and its form; begins with ``; `` or is empty."""
    if not path:
        return ""
    owner, variable = _variable_of(path, variables)
    section = is_section(settings, path)
    if section and isinstance(value, dict | BaseModel):  # the values are valid one by one, but not together
        parts = sorted(name for part, name in variables.names.items() if part[: len(path)] == path or part == owner)
        begins = f"; its section begins{line}" if (line := _on_line(path, file)) else ""
        return (f"; set by {', '.join(map(_printable, parts[:_MOST_PARTS]))}" if parts else "") + begins
    holds = "a value that is not shown" if section or is_secret(settings, path) else shown(value)
    if variable is not None:
        within = "" if owner == path else f", under {_dotted(path)},"
        holds = f"; {_printable(variable)}{within} holds {holds}"
    elif file is not None and file.has(path):
        holds = f"; it holds {holds}{_on_line(path, file)}"
    else:
        return f"; it is not set and by default {holds}; set {variable_name(path)}, or {_dotted(path)} in the file"
    what = form(settings, path, toml=variable is None)
    return f"{holds}; {what}" if what else holds


def _variable_of(path: SettingPath, variables: Variables) -> tuple[SettingPath, str | None]:
    """The variable that gives a setting its value, by itself or with its section; and the variable's path."""
    for end in range(len(path), 0, -1):
        if path[:end] in variables.names:
            return path[:end], variables.names[path[:end]]
    return (), None


def _on_line(path: SettingPath, file: SettingsFile | None) -> str:
    if file is None or not file.has(path):
        return ""
    line = file.line(path)
    return " in the file" if line is None else f" in line {line}"


def _dotted(path: SettingPath) -> str:
    return ".".join(map(_printable, path)) or "settings"


def _printable(name: str) -> str:
    """A name as it is, or in quotes with escapes if it has characters that a terminal obeys."""
    return name if name and name.isprintable() else repr(name)


def _sources(file: SettingsFile | None) -> str:
    return f"{file.path} and the environment" if file else "the environment (STREAMGRU_…)"


def _message(where: str, lines: Iterable[str]) -> str:
    found = list(dict.fromkeys(lines))
    more = [f"  and {len(found) - _MOST_LINES} more"] if len(found) > _MOST_LINES else []
    return f"invalid settings in {where}:\n" + "\n".join([*found[:_MOST_LINES], *more])
