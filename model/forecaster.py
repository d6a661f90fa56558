"""The forecaster: the GRU core between causal inputs and a head of quantiles that cannot cross.

A forecast is ``level + scale * head``, in the sensor's own unit. ``head`` is the core's output plus a linear skip from
the step's inputs and recent past, so the GRU itself need not learn persistence and seasonal repetition.

Letters: B sensors, V attributes, E numbers of a sensor's vector, T steps, S scored steps, D inputs of a step,
F features, K targets, R lags, P profile slots, Q quantiles, h horizon steps, L layers, H hidden, A inputs known ahead,
C covariates of outlooks.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .ahead_inputs import AheadInputs, AheadTerm, fit_standard
from .attributes import SensorRows, attribute_values
from .config import ModelConfig
from .gru import GRUModel
from .inputs import PreparedSequences, input_size, past_size, prepare
from .normaliser import Floats, Normaliser
from .sequences import Sequences
from .step_kernel import INPUTS_PER_FEATURE

# Prefix in memory -> prefix on disk. Artefacts and checkpoints keep the names of format 1, so that an older program can
# read them.
_NAMES_ON_DISK: Final = (("gru.gru.", "gru.rnn."), ("gru.fc.", "gru.head."))


class Forecaster(nn.Module):
    """A model's weights, and the network that applies them. The caller carries the state."""

    scale_spread: Tensor
    outlook_standard: Tensor  # only with outlooks

    def __init__(self, config: ModelConfig, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        outputs = config.target_count * len(config.quantiles) * config.horizon_steps
        self.embedding = nn.Embedding(len(config.sensors) + 1, config.embedding_size)
        # A vector for each value of each attribute, which is added to those of its sensors.
        self.attributes = (
            nn.Parameter(torch.empty(len(attribute_values(config.attributes)), config.embedding_size))
            if config.attributes
            else None
        )
        self.gru = GRUModel(
            input_size(config) + config.embedding_size, config.hidden_size, outputs, config.num_layers, dropout=dropout
        )
        self.dropout = nn.Dropout(dropout)
        # The plain preset has no skip: it sees the past through its hidden state alone.
        self.skip = (
            nn.Linear(input_size(config) + past_size(config), outputs, bias=False)
            if config.preset == "stateful"
            else None
        )
        if config.outlook is not None:  # (2, C) mean and standard deviation of each covariate
            blank = torch.tensor([[0.0], [1.0]], dtype=torch.float64).repeat(1, config.outlook.covariate_count)
            self.register_buffer("outlook_standard", blank)
        # Ratio of a feature's scale to its changes; float64, because the normaliser's states depend on it.
        self.register_buffer("scale_spread", torch.ones(config.feature_count, dtype=torch.float64))
        self._rows = SensorRows(config.sensors, config.attributes)
        self._begin_at_persistence()
        # This term is created last, so that the random weights above are those of a model without covariates.
        self.ahead = AheadTerm(config, config.hidden_size, outputs) if config.knows_ahead else None

    def _begin_at_persistence(self) -> None:
        """Set the initial weights: the median fades from the last value to the level, and intervals are wide."""
        config = self.config
        if config.embedding_size:
            nn.init.normal_(self.embedding.weight, std=0.1)
        if self.attributes is not None:
            # As large as the other inputs of a step. Smaller vectors are hardly learned: the patterns of two values may
            # be opposite, and then neither alone says anything.
            nn.init.normal_(self.attributes)
        with torch.no_grad():
            self.gru.fc.weight.mul_(0.1)
            bias = torch.full((config.target_count, len(config.quantiles), config.horizon_steps), -0.5)
            bias[:, config.median_index] = 0.0
            self.gru.fc.bias.copy_(bias.flatten())
            if self.skip is None:
                return
            self.skip.weight.zero_()
            skip = self.skip.weight.view(config.target_count, len(config.quantiles), config.horizon_steps, -1)
            fading = torch.exp(-torch.arange(config.horizon_steps) / max(config.season_steps, 4))
            for target, feature in enumerate(config.target_indices):
                skip[target, config.median_index, :, feature * INPUTS_PER_FEATURE] = fading

    def adopt(self, initial: "Forecaster") -> None:
        """Copy the weights of a model of the same shape.

        Sensors are matched by name. The embedding of a new sensor begins with the unknown sensor's. The term of the
        inputs known ahead begins at zero if ``initial`` has other covariates.

        Raises:
            ValueError: a tensor has another shape in ``initial``, or is missing there; the message names it.
        """
        mine, theirs = self.state_dict(), initial.state_dict()
        theirs.pop("attributes", None)
        theirs |= self._adopted_vectors(initial)
        if _covariates(self.config) != _covariates(initial.config):
            theirs = {name: tensor for name, tensor in theirs.items() if not _is_ahead(name)}
            theirs |= {name: tensor for name, tensor in mine.items() if _is_ahead(name)}
        differing = sorted(
            name
            for name in mine.keys() | theirs.keys()
            if name not in mine or name not in theirs or mine[name].shape != theirs[name].shape
        )
        if differing:
            raise ValueError(f"the model to begin from has another shape; these weights differ: {', '.join(differing)}")
        self.load_state_dict(theirs)

    @torch.no_grad()
    def _adopted_vectors(self, initial: "Forecaster") -> dict[str, Tensor]:
        """The tables of vectors, with which every sensor has the vector that it has in ``initial``.

        A new value of an attribute begins with the vector of sensors without a value, and a new attribute at zero.
        """
        sensors = self.config.sensors
        whole = initial.sensor_vectors(_with_unknown(initial, sensors))
        if self.attributes is None:
            return {"embedding.weight": whole}
        known = {label: row for row, label in enumerate(attribute_values(initial.config.attributes))}
        values = torch.zeros(len(self.attributes), whole.shape[1])
        for row, (name, value) in enumerate(attribute_values(self.config.attributes)):
            place = known.get((name, value), known.get((name, None)))
            if initial.attributes is not None and place is not None:
                values[row] = initial.attributes[place]
        own = whole - values[_with_unknown(self, sensors)[:, 1:]].sum(dim=1)
        return {"embedding.weight": own, "attributes": values}

    def stored_weights(self) -> dict[str, Tensor]:
        """The ``state_dict`` under the names that artefacts and checkpoints use."""
        return {_name_on_disk(name): tensor for name, tensor in self.state_dict().items()}

    def load_stored_weights(self, weights: Mapping[str, Any]) -> None:
        """Copy weights given under the names that artefacts and checkpoints use.

        Raises:
            RuntimeError: a name is missing or unknown, or a tensor has another shape.
        """
        names = {_name_on_disk(name): name for name in self.state_dict()}
        self.load_state_dict({names.get(name, name): tensor for name, tensor in weights.items()})

    def normaliser(self) -> Normaliser:
        """The normaliser for these weights."""
        return Normaliser(self.config, self.spread)

    @property
    def spread(self) -> Floats:
        """(F,) ratio of each feature's scale to its changes, for the normaliser."""
        return np.asarray(self.scale_spread.cpu().numpy())

    @property
    def standard(self) -> Floats:
        """(2, C) mean and standard deviation of the outlooks' covariates; C is 0 without outlooks."""
        if self.config.outlook is None:
            return np.empty((2, 0))
        return np.asarray(self.outlook_standard.cpu().numpy())

    def fit_outlooks(self, sequences: Sequences, until_us: int) -> None:
        """Set ``standard`` by the outlooks of the steps before ``until_us``."""
        if self.config.outlook is not None:
            self.outlook_standard.copy_(torch.from_numpy(fit_standard(self.config.outlook, sequences, until_us)))

    def ahead_inputs(self) -> AheadInputs | None:
        """Gathers the inputs known ahead, on the device of the weights; None if the model has none."""
        if self.ahead is None:
            return None
        return AheadInputs(self.config, self.standard, self.scale_spread.device)

    def prepare(self, sequences: Sequences, *, on_model_scale: bool = False) -> PreparedSequences:
        """The inputs of every step of a data set, for ``unroll``; the arguments are those of ``inputs.prepare``."""
        return prepare(self.config, self.spread, sequences, self.standard, on_model_scale=on_model_scale)

    def sensor_rows(self, sensors: Sequence[str]) -> NDArray[np.int64]:
        """(B, 1+V) rows for ``sensor_vectors``: each sensor's own, and of its value of each attribute.

        A sensor that training did not see has row 0 (``attributes.UNKNOWN_SENSOR``) as its own.
        """
        return self._rows.of(sensors)

    @property
    def unknown_rows(self) -> tuple[int, ...]:
        """The rows (1+V) of a sensor that training did not see, without attributes."""
        return self._rows.unknown

    def sensor_vectors(self, rows: Tensor) -> Tensor:
        """(B, E) the vector of each sensor, from rows (B, 1+V)."""
        vectors: Tensor = self.embedding(rows[:, 0])
        if self.attributes is None:
            return vectors
        return vectors + self.attributes[rows[:, 1:]].sum(dim=1)

    def unroll(
        self,
        x: Tensor,
        past: Tensor,
        rows: Tensor,
        h: Tensor,
        scored: slice = slice(None),
        ahead: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Quantiles (B, S, K, Q, h) after the ``scored`` steps, and the state (L, B, H) after all T steps.

        Quantiles are less the level, in scales.

        Args:
            x: (B, T, D) of ``prepare``; past: (B, T, K·(R+P)) of ``prepare``.
            rows: (B, 1+V) of ``sensor_rows``.
            h: (L, B, H) the state before the steps; zeros for a blank one.
            scored: S of the T steps.
            ahead: (B, S, A) inputs known ahead after the scored steps; None if the model has none.
        """
        raw, h = self.unroll_raw(x, past, rows, h, scored, ahead)
        return self.uncrossed(raw), h

    def unroll_raw(
        self,
        x: Tensor,
        past: Tensor,
        rows: Tensor,
        h: Tensor,
        scored: slice,
        ahead: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Raw outputs (B, S, K·Q·h) in place of the quantiles of ``unroll``, and the state after all T steps."""
        hidden, h = self.gru.unroll(self._with_sensor(x, rows), h)
        return self.raw(hidden[:, scored], x[:, scored], past[:, scored], ahead), h

    def advance(self, x: Tensor, rows: Tensor, h: Tensor) -> Tensor:
        """The state (L, B, H) after all T steps; the arguments are those of ``unroll``."""
        _, h = self.gru.unroll(self._with_sensor(x, rows), h)
        return h

    def _with_sensor(self, x: Tensor, rows: Tensor) -> Tensor:
        """The GRU's inputs: the inputs of each step, followed by the vector of the sensor."""
        known = self.sensor_vectors(rows)[:, None].expand(-1, x.shape[1], -1)
        return torch.cat([x, known], dim=2)

    def quantiles(self, hidden: Tensor, x: Tensor, past: Tensor, ahead: Tensor | None = None) -> Tensor:
        """(..., K, Q, h) from the last layer's hidden states (..., H) and the steps' inputs; they never cross."""
        return self.uncrossed(self.raw(hidden, x, past, ahead))

    def raw(self, hidden: Tensor, x: Tensor, past: Tensor, ahead: Tensor | None) -> Tensor:
        """(..., K·Q·h) raw outputs from the last layer's hidden states (..., H) and the steps' inputs."""
        hidden = self.dropout(hidden)
        raw = self.gru.predict(hidden)
        if self.skip is not None:
            raw = raw + self.skip(torch.cat([x, past], dim=-1))
        if self.ahead is not None:
            assert ahead is not None, "the inputs known ahead are missing"
            raw = raw + self.ahead(hidden, ahead)
        return raw

    def uncrossed(self, raw: Tensor) -> Tensor:
        """(..., K, Q, h) quantiles in order from raw outputs (..., K·Q·h).

        The raw median stays. Each other quantile lies the softplus of its raw output beyond its inner neighbour.
        """
        config = self.config
        raw = raw.view(*raw.shape[:-1], config.target_count, len(config.quantiles), config.horizon_steps)
        distance = F.softplus(raw)
        median = config.median_index
        in_order = [raw[..., median, :]]
        for level in range(median + 1, len(config.quantiles)):
            in_order.append(in_order[-1] + distance[..., level, :])
        for level in range(median - 1, -1, -1):
            in_order.insert(0, in_order[0] - distance[..., level, :])
        return torch.stack(in_order, dim=-2)


def _covariates(config: ModelConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The covariates known ahead that the weights belong to."""
    return tuple(each.name for each in config.calendar), config.outlook.covariates if config.outlook else ()


def _with_unknown(forecaster: Forecaster, sensors: Sequence[str]) -> Tensor:
    """(1+B, 1+V) the rows of an unknown sensor without attributes, and of these sensors."""
    return torch.from_numpy(np.vstack([forecaster.unknown_rows, forecaster.sensor_rows(sensors)]))


def _is_ahead(name: str) -> bool:
    """Whether a tensor belongs to the inputs known ahead."""
    return name.startswith("ahead.") or name == "outlook_standard"


def _name_on_disk(name: str) -> str:
    for in_memory, on_disk in _NAMES_ON_DISK:
        if name.startswith(in_memory):
            return on_disk + name.removeprefix(in_memory)
    return name
