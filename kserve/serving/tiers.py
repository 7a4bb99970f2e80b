"""The tiers in force: those of the settings, and what kserve.toml makes of them while the server runs."""

from __future__ import annotations

import os
from pathlib import Path

import structlog

from kserve.errors import SettingError
from kserve.settings import Failures, Settings, Tier, load

log = structlog.get_logger("kserve.tiers")


class Tiers:
    """Limits by name of tier. ``names`` only grows: a tier's place in it is its number, for as long as this lives."""

    def __init__(self, settings: Settings) -> None:
        self.names = sorted(settings.tiers)
        self.failures: Failures = settings.failures
        self._tiers = dict(settings.tiers)
        self._file = Path(os.environ.get("KSERVE_CONFIG", "kserve.toml")).absolute()
        self._seen = self._content()

    def get(self, name: str) -> Tier | None:
        """The limits of a tier; None when there is no such tier."""
        return self._tiers.get(name)

    def refresh(self) -> set[str]:
        """Take what has changed in kserve.toml; the names of the tiers that are new or other than before.

        A file that cannot be used changes nothing, and neither does one from which a tier is gone: keys may have it.
        """
        content = self._content()
        if content == self._seen:
            return set()
        self._seen = content
        try:
            found = load()
        except (SettingError, OSError) as error:
            log.error("tiers stay as they are", error=str(error))
            return set()
        changed = {name for name, tier in found.tiers.items() if self._tiers.get(name) != tier}
        self.names += sorted(changed - set(self.names))
        self._tiers |= found.tiers
        self.failures = found.failures
        log.info("settings read again", tiers=sorted(changed))
        return changed

    def _content(self) -> bytes | None:
        """Of the file; its times would tell less."""
        try:
            return self._file.read_bytes()
        except OSError:
            return None
