"""Every setting once: name, default, help. Flags beat ``KSERVE_*`` in the environment, which beats a TOML file."""

from __future__ import annotations

import os
import tomllib
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from kserve.errors import SettingError


class Gates(BaseModel):
    """Thresholds of the gates. Shares are fractions of 1, points are score points; `docs/gates.md` explains each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    few: int = Field(8, ge=1, description="profiles that a share needs to exceed its limit; a handful holds nothing")
    columns_fewer: int = Field(0, ge=0, description="columns that the input may lack")
    size: float = Field(0.10, gt=0, description="bytes may differ from the prediction by this share")
    rows_fewer: float = Field(0.01, ge=0, description="share of profiles that may be missing")
    rows_more: float = Field(0.05, ge=0, description="share of profiles that may be added")
    removed: float = Field(0.005, ge=0, description="share of the live version's ids that may be gone")
    nulls: float = Field(0.001, ge=0, description="growth of the share of nulls in any column")
    unscored: float = Field(0.001, ge=0, description="growth of the share of unscored profiles")
    mass: float = Field(0.01, ge=0, description="growth of the share of any one score, and of the lowest scores")
    mass_first: float = Field(0.25, ge=0, description="share of any one score in a first publish")
    mean: float = Field(0.01, ge=0, description="relative change of the mean score")
    quantiles: float = Field(2.0, ge=0, description="points that p1, p50 and p99 may move")
    psi_warn: float = Field(0.1, ge=0, description="population stability index that warns")
    psi: float = Field(0.25, ge=0, description="population stability index that holds")
    ks_warn: float = Field(0.05, ge=0, description="Kolmogorov-Smirnov distance that warns")
    ks: float = Field(0.1, ge=0, description="Kolmogorov-Smirnov distance that holds")
    group_profiles: int = Field(1000, ge=1, description="profiles that a region or topic needs to be compared")
    moved: float = Field(0.01, ge=0, description="share of profiles that may move more than 5 points")
    moved_far: float = Field(0.001, ge=0, description="share of profiles that may move more than 10 points")
    remeasured: float = Field(0.02, ge=0, description="share of profiles whose other measures may move far")
    group_mean: float = Field(2.0, ge=0, description="points that the mean of a group may move beyond that of all")
    cluster: int = Field(8, ge=2, description="profiles of one region, topic, network or id range that are a cluster")
    coverage: float = Field(0.005, ge=0, description="loss of the share of profiles with a location or with topics")
    group_coverage: float = Field(0.05, ge=0, description="relative loss of profiles in a region, topic or network")
    group_growth: float = Field(0.2, ge=0, description="relative gain of profiles in a region or network")
    relocated: float = Field(0.01, ge=0, description="share of profiles that may have another location")
    retopicked: float = Field(0.05, ge=0, description="share of profiles that may have wholly other topics")
    renamed: float = Field(0.01, ge=0, description="share of profiles that may have another identity on a network")
    reconnected: float = Field(0.1, ge=0, description="share of profiles that may have wholly other influencers")
    drift_mean: float = Field(0.02, ge=0, description="relative distance of the mean from the rolling baseline")
    drift_psi: float = Field(0.1, ge=0, description="population stability index against the rolling baseline")
    drift_rows: float = Field(0.05, ge=0, description="share of the rolling baseline's profiles that may be missing")
    drift_unscored: float = Field(0.005, ge=0, description="growth of the share of unscored beyond the baseline")
    drift_mass: float = Field(0.02, ge=0, description="growth of the share at any whole point beyond the baseline")
    drift_versions: int = Field(28, ge=2, description="good versions in the rolling baseline")
    cadences: float = Field(2.0, gt=0, description="age of the scores, in cadences, at which they are stale")
    returned: float = Field(0.01, ge=0, description="share of those who had opted out that may be back")


class Watch(BaseModel):
    """What the sentinel looks for in served answers after a switch, against the window before."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float = Field(30.0, ge=0, description="seconds after a switch until a version is judged good")
    before: float = Field(300.0, gt=0, description="seconds before the switch that are the comparison")
    answers: int = Field(100, ge=1, description="served answers that a verdict needs")
    unknown: float = Field(0.05, ge=0, description="growth of the share of answers for unknown ids")
    lowest: float = Field(0.02, ge=0, description="growth of the share of answers with the lowest score")
    mean: float = Field(0.05, ge=0, description="relative change of the mean of served scores")
    eligible: float = Field(0.10, ge=0, description="change of the share of eligible answers")
    errors: float = Field(0.01, ge=0, description="growth of the share of failed answers")
    hot_moved: float = Field(0.05, ge=0, description="share of hot ids that may move more than 10 points")
    hot_ids: int = Field(10_000, ge=100, description="hot ids that are read on both versions")


