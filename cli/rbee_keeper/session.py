"""What one run of the keeper holds: flags, configuration, the two streams, signals, and the queen it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rbee_keeper.error_lines import ErrorContext
from rbee_keeper.failures import KeeperFailure
from rbee_keeper.interrupts import Interrupts
from rbee_keeper.terminal import Terminal

if TYPE_CHECKING:
    from rbee.core.settings import Settings
    from rbee_keeper.queen_connection import QueenConnection

DEFAULT_QUEEN_PORT = 8080


@dataclass
class GlobalOptions:
    """The global flags that choose configuration and queen, as given."""

    config: str | None = None
    queen_url: str | None = None


@dataclass
class Session:
    """The state of one command; everything costly is made when it is first asked for."""

    environ: Mapping[str, str]
    terminal: Terminal
    interrupts: Interrupts = field(default_factory=Interrupts)
    options: GlobalOptions = field(default_factory=GlobalOptions)
    as_json: bool = False
    node: str = "localhost"
    """The node this command is about, for the texts of errors."""
    _queen: QueenConnection | None = None

    @cached_property
    def settings(self) -> Settings:
        """The configuration.

        Raises:
            KeeperFailure: it cannot be read, or a value is wrong.
        """
        from rbee.core.settings import SettingsError, load_settings

        try:
            return load_settings(
                self.environ,
                config=self.options.config,
                overrides={"queen": {"url": self.options.queen_url}},
            )
        except SettingsError as error:
            raise KeeperFailure(str(error), code="INVALID_REQUEST") from None

    @cached_property
    def api_key(self) -> str | None:
        """The fleet key, if one is configured.

        Raises:
            KeeperFailure: the key file is missing, too open or malformed.
        """
        from rbee.core.settings import SettingsError, load_api_key

        try:
            return load_api_key(self.settings, self.environ)
        except SettingsError as error:
            raise KeeperFailure(str(error), code="INVALID_REQUEST") from None

    @cached_property
    def queen_url(self) -> str:
        """Where the queen is: as configured, else where ``queen start`` left one running, else the default.

        Raises:
            KeeperFailure: the configured URL cannot be a queen's.
        """
        from rbee_keeper.background_queen import running_queen
        from rbee_keeper.parameters import queen_url_problem

        queen = self.settings.queen
        if "url" not in queen.model_fields_set:
            started = running_queen(self.settings.run_dir)
            if started is not None:
                return started.url
        problem = queen_url_problem(queen.url)
        if problem:
            raise KeeperFailure(f"queen.url '{queen.url}' {problem}", code="INVALID_REQUEST")
        return queen.url.rstrip("/")

    def queen(self, *, prestart_hive: bool = False, may_start: bool = True) -> QueenConnection:
        """The queen, found or (on loopback, unless ``may_start`` is False) started for this command.

        Args:
            prestart_hive: a queen started now brings its local hive up at once.

        Raises:
            KeeperFailure: there is none and none can be started.
            InvalidApiKey: it does not accept the configured key.
        """
        from rbee_keeper.queen_connection import connect

        if self._queen is None:
            self._queen = connect(self, prestart_hive=prestart_hive, may_start=may_start)
        return self._queen

    def close(self) -> None:
        """End what this command started; safe to call again."""
        self.interrupts.begin_cleanup()
        queen, self._queen = self._queen, None
        if queen is not None:
            queen.close()

    def error_context(self) -> ErrorContext:
        """What the texts of errors need to know about this run; never fails."""
        try:
            url, config = self.queen_url, self.settings.source
        except KeeperFailure:
            url, config = f"http://127.0.0.1:{DEFAULT_QUEEN_PORT}", None
        return ErrorContext(self.node, urlsplit(url).hostname or url, str(config or self.user_config))

    @property
    def user_config(self) -> Path:
        """Where the user's own config file belongs, whether or not it exists."""
        home = Path(self.environ.get("HOME") or "~").expanduser()
        return Path(self.environ.get("XDG_CONFIG_HOME") or home / ".config") / "rbee" / "config.toml"

    @property
    def log_file(self) -> Path:
        """Where an unexpected failure of the keeper is written down; never fails."""
        try:
            return self.settings.log_dir / "rbee-keeper.log"
        except KeeperFailure:
            home = self.environ.get("RBEE_HOME") or Path(self.environ.get("HOME") or "~") / ".rbee"
            return Path(home).expanduser() / "logs" / "rbee-keeper.log"
