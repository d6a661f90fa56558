"""Every error a user can meet, in one tree.

    StreamgruError
    ├── SettingsError            a setting is missing, out of range or contradicts another
    ├── DataFileError            a file to publish or to read is malformed
    ├── StackError               a process of the local stack did not start, died or does not answer
    ├── KafkaError
    │   ├── BrokerUnreachable    no broker answers at the address given
    │   ├── TopicError           a topic is missing, or differs from the settings
    │   └── OffsetsLost          the topic's retention deleted readings before they were read
    ├── SchemaRegistryError      the registry of the readings' schemas refused a request
    │   └── SchemaRegistryUnreachable  it does not answer
    ├── HistoryError             the history table is missing, empty or does not fit the settings
    ├── ExportError              an exported table is damaged, or cannot be written
    ├── RegistryError
    │   ├── RegistryUnreachable  MLflow or its artefact store does not answer
    │   ├── ModelMissing         a version or an alias does not exist
    │   └── ModelUnusable        the artefact is damaged, or made for other features, horizon or quantiles
    ├── StateError               a state record cannot be read, or was made by another model
    ├── Busy                     another process does the same work, which only one may do at a time
    └── Fenced                   a successor has taken over; this forecaster must stop

The command line prints ``str(error)`` and exits with ``error.exit_code``. A message names the failure, its place and
the next step. Errors of libraries become one of these where they are caught.
"""


class StreamgruError(Exception):
    """Base of all errors that a user can act on."""

    exit_code = 1


class SettingsError(StreamgruError):
    """A setting is missing, out of range or contradicts another."""

    exit_code = 2


class DataFileError(StreamgruError):
    """A file to publish or to read is malformed."""


class StackError(StreamgruError):
    """A process of the local stack did not start, died or does not answer."""


class KafkaError(StreamgruError):
    """A Kafka broker refused or failed a request."""


class BrokerUnreachable(KafkaError):
    """No broker answers at the address given."""


class TopicError(KafkaError):
    """A topic is missing, or differs from the settings."""


class OffsetsLost(KafkaError):
    """The topic's retention deleted readings before they were read."""


class SchemaRegistryError(StreamgruError):
    """The registry of the readings' schemas refused a request."""


class SchemaRegistryUnreachable(SchemaRegistryError):
    """The registry of the readings' schemas does not answer."""


class HistoryError(StreamgruError):
    """The history table is missing, empty or does not fit the settings."""


class ExportError(StreamgruError):
    """An exported table is damaged, or cannot be written."""


class RegistryError(StreamgruError):
    """MLflow refused or failed a request."""


class RegistryUnreachable(RegistryError):
    """MLflow or its artefact store does not answer."""


class ModelMissing(RegistryError):
    """A model version or an alias does not exist."""


class ModelUnusable(RegistryError):
    """The artefact is damaged, or made for other features, horizon or quantiles than the settings name."""


class StateError(StreamgruError):
    """A state record cannot be read, or was made by another model."""


class Busy(StreamgruError):
    """Another process does the same work, which only one may do at a time."""


class Fenced(StreamgruError):
    """A successor has taken over; this forecaster must stop without committing."""