class Tier(BaseModel):
    """What a key may ask for: tokens, of which a single read costs one and a batch as many as it has ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: int = Field(ge=1, le=1_000_000, description="tokens in each period")
    period: int = Field(1, ge=1, le=86_400, description="seconds of a period")
    burst: int = Field(ge=1, le=1_000_000, description="tokens that may be spent at once")
    quota: int | None = Field(None, ge=1, le=10**12, description="tokens of a UTC day; none: no daily limit")
    priority: Literal["site", "partner"] = Field("partner", description="who is served longer under overload")


TIERS = {
    "site": Tier(rate=20_000, burst=40_000, priority="site"),
    "partner": Tier(rate=200, burst=2_000, quota=2_000_000),
    "developer": Tier(rate=10, burst=100, quota=20_000),
}
"""The tiers there are without any setting; the last is what Klout gave to every developer in 2011."""


class Failures(BaseModel):
    """Failed authentications that an address may have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: int = Field(10, ge=1, description="failures in each period")
    period: int = Field(60, ge=1, description="seconds of a period")
    burst: int = Field(20, ge=1, description="failures at once")


class Shedding(BaseModel):
    """When requests are turned away so that the others are answered in time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on: bool = Field(True, description="turn requests away under overload")
    delay: float = Field(0.005, gt=0, description="seconds that a request may wait for the event loop")
    interval: float = Field(0.1, gt=0, description="seconds that the delay must last before requests are turned away")
    retry_after: int = Field(2, ge=1, description="seconds, at least, after which those turned away may come back")


AnyPlace = TypeVar("AnyPlace", bound="Place")

MODELS = {
    "2011-10": {
        "mass": 0.03,
        "mean": 0.6,
        "quantiles": 25.0,
        "psi_warn": 5.0,
        "psi": 10.0,
        "ks_warn": 0.7,
        "ks": 0.8,
        "moved": 1.0,
        "moved_far": 0.95,
        "remeasured": 1.0,
        "group_mean": 12.0,
        "drift_mean": 0.6,
        "drift_psi": 10.0,
    }
}
"""Model changes that may be declared, with the thresholds that they need: here that of 26 October 2011."""


class Place(BaseSettings):
    """Where everything is: what commands need that have to work although another setting is wrong."""

    model_config = SettingsConfigDict(env_prefix="KSERVE_", extra="ignore", frozen=True)

    data: Path = Field(Path("data"), description="directory of the snapshots")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before the environment before the file named by ``KSERVE_CONFIG`` (default ``kserve.toml``)."""
        file = TomlConfigSettingsSource(settings_cls, toml_file=os.environ.get("KSERVE_CONFIG", "kserve.toml"))
        return init_settings, env_settings, file


