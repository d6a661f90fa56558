"""Every error a user can meet, in one tree.

    StreamgruError
    ├── SettingsError            a setting is missing, out of range or contradicts another
    ├── DataFileError            a file to publish or to read is malformed
    ├── StackError               a process of the local stack did not start, died or does not answer
    ├── KafkaError
    │   ├── BrokerUnreachable    no broker answers at the address given
    │   ├── TopicError           a topic is missing, or differs from the settings
    │   └── OffsetsLost          the offsets to go on from lie below the topic's retention
    ├── HistoryError             the history table is missing, empty or does not fit the settings
    ├── RegistryError
    │   ├── RegistryUnreachable  MLflow, or where it keeps artefacts, does not answer
    │   ├── ModelMissing         no such version or alias
    │   └── ModelUnusable           the artefact is damaged, or made for other features, horizon or quantiles
    ├── StateError               a state record cannot be read, or was made by another model
    ├── Busy                     another process is at the same work, which only one may do at a time
    └── Fenced                   a successor has taken over this forecaster's work; it must stop

The command line prints ``str(error)`` and exits with ``error.exit_code``; a message says what happened, where, and what
to do next. Errors of the libraries below are turned into these where they are caught.
"""


class StreamgruError(Exception):
    """Base of every error that is the user's to act on."""

    exit_code = 1


class SettingsError(StreamgruError):
    """A setting is missing, out of range or contradicts another."""

    exit_code = 2


class DataFileError(StreamgruError):
    """A file to publish or to read is malformed."""


class StackError(StreamgruError):
    """A process of the local stack did not start, died or does not answer."""


class KafkaError(StreamgruError):
    """The broker refused, or could not do, what was asked."""


class BrokerUnreachable(KafkaError):
    """No broker answers at the address given."""


class TopicError(KafkaError):
    """A topic is missing, or differs from the settings."""


class OffsetsLost(KafkaError):
    """The offsets to go on from lie below the topic's retention."""


class HistoryError(StreamgruError):
    """The history table is missing, empty or does not fit the settings."""


class RegistryError(StreamgruError):
    """The model registry could not do what was asked."""


class RegistryUnreachable(RegistryError):
    """MLflow does not answer."""


class ModelMissing(RegistryError):
    """There is no such model version or alias."""


class ModelUnusable(RegistryError):
    """The artefact is damaged, or made for other features, horizon or quantiles than the settings name."""


class StateError(StreamgruError):
    """A state record cannot be read, or was made by another model."""


class Busy(StreamgruError):
    """Another process is at the same work, which only one may do at a time."""


class Fenced(StreamgruError):
    """A successor has taken over this forecaster's work; it must stop without committing."""
