"""The ``STREAMGRU_…`` variables as values of settings: names become paths, and text becomes values.

Everything here follows from the annotations of the settings classes, so a new setting or section needs no line here.
"""

import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

PREFIX: Final = "STREAMGRU_"
SECTION_MARK: Final = "__"  # enters a section
# Read by ``load_settings`` itself.
SETTINGS_FILE_VARIABLE: Final = "STREAMGRU_SETTINGS"
# Kubernetes sets these in every container, for each service: STREAMGRU_KAFKA_SERVICE_HOST, STREAMGRU_PORT_80_TCP_ADDR.
_SERVICE_LINK: Final = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)$")
_SECRET_NAME: Final = re.compile(r"password|secret|token|credential|passphrase|api_?key", re.IGNORECASE)
_LISTS: Final = (tuple, list, set, frozenset, Sequence)
_LONGEST_SHOWN: Final = 80

SettingPath = tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """A variable whose text cannot be the value of its setting."""

    variable: str
    path: SettingPath
    text: str  # perhaps a password
    trouble: str  # a clause about the variable, without the text


@dataclass(frozen=True)
class Variables:
    """The variables of an environment that begin with ``PREFIX``."""

    values: dict[str, Any] = field(default_factory=dict)  # nested, as the settings class takes them
    names: dict[SettingPath, str] = field(default_factory=dict)  # path of a setting or section -> its variable
    faults: list[Fault] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # variables that name no setting of a section
    unknown: list[str] = field(default_factory=list)  # variables that name no setting, outside the sections


def read_variables(environment: Mapping[str, str], settings: type[BaseModel]) -> Variables:
    """The values that an environment gives to ``settings``; names are matched without regard to case.

    A list of texts or numbers is a comma-separated list or JSON, a section is JSON or one variable per setting.
    """
    found = Variables()
    given = [(name, name[len(PREFIX) :].split(SECTION_MARK)) for name in environment if name.upper().startswith(PREFIX)]
    # A section's own variable comes before those of its settings, which override it; of two spellings, capitals win.
    for name, keys in sorted(given, key=lambda item: (len(item[1]), item[0].isupper(), item[0])):
        if name.upper() == SETTINGS_FILE_VARIABLE:
            continue
        path, kinds = _resolve(settings, keys)
        if kinds is None:
            if len(keys) > 1 and is_section(settings, path[:1]):
                found.refused.append(name)
            elif not _SERVICE_LINK.search(name.upper()):
                found.unknown.append(name)
            continue
        text = environment[name]
        try:
            value = _decoded(text, kinds)
        except ValueError as error:
            found.faults.append(Fault(name, path, text, str(error)))
            continue
        found.names[path] = name
        _insert(found.values, path, value)
    return found


def suggestion(name: str, known: Iterable[str], mark: str) -> str | None:
    """The known name that a mistyped one is most like, if any; ``mark`` separates the parts of a name."""
    folded = {each.casefold(): each for each in known}
    wanted = name.casefold()
    close = get_close_matches(wanted, folded, n=1, cutoff=0.7)
    if not close:
        last = wanted.rsplit(mark, 1)[-1]
        ends = {each.rsplit(mark, 1)[-1]: each for each in folded}
        close = [ends[end] for end in get_close_matches(last, ends, n=1, cutoff=0.85)]
    return folded[close[0]] if close else None


def variable_name(path: Iterable[str]) -> str:
    """The variable of a setting: ``("kafka", "partitions")`` is STREAMGRU_KAFKA__PARTITIONS."""
    return PREFIX + SECTION_MARK.join(part.upper() for part in path)


def setting_paths(settings: type[BaseModel], above: SettingPath = ()) -> Iterator[SettingPath]:
    """The paths of all settings and sections."""
    for name, each in settings.model_fields.items():
        yield (*above, name)
        for model in _models(_members(each.annotation)):
            yield from setting_paths(model, (*above, name))


def field_of(settings: type[BaseModel], path: SettingPath) -> FieldInfo | None:
    """The field of a setting; None if the path names no field."""
    models, found = [settings], None
    for key in path:
        found = next((model.model_fields[key] for model in models if key in model.model_fields), None)
        if found is None:
            return None
        models = _models(_members(found.annotation))
    return found


def is_section(settings: type[BaseModel], path: SettingPath) -> bool:
    """Whether the path names a section."""
    found = field_of(settings, path)
    return found is not None and bool(_models(_members(found.annotation)))


def is_secret(settings: type[BaseModel], path: SettingPath) -> bool:
    """Whether the value of a setting must not be shown."""
    fields = [field_of(settings, path[: end + 1]) for end in range(len(path))]
    return any(each is not None and not each.repr for each in fields) or any(map(_SECRET_NAME.search, path))


def shown(value: object) -> str:
    """A value for a message: short, with escapes for control characters, without the logins in addresses."""
    if isinstance(value, dict) or (isinstance(value, list | tuple) and any(isinstance(each, dict) for each in value)):
        return "a table"
    plain = str(value) if isinstance(value, Path | date | time) else list(value) if isinstance(value, tuple) else value
    text = re.sub(r"://[^/@\s]*@", "://***@", repr(plain))
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}… ({len(text):,} characters)"