class Settings(Place):
    """The settings of every command and of the server. ``docs/settings.md`` lists them."""

    model_config = SettingsConfigDict(
        env_nested_delimiter="__", extra="forbid", nested_model_default_partial_update=True
    )

    verify_at_open: Literal["structure", "full"] = Field(
        "structure", description="what a reader checks before it serves a version: its structure, or every checksum too"
    )
    warm: bool = Field(True, description="map all pages of a new version before switching to it")
    max_rejects: int = Field(0, ge=0, description="rows that a build may refuse before it fails")
    require_manifest: bool = Field(True, description="hold a version whose input had no manifest of the pipeline")
    golden: Path | None = Field(None, description="CSV of golden profiles: profile_id, low, high")
    cadence: float = Field(24.0, gt=0, description="hours between two snapshots")
    gates: Gates = Field(Gates(), description="thresholds of the gates")
    models: dict[str, dict[str, float]] = Field(MODELS, description="thresholds of model changes that may be declared")
    stage: bool = Field(True, description="let every process open and warm a version before it is announced")
    stage_timeout: float = Field(120.0, gt=0, description="seconds until every process must have staged a version")
    watch: Watch = Field(Watch(), description="what the sentinel looks for after a switch")
    sentinel: bool = Field(True, description="let servers watch what they serve, and roll back")
    signing_key: Path | None = Field(None, description="private key that signs manifests and orders")
    trusted_keys: Path | None = Field(None, description="public key, or folder of them, that readers trust")
    by: str | None = Field(None, description="who acts, in the log")
    public_url: str | None = Field(None, description="address of this site in feeds and webhooks")
    webhook_private: bool = Field(False, description="allow webhooks to private addresses")
    console: bool = Field(True, description="serve the console, for those who have a key for it")
    host: str = Field("127.0.0.1", description="address to serve on")
    port: int = Field(8080, ge=0, le=65535, description="port to serve on; 0 lets the system choose")
    workers: int = Field(0, ge=0, le=200, description="worker processes; 0: as many as cores")
    admin_host: str = Field("127.0.0.1", description="address of the metrics, pages and console")
    admin_port: int = Field(8081, ge=0, le=65535, description="port of the metrics, pages and console; 0: any free one")
    open: bool = Field(False, description="answer without a key, whoever asks")
    compiled: bool = Field(True, description="answer plain requests for scores in compiled code")
    tiers: dict[str, Tier] = Field(TIERS, description="what keys of each tier may ask for")
    failures: Failures = Field(Failures(), description="failed authentications that an address may have")
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = Field(
        (), description="networks of proxies whose X-Forwarded-For names the client"
    )
    redis: str | None = Field(None, description="Redis or Valkey through which the hosts of a fleet share limits")
    redis_cluster: bool = Field(False, description="the Redis is a cluster")
    redis_timeout: float = Field(0.25, gt=0, description="seconds that Redis may take, in the background")
    hosts: int = Field(1, ge=1, description="hosts of the fleet, at least, when Redis cannot be asked")
    shedding: Shedding = Field(Shedding(), description="when requests are turned away")
    max_connections: int = Field(10_000, ge=1, description="open connections of one worker")
    batch_limit: int = Field(1000, ge=1, le=100_000, description="ids in one batch request")
    body_limit: int = Field(1 << 20, ge=1024, description="bytes of one request body")
    header_timeout: float = Field(10.0, gt=0, description="seconds until a request's headers must be whole")
    body_timeout: float = Field(10.0, gt=0, description="seconds until a request's body must be whole")
    send_timeout: float = Field(30.0, gt=0, description="seconds that a client may take to read an answer")
    keepalive_timeout: float = Field(75.0, gt=0, description="seconds that an idle connection is kept open")
    drain_timeout: float = Field(30.0, ge=0, description="seconds that SIGTERM gives requests in progress")
    cache_seconds: int = Field(60, ge=0, description="Cache-Control max-age of answers that hold for one version")

    @field_validator("tiers")
    @classmethod
    def _beside_ours(cls, given: dict[str, Tier]) -> dict[str, Tier]:
        return TIERS | given


def load(**flags: Any) -> Settings:
    """The settings in force; a flag that is None was not given. Raises SettingError naming the first bad one."""
    return _load(Settings, flags)


def directory(data: Path | None) -> Path:
    """The directory of the snapshots in force, whatever the other settings are; None: no flag was given.

    Raises SettingError when no flag was given and the file cannot be read.
    """
    return _load(Place, {}).data if data is None else data


def _load(kind: type[AnyPlace], flags: dict[str, Any]) -> AnyPlace:
    named = os.environ.get("KSERVE_CONFIG")
    if named is not None and not Path(named).is_file():
        raise SettingError(f"KSERVE_CONFIG: there is no file {named}")
    try:
        return kind(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingError(f"setting {name}: {first['msg']}, got {first['input']!r}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{named or 'kserve.toml'}: not TOML: {error}") from None
