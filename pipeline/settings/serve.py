"""The section ``[serve]`` of the settings: the address, the access and the memory of ``streamgru serve``."""

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

_LONGEST_S: Final = 315_360_000  # ten years; timers raise OverflowError from centuries on


class ServeSettings(BaseModel):
    """The page and the API of ``streamgru serve``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    host: str = Field(
        default="127.0.0.1", min_length=1, description="address to listen on; any but a loopback address needs a token"
    )
    port: int = Field(default=8050, ge=1, le=65_535)
    token: str | None = Field(
        default=None,
        min_length=12,
        description="browsers and programs must send it; needed to listen beyond this machine",
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(),
        description="further names under which browsers reach the page, for example of a reverse proxy",
        examples=[["forecasts.example.org"]],
    )
    look_back_records: int = Field(
        default=2_000, ge=0, le=1_000_000, description="latest forecasts of each partition that are read at the start"
    )
    history_records: int = Field(
        default=1_000_000,
        ge=1_000,
        le=100_000_000,
        description="forecasts of all sensors together whose places in Kafka are kept, 22 bytes each",
    )
    recent_readings: int = Field(
        default=250_000,
        ge=1_000,
        le=100_000_000,
        description="readings whose values are kept until their forecasts arrive, 20 to 32 bytes each",
    )
    replay_records: int = Field(
        default=100_000,
        ge=0,
        le=10_000_000,
        description="most records that a browser gets again after a lost connection",
    )
    most_streams: int = Field(default=100, ge=1, le=10_000, description="most event streams at the same time")
    score_bucket_s: float = Field(
        default=60.0, ge=1.0, le=_LONGEST_S, description="width of the buckets of live scores"
    )
    refresh_s: float = Field(
        default=300.0, ge=0.0, le=_LONGEST_S, description="how often MLflow and the history are asked; 0: never"
    )