def form(settings: type[BaseModel], path: SettingPath, *, toml: bool) -> str:
    """How to write a setting, with an example: in a variable, or in the file if ``toml``; empty if not known."""
    found = field_of(settings, path)
    if found is None:
        return ""
    kinds = _members(found.annotation)
    if models := _models(kinds):
        inner = next(iter(models[0].model_fields), "")
        if toml:
            return f"{'.'.join(path)} is a section: write [{'.'.join(path)}] and its settings in the lines below"
        return (
            f"{'.'.join(path)} is a section: set its settings one by one, as {variable_name((*path, inner))}, or all "
            f"as a JSON object in {variable_name(path)}"
        )
    example = _example(found, kinds)
    if toml:
        where = f" under [{'.'.join(path[:-1])}]" if len(path) > 1 else ""
        return f"for example {path[-1]} = {_toml(example)}{where}"
    name = variable_name(path)
    if isinstance(example, list):
        comma = ",".join(map(str, example))
        return f"write a list with commas, as {name}={comma}, or as JSON, {name}='{json.dumps(example)}'"
    text = json.dumps(example) if isinstance(example, bool | dict) else str(example)
    return f"for example {name}={text}"


def _example(found: FieldInfo, kinds: list[Any]) -> Any:
    if found.examples:
        return found.examples[0]
    default = found.default
    if isinstance(default, tuple | list | set | frozenset) and default:
        return list(default)
    if isinstance(default, bool | int | float | str | Path) and default != "":
        return str(default) if isinstance(default, Path) else default
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        return choices[0]
    if any(map(_is_list, kinds)):
        return ["a", "b"] if not _item_kinds(kinds) & {int, float} else [1, 2]
    if any(map(_is_table, kinds)):
        return {"name": "value"}
    if bool in kinds:
        return True
    if int in kinds or float in kinds:
        least = next((number for each in found.metadata if (number := getattr(each, "ge", None)) is not None), 1)
        return max(least, 1)
    return "/data/streamgru" if Path in kinds else "text"


def _item_kinds(kinds: list[Any]) -> set[Any]:
    return {kind for each in kinds if _is_list(each) for item in get_args(each) for kind in _members(item)}


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)  # the form of TOML for text, numbers, booleans and lists of them


def _resolve(settings: type[BaseModel], keys: list[str]) -> tuple[SettingPath, list[Any] | None]:
    """The path that the keys of a variable name, and the types that it takes; None if it names no setting."""
    path: list[str] = []
    kinds: list[Any] | None = [settings]
    for key in keys:
        models = _models(kinds or [])
        found = next((model.model_fields[key.lower()] for model in models if key.lower() in model.model_fields), None)
        tables = [kind for kind in kinds or [] if _is_table(kind) and kind not in models]
        path.append(key if found is None and tables else key.lower())
        if found is not None:
            kinds = _members(found.annotation)
        elif tables:  # `dict[str, X]` takes any key, and its values are of type X
            kinds = _members((get_args(tables[0]) or (str,))[-1])
        else:
            kinds = None
    return tuple(path), kinds


def _decoded(text: str, kinds: list[Any]) -> Any:
    """The value of a variable for a setting of these types.

    Raises:
        ValueError: the text has not the form of such a value.
    """
    lists, tables = [kind for kind in kinds if _is_list(kind)], [kind for kind in kinds if _is_table(kind)]
    if Path not in kinds and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("is not UTF-8")
    is_json = text.lstrip().startswith(("[", "{"))
    if str in kinds or Any in kinds:
        if not (is_json and (lists or tables)):
            return text
    elif not text.strip() and Path not in kinds:
        raise ValueError("is empty; unset the variable for the default")
    elif lists and not is_json and any(map(_takes_scalars, lists)):
        return _items(text)
    elif not lists and not tables:
        return text
    try:
        value = _json(text)
    except ValueError:
        if str in kinds or Any in kinds:
            return text
        raise
    if not isinstance(value, list if not tables else dict if not lists else list | dict):
        raise ValueError(f"holds JSON of another kind than {'a list' if lists else 'an object'}")
    return value


def _items(text: str) -> list[str]:
    if text.lstrip().startswith(('"', "'")):
        raise ValueError("begins with a quote; quotes belong to JSON lists only, which begin with [")
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise ValueError("has nothing before or after a comma")
    return items


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError):
        raise ValueError("is not valid JSON: it is nested too deeply, or has a number of thousands of digits") from None


def _insert(values: dict[str, Any], path: SettingPath, value: Any) -> None:
    for key in path[:-1]:
        inner = values.get(key)
        if not isinstance(inner, dict):
            inner = values[key] = {}
        values = inner
    values[path[-1]] = value


def _members(annotation: Any) -> list[Any]:
    """The types of a union, without None and without metadata; one type gives itself."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for each in get_args(annotation) for member in _members(each)]
    if hasattr(annotation, "__value__"):  # a type alias
        return _members(annotation.__value__)
    return [] if annotation is type(None) else [annotation]


def _models(kinds: list[Any]) -> list[type[BaseModel]]:
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _is_list(kind: Any) -> bool:
    return _origin_in(kind, _LISTS)


def _is_table(kind: Any) -> bool:
    return bool(_models([kind])) or _origin_in(kind, (dict, Mapping))


def _origin_in(kind: Any, origins: tuple[type, ...]) -> bool:
    return (get_origin(kind) or kind) in origins


def _takes_scalars(kind: Any) -> bool:
    items = [member for item in get_args(kind) if item is not Ellipsis for member in _members(item)]
    return not any(_is_list(item) or _is_table(item) for item in items)
