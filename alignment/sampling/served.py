"""Who draws a policy's answers while it learns, by settings: this process or a server. Importable without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignment.settings import Settings, execution, place

if TYPE_CHECKING:
    from alignment.sampling.drawer import Drawer


class Server(Settings):
    """A vLLM server that draws the answers that are learned from; held-out prompts are answered here in any case."""

    url: str | None = place(
        "http://host:port of a vLLM server that is handed the policy's weights and draws; null draws here",
        pattern=r"^http://([^\s/:@?#]+|\[[0-9a-f:]+\]):[0-9]+$",
    )
    group_port: int = execution("port of this machine at which the server fetches the weights", ge=1, le=65535)
    timeout_s: float = execution("seconds without an answer after which a request is given up", gt=0)
    retries: int = execution("further attempts at a draw for which there was no server, with growing pauses", ge=0)


def open_drawer(server: Server, *, stop_ids: tuple[int, ...], pad_id: int, device: str) -> Drawer:
    """The one sampler, or the server. Raises :class:`UserError` where that does not answer."""
    from alignment.sampling.drawer import OwnDrawer

    if server.url is None:
        return OwnDrawer(stop_ids, pad_id)
    from alignment.sampling.vllm import VLLMDrawer

    drawer = VLLMDrawer(
        server.url,
        group_port=server.group_port,
        timeout_s=server.timeout_s,
        retries=server.retries,
        stop_ids=stop_ids,
        device=device,
    )
    drawer.open()
    return drawer
