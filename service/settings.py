"""Every knob of the service, in one place: flag, then HEED_* variable, then YAML, then default.

Combinations that cannot work are refused at start-up, with the change that would mend them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from model.location import Location, parse_location
from service.keys import hashed, parse_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Positive = Annotated[int, Field(ge=1)]

ORIGIN = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d+)?")

SAID_WHOLE = ("api_keys", "cors_origins")  # settings whose errors say what is wrong where, and never a key

SENTIMENT = Path(__file__).parent.parent / "model" / "bundles" / "sentiment"  # the model that comes with Heed


@dataclass(frozen=True)
class Spec:
    """Which model is served under which name."""

    name: str
    location: Location

    @classmethod
    def parse(cls, text: str) -> Spec:
        """NAME=LOCATION, or a LOCATION that is named after its folder, its name in the registry or its repository.

        Raises ValueError naming the spec. What is in a registry or on the hub is not looked for yet.
        """
        name, equals, where = text.partition("=")
        location = parse_location(where if equals else text)
        if isinstance(location, Path) and not location.is_dir():
            raise ValueError(f"no bundle folder: {location}")
        location = location.resolve() if isinstance(location, Path) else location
        name = name if equals else location.name
        if not name or "@" in name:
            raise ValueError(f"a model's name is not empty and has no @: {text}")
        return cls(name, location)


def parse_specs(texts: Sequence[str]) -> list[Spec]:
    """Specs of distinct names; with none, the model that comes with Heed."""
    specs = [Spec.parse(text) for text in texts] or [Spec("sentiment", SENTIMENT)]
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two models have one name, give one another with NAME=LOCATION: {name}")
    return specs


def parse_store(text: str) -> str:
    """Where feedback is kept: the absolute path of an SQLite file, or a PostgreSQL URL for SQLAlchemy.

    Raises ValueError, which repeats no URL: it may hold a password.
    """
    scheme, slashes, rest = text.partition("://")
    if not slashes or scheme == "sqlite":
        file = rest.removeprefix("/") if slashes else text
        if file in ("", ":memory:"):
            raise ValueError("feedback_store is kept in no file, name one: labels.db")
        return str(Path(file).absolute())
    if scheme not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise ValueError("feedback_store is a file or postgresql://USER@HOST/DATABASE, not something else")
    user, _, where = rest.rpartition("@")
    if ":" in user or "password=" in where.lower():
        raise ValueError(
            "feedback_store holds a password, which a process's arguments and Ray's would show: "
            "leave it out, and set PGPASSWORD or PGPASSFILE"
        )
    return f"postgresql+psycopg://{rest}"


def available_cores() -> int:
    """Cores that this process may use: its affinity, or less where a container's quota is less."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


