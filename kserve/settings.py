"""Every setting once: name, default, help. Flags beat ``KSERVE_*`` in the environment, which beats a TOML file."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from kserve.errors import SettingError


class Settings(BaseSettings):
    """The settings of every command and of the server. ``docs/settings.md`` lists them."""

    model_config = SettingsConfigDict(env_prefix="KSERVE_", extra="forbid", frozen=True)

    data: Path = Field(Path("data"), description="directory of the snapshots")
    verify_at_open: Literal["structure", "full"] = Field(
        "structure", description="what a reader checks before it serves a version: its structure, or every checksum too"
    )
    warm: bool = Field(True, description="map all pages of a new version before switching to it")
    max_rejects: int = Field(0, ge=0, description="rows that a build may refuse before it fails")
    host: str = Field("127.0.0.1", description="address to serve on")
    port: int = Field(8080, ge=0, le=65535, description="port to serve on; 0 lets the system choose")
    batch_limit: int = Field(1000, ge=1, le=100_000, description="ids in one batch request")
    body_limit: int = Field(1 << 20, ge=1024, description="bytes of one request body")
    header_timeout: float = Field(10.0, gt=0, description="seconds until a request's headers must be whole")
    body_timeout: float = Field(10.0, gt=0, description="seconds until a request's body must be whole")
    send_timeout: float = Field(30.0, gt=0, description="seconds that a client may take to read an answer")
    keepalive_timeout: float = Field(75.0, gt=0, description="seconds that an idle connection is kept open")
    drain_timeout: float = Field(30.0, ge=0, description="seconds that SIGTERM gives requests in progress")
    cache_seconds: int = Field(60, ge=0, description="Cache-Control max-age of answers that hold for one version")

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


def load(**flags: Any) -> Settings:
    """The settings in force; a flag that is None was not given. Raises SettingError naming the first bad one."""
    named = os.environ.get("KSERVE_CONFIG")
    if named is not None and not Path(named).is_file():
        raise SettingError(f"KSERVE_CONFIG: there is no file {named}")
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingError(f"setting {name}: {first['msg']}, got {first['input']!r}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{named or 'kserve.toml'}: not TOML: {error}") from None
