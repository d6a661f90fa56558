"""Models with random weights, and their forecasts in the stream and in a batch."""

from dataclasses import replace

import numpy as np
import torch

from model.backtest import model_predictor
from model.config import Adaptation, ModelConfig
from model.forecaster import Forecaster
from model.sequences import Sequences
from model.state import States, blank_states
from model.stepper import Forecasts, Stepper


def random_forecaster(config: ModelConfig) -> Forecaster:
    """A model with random weights, so large that every input changes the forecasts, and that these leave any bounds."""
    torch.manual_seed(0)
    made = Forecaster(replace(config, hidden_size=8, sensors=("s0", "s2"), lag_steps=5))
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn_like(weight) * 0.3)
    return made.eval()


def stepped(
    forecaster: Forecaster, sequences: Sequences, adaptation: Adaptation, *, whole: bool = True
) -> tuple[Forecasts, States, np.ndarray]:
    """Forecasts in order of time, the last states, and the step of each forecast."""
    read = np.flatnonzero(sequences.observed)
    slots = np.searchsorted(sequences.starts, read, side="right") - 1
    order = np.argsort(sequences.timestamp_us[read], kind="stable")
    read, slots = read[order], slots[order]
    states = blank_states(forecaster.config, len(sequences.sensors), adaptation)
    stepper = Stepper(forecaster, adaptation, whole=whole)
    made = stepper.step(
        states,
        sequences.sensors,
        slots,
        sequences.timestamp_us[read],
        sequences.values[read],
        sequences.offset[read],
    )
    return made, states, read


def batched(forecaster: Forecaster, sequences: Sequences, adaptation: Adaptation) -> np.ndarray:
    predictor = model_predictor(forecaster, adaptation=adaptation)
    spans = [(sensor, *sequences.span(sensor)) for sensor in range(len(sequences.sensors))]
    return np.concatenate([predictor.forecasts(sequences, *span) for span in spans])


@torch.inference_mode()
def step_by_step(forecaster: Forecaster, sequences: Sequences, sensor: int) -> np.ndarray:
    """(n, K, Q, h) forecasts from single steps of the network over the inputs of the whole data set."""
    prepared = forecaster.prepare(sequences)
    rows = torch.from_numpy(forecaster.sensor_rows([sequences.sensors[sensor]]))
    builder = forecaster.ahead_inputs()
    h = forecaster.gru.zeros(1)
    found = []
    for step in range(*sequences.span(sensor)):
        if sequences.reset[step]:
            h = forecaster.gru.zeros(1)
        x = torch.from_numpy(prepared.x[None, None, step])
        past = torch.from_numpy(prepared.past_inputs(np.array([step]))[None])
        ahead = None
        if builder is not None:
            outlook = None if sequences.outlook is None else sequences.outlook[step : step + 1]
            ahead = builder.of_arrays(sequences.timestamp_us[step : step + 1], sequences.outlooks, outlook)[None]
        raw, h = forecaster.unroll(x, past, rows, h, ahead=ahead)
        found.append(raw[0, 0].numpy() * prepared.scale[step, :, None, None] + prepared.level[step, :, None, None])
    return np.array(found)
