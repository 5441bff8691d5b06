"""What `serve` can be told: a configuration of `generate`, which fills in what a request leaves out, and its limits."""

import ipaddress
import re
from dataclasses import dataclass

from ospnext_ms.config.checks import require, require_at_least
from ospnext_ms.config.generate import AdapterSection, GenerateConfig
from ospnext_ms.config.sections import check_video_size


@dataclass(frozen=True, kw_only=True)
class NamedAdapterSection(AdapterSection):
    """An adapter that a request may ask for by its name."""

    name: str


@dataclass(frozen=True, kw_only=True)
class ServeSection:
    """Where it listens and how much it takes.

    Any `address` but the loopback's needs a `token`, which every request has to bring. `queue` jobs wait at most.
    `sizes` are the [width, height] that may be asked for beside the configuration's own: each is compiled once.
    `max_frames` (null: those of `video`), `max_steps`, `prompt_characters` and `body_bytes` bound a request; `keep`
    finished jobs stay on disk, those that finished first go first.
    """

    address: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    queue: int = 8
    keep: int = 100
    sizes: tuple[tuple[int, int], ...] = ()
    max_frames: int | None = None
    max_steps: int = 100
    prompt_characters: int = 2000
    body_bytes: int = 65536
    adapters: tuple[NamedAdapterSection, ...] = ()

    def __post_init__(self):
        require(0 <= self.port <= 65535, f"port is {self.port}; it must be from 0 (a free one) to 65535")
        require_at_least(self, 1, "queue", "keep", "max_frames", "max_steps", "prompt_characters", "body_bytes")
        names = [adapter.name for adapter in self.adapters]
        require(len(set(names)) == len(names), f"adapters: names must differ, these are {names}")
        require(self.token is None or len(self.token) >= 16, "token is shorter than 16 characters; make one by "
                "python -c 'import secrets; print(secrets.token_urlsafe())'")
        require(self.token is None or re.fullmatch(r"[A-Za-z0-9_.~-]+", self.token),
                "token may hold letters, digits and - _ . ~ (it goes into addresses and cookies)")
        require(self.is_loopback or self.token is not None,
                f"address is {self.address}, which others reach too; give a token, or the address 127.0.0.1")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return self.address == "localhost"


@dataclass(frozen=True, kw_only=True)
class ServeConfig(GenerateConfig):
    """One run of `serve`. Jobs and videos lie in `output_dir`."""

    serve: ServeSection = ServeSection()

    def __post_init__(self):
        super().__post_init__()
        for width, height in self.serve.sizes:
            check_video_size(height, width, self.model.dit.patch_size)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(width, height) that may be asked for, the configuration's own first."""
        return list(dict.fromkeys([(self.video.width, self.video.height), *self.serve.sizes]))

    @property
    def max_frames(self) -> int:
        """Most frames of a video."""
        return self.serve.max_frames or self.video.frames
