"""Installs Prefect automations from a file, so that a second installation changes nothing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import BlockDocument
from prefect.events.actions import DoNothing, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound

from pipeline.errors import SettingsError, StackError
from pipeline.settings import Settings

_BODY: Final = """{{ automation.name }}

{{ automation.description }}

{% if flow_run is defined %}Run {{ flow_run.name }}: {{ flow_run.state.message }}
{{ flow_run | ui_url }}{% endif %}"""


@dataclass(frozen=True)
class InstalledAlert:
    """An automation in Prefect after the installation."""

    name: str
    was_new: bool
    enabled: bool
    notifies: bool  # whether it sends a notification


def install(settings: Settings, file: Path, notify: str | None = None) -> list[InstalledAlert]:
    """Create the automations of a file in Prefect, or update those of the same names.

    A paused automation stays paused. Without ``notify``, an automation that exists keeps its actions.

    Args:
        file: JSON in the form of ``prefect automation create --from-file``.
        notify: type and name of a notification block in Prefect, such as ``slack-webhook/ops``.

    Raises:
        SettingsError: the file holds no valid automations, or the block does not exist.
        StackError: Prefect refuses a request.
    """
    wanted = read_automations(file)
    try:
        with get_client(sync_client=True) as client:
            block = None if notify is None else _block(client, notify)
            return [_install(client, automation, block) for automation in wanted]
    except httpx.HTTPError as error:
        raise StackError(f"Prefect at {settings.prefect_api_url} refuses to install the alerts: {error}") from error


def read_automations(file: Path) -> list[AutomationCore]:
    """The automations of a file.

    Raises:
        SettingsError: the file cannot be read, or holds no valid automations.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["automations"]
        return [AutomationCore.model_validate(entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{file} holds no automations of Prefect: {' '.join(str(error).split())}; deploy/automations.json shows "
            "the form"
        ) from error


def _block(client: SyncPrefectClient, notify: str) -> BlockDocument:
    kind, _, name = notify.partition("/")
    try:
        block = client.read_block_document_by_name(name=name, block_type_slug=kind)
    except ObjectNotFound as error:
        raise SettingsError(
            f"Prefect has no block {notify}; make it on Prefect's page under Blocks, and give its type and name, such "
            "as slack-webhook/ops"
        ) from error
    schema = block.block_schema
    if schema is None or "notify" not in schema.capabilities:
        raise SettingsError(
            f"the block {notify} cannot send notifications; choose a block for notifications in Prefect"
        )
    return block


def _install(client: SyncPrefectClient, wanted: AutomationCore, block: BlockDocument | None) -> InstalledAlert:
    if block is not None:
        wanted = wanted.model_copy(update={"actions": [_notification(block.id)]})
    known = client.read_automations_by_name(wanted.name)
    if not known:
        client.create_automation(wanted)
        return _installed(wanted, was_new=True)
    kept: dict[str, Any] = {"enabled": known[0].enabled}
    if block is None:
        kept["actions"] = known[0].actions
    # The client sends only the fields that were given, so the actions and the pause must be among them.
    updated = AutomationCore.model_validate(wanted.model_dump(exclude={"owner_resource"}) | kept)
    client.update_automation(known[0].id, updated)
    return _installed(updated, was_new=False)


def _notification(block_id: UUID) -> SendNotification:
    return SendNotification(block_document_id=block_id, subject="{{ automation.name }}", body=_BODY)


def _installed(automation: Automation | AutomationCore, *, was_new: bool) -> InstalledAlert:
    notifies = any(not isinstance(action, DoNothing) for action in automation.actions)
    return InstalledAlert(automation.name, was_new, automation.enabled, notifies)