class Settings(BaseSettings):
    """Settings of `heed serve`. A field's description is the help of its flag."""

    model_config = SettingsConfigDict(
        env_prefix="HEED_", extra="forbid", frozen=True, hide_input_in_errors=True
    )  # no key or password in an error

    models: Annotated[
        list[str], NoDecode, Field(description="what to serve: [NAME=]LOCATION, separated by commas")
    ] = []
    host: Annotated[str, Field(description="address to listen on; 0.0.0.0 is every network")] = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535, description="port of HTTP")] = 8000
    grpc_port: Annotated[
        int, Field(ge=0, le=65535, description="port of gRPC, the Open Inference Protocol, on host; 0: none")
    ] = 9000
    device: Annotated[str, Field(description="auto, cpu, cuda or cuda:N")] = "auto"
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16", "int8"],
        Field(description="of weights and activations; auto: the fastest that costs no accuracy"),
    ] = "auto"
    replicas: Annotated[Positive, Field(description="processes that answer, each with its own models")] = 1
    max_replicas: Annotated[
        Positive | None, Field(description="as many replicas when texts wait; default: as many as always")
    ] = None
    scale_up_wait_s: Annotated[
        float, Field(gt=0, description="predicted wait of a text over which a replica is added, in seconds")
    ] = 0.25
    scale_down_after_s: Annotated[
        float, Field(ge=0, description="seconds that fewer replicas must have been enough before one is taken away")
    ] = 120.0
    gpus_per_replica: Annotated[
        float, Field(ge=0, description="GPUs that Ray reserves for a replica; 0: those of the machine, shared evenly")
    ] = 0.0
    compute_threads: Annotated[
        int, Field(ge=0, description="CPU threads of a replica's forward passes; 0: all that it may use")
    ] = 0
    max_batch_tokens: Annotated[
        Positive | None, Field(description="tokens of one forward pass, at most; default: measured at start")
    ] = None
    max_queue_tokens: Annotated[
        Positive, Field(description="tokens that may wait in a replica, whatever their deadlines; over it, 429")
    ] = 262_144
    cache_texts: Annotated[
        int, Field(ge=0, description="answers kept in memory for texts that come again, of each model; 0: none")
    ] = 0
    max_texts_per_request: Annotated[Positive, Field(description="texts of one request, at most")] = 1_000
    max_text_chars: Annotated[Positive, Field(description="characters of one text, at most")] = 50_000
    max_body_bytes: Annotated[Positive, Field(description="bytes of one request's body, at most")] = 4_000_000
    api_keys: Annotated[
        list[str],
        NoDecode,
        Field(
            description="keys, one of which every caller must show, separated by commas: in HEED_API_KEYS, or as lines "
            "of heed key NAME; default: nobody is asked for one"
        ),
    ] = []
    api_keys_file: Annotated[
        Path | None, Field(description="more keys: a file with a line of heed key NAME for each, read when it changes")
    ] = None
    texts_per_second_per_key: Annotated[
        float | None,
        Field(
            gt=0,
            description="texts and labels a second that a key may send, answered or not; over it, 429. Each replica "
            "lets in its share, of as many as there may be (max_replicas): a caller gets less while there are fewer, "
            "or where its requests meet them unevenly; default: no limit",
        ),
    ] = None
    texts_burst_per_key: Annotated[
        Positive | None,
        Field(description="texts that it may send at once after a pause; default: the largest request to each replica"),
    ] = None
    cors_origins: Annotated[
        list[str],
        NoDecode,
        Field(description="pages that may ask from a browser, as https://HOST, separated by commas; *: every page"),
    ] = []
    registry_poll_s: Annotated[
        float, Field(gt=0, description="seconds between looks at the registry of a model that is followed")
    ] = 10.0
    shadow_share: Annotated[
        float, Field(ge=0, le=1, description="share of the requests that the alias candidate reads too, unseen")
    ] = 0.0
    canary_share: Annotated[
        float, Field(ge=0, le=1, description="share of the requests that the alias candidate answers")
    ] = 0.0
    canary_least_agreement: Annotated[
        float, Field(ge=0, le=1, description="share of texts on which a candidate has to agree with production")
    ] = 0.8
    canary_most_failed: Annotated[
        float, Field(ge=0, le=1, description="share of texts that a candidate may fail on")
    ] = 0.01
    timeout_ms: Annotated[Positive, Field(description="deadline of a request that names none, in ms")] = 30_000
    metrics_port: Annotated[
        int, Field(ge=0, le=65535, description="port of /metrics alone, on each node for its own replicas; 0: none")
    ] = 0
    metrics_host: Annotated[str, Field(description="address of metrics_port")] = "127.0.0.1"
    feedback_store: Annotated[
        str | None,
        Field(
            description="where labels sent to /v1/feedback are kept: a file (SQLite), or for several nodes "
            "postgresql://USER@HOST/DATABASE, its password in PGPASSWORD or PGPASSFILE; default: none are taken"
        ),
    ] = None
    keep_text: Annotated[
        bool,
        Field(description="keep the texts of all requests in feedback_store; false: only those sent with a label"),
    ] = False
    feedback_days: Annotated[
        float, Field(gt=0, description="days for which an answer is remembered, so that a label for it is taken")
    ] = 30.0
    feedback_answers: Annotated[
        Positive, Field(description="texts whose answers are remembered, at most; the oldest are forgotten first")
    ] = 1_000_000
    drain_s: Annotated[float, Field(ge=0, description="seconds that a stopping replica finishes what it accepted")] = (
        30.0
    )

    @property
    def most_replicas(self) -> int:
        """Replicas that there may be at a time."""
        return self.max_replicas or self.replicas

    @property
    def texts_burst(self) -> int:
        """Texts that a key may send at once, to all replicas together."""
        return self.texts_burst_per_key or self.max_texts_per_request * self.most_replicas

    @field_validator("models", "api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _without_password(cls, values: Any) -> Any:
        """Not a validator of the field, whose errors are told with its value."""
        store = values.get("feedback_store")
        return {**values, "feedback_store": parse_store(store)} if isinstance(store, str) else values

    @field_validator("api_keys", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        if isinstance(value, str) and not value.strip(", "):  # a Secret that was lost must not open the service
            raise ValueError("there is none in it: unset it where nobody is to be asked for a key")
        return value

    @field_validator("api_keys")
    @classmethod
    def _hashed(cls, entries: list[str]) -> list[str]:
        """What leaves this process, for replicas and for whoever looks at them, are hashes."""
        kept = []
        for number, entry in enumerate(entries, start=1):
            try:
                kept.append(str(hashed(entry)))
            except ValueError as error:
                raise ValueError(f"key {number} of {len(entries)}: {error}") from None
        return kept

    @field_validator("api_keys_file")
    @classmethod
    def _absolute(cls, file: Path | None) -> Path | None:
        return file and file.absolute()  # a link stays one: what it points to may change

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(f"an origin is http(s)://HOST or http(s)://HOST:PORT, in small letters: {origin}")
        return origins

    @model_validator(mode="after")
    def _possible_for_keys(self) -> Settings:
        rate, burst = self.texts_per_second_per_key, self.texts_burst_per_key
        if rate and not self.api_keys and not self.api_keys_file:
            raise ValueError(f"texts_per_second_per_key is for keys, set api_keys_file or leave it out: {rate}")
        if burst and not rate:
            raise ValueError(f"texts_burst_per_key needs texts_per_second_per_key, set that or leave it out: {burst}")
        largest, replicas = self.max_texts_per_request, self.most_replicas
        if burst and burst < largest * replicas:
            raise ValueError(
                f"texts_burst_per_key, shared by {replicas} replicas, would never let in the largest request: "
                f"raise it to {largest * replicas}, or lower max_texts_per_request={largest}: {burst}"
            )
        return self

    @model_validator(mode="after")
    def _possible(self) -> Settings:
        if self.max_batch_tokens and self.max_queue_tokens < self.max_batch_tokens:
            raise ValueError(
                f"max_queue_tokens would keep every pass below max_batch_tokens={self.max_batch_tokens}: "
                f"raise it from {self.max_queue_tokens}"
            )
        if self.max_replicas and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas is less than replicas={self.replicas}, raise it: {self.max_replicas}")
        if self.grpc_port == self.port:
            raise ValueError(f"grpc_port is the port of HTTP too, choose another: {self.grpc_port}")
        if self.metrics_port and self.metrics_port == self.grpc_port and self.metrics_host == self.host:
            raise ValueError(f"metrics_port is the port of gRPC too, choose another: {self.metrics_port}")
        if self.metrics_port == self.port and self.metrics_host == self.host:
            raise ValueError(f"metrics_port is the port of the service too, choose another: {self.metrics_port}")
        if self.keep_text and self.feedback_store is None:
            raise ValueError("keep_text keeps texts in feedback_store: set it too")
        if self.device == "cpu" and self.precision == "fp16":
            raise ValueError("precision fp16 is for GPUs: use --precision bf16 or fp32 on a cpu")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Who wins: what is given by name, then the environment, then YAML."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def wants_spans(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's own variables say where spans go. Raises ValueError where they ask for gRPC."""

    def value(*names: str) -> str:
        return next((found for name in names if (found := environment.get(f"OTEL_{name}"))), "")

    if value("SDK_DISABLED").lower() == "true" or value("TRACES_EXPORTER") == "none":
        return False
    protocol = value("EXPORTER_OTLP_TRACES_PROTOCOL", "EXPORTER_OTLP_PROTOCOL")
    is_wanted = bool(value("EXPORTER_OTLP_TRACES_ENDPOINT", "EXPORTER_OTLP_ENDPOINT"))
    if is_wanted and protocol not in ("", "http/protobuf"):
        raise ValueError(f"OTEL_EXPORTER_OTLP_PROTOCOL: spans are sent as http/protobuf (port 4318), not: {protocol}")
    return is_wanted


def refuse_plain(given: str | list[str]) -> None:
    """Raise ValueError where a flag, or an argument in Serve's config, is a key: others can read it there."""
    entries = given.split(",") if isinstance(given, str) else given
    if any(parse_line(str(entry)) is None for entry in entries if entry):
        raise ValueError(
            "api_keys: others can read a key here, put it into HEED_API_KEYS or write its line of heed key NAME instead"
        )


def load_settings(flags: dict[str, Any], config: Path | None = None) -> Settings:
    """Settings of the flags that were given, the environment, a YAML file and the defaults, in this order.

    Raises ValueError naming the setting and what to change.
    """
    if config is not None and not config.is_file():
        raise ValueError(f"no settings file: {config}")
    refuse_plain(flags.get("api_keys", []))

    class WithFile(Settings):
        model_config = SettingsConfigDict(yaml_file=config)

    try:
        return Settings(**WithFile(**flags).model_dump())
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML ({error}): {config}") from None
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        is_told = not name or first["loc"][0] in SAID_WHOLE or first["type"] == "extra_forbidden"  # a key, misspelt
        shown = "" if is_told else f", not: {first['input']}"
        raise ValueError(f"{name}: {message}{shown}" if name else message) from None
    except ValueError:  # pydantic-settings, merging what is no mapping
        raise ValueError(f"the settings are not a mapping of names to values: {config}") from None
