"""A vLLM server in the sampler's place: it is handed the policy's weights, and draws answers to prompts given as ids.

It is spoken to through TRL's client, which needs the package ``vllm`` beside the trainer too: weights travel from GPU
to GPU over NCCL, everything else over HTTP. The server rounds differently from the policy, and what it draws depends on
what else it computes at the moment: its log-probabilities are near the policy's, and an answer does not come again bit
for bit. A run that goes on from a checkpoint goes on with other answers.

Where the server has a key, it is read from the environment (``VLLM_API_KEY``) on both sides, and written nowhere.

In one process with the trainer vLLM is not offered: TRL's ``VLLMGeneration`` has one seed for all prompts of a call,
with which all answers to a prompt would be the same, and merges adapters into the weights that are being trained.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import numpy as np
import requests
import torch
from requests.adapters import HTTPAdapter
from torch import nn

from alignment import console, signals
from alignment.errors import UserError, without_secrets
from alignment.gemma.roles import multiplied_out
from alignment.sampling.noise import streams
from alignment.sampling.sampler import Answer

KEY = "VLLM_API_KEY"
"""What vLLM takes its key from too. It asks for it under ``/v1`` alone, and not where weights are taken."""
AT_ONCE = 64
"""Prompts under way at the same time, each with all of its answers."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before the first further attempt, and between two at most; each pause is twice as long as the one before."""
START = (
    "Start it with `VLLM_SERVER_DEV_MODE=1 vllm serve <the policy's folder> --host 127.0.0.1 --port 8000 "
    """--generation-config vllm --logprobs-mode processed_logprobs --weight-transfer-config '{"backend": "nccl"}'`."""
)
WORTH_RETRYING = (408, 429)
"""Statuses below 500 after which the same request may succeed."""
SHOWN = 300
"""Characters of a server's message that an error repeats."""

Result = TypeVar("Result")


class _Ask(NamedTuple):
    """A prompt. Its n-th answer is drawn with ``seed + n``: so vLLM counts within a request."""

    ids: list[int]
    seed: int


class _Drawn(NamedTuple):
    """One answer, as :class:`~alignment.sampling.sampler.Answer` has it."""

    ids: list[int]
    logprobs: list[float]
    finished: bool


class VLLMDrawer:
    """A :class:`~alignment.sampling.drawer.Drawer` on a server at ``url`` (``http://host:port``).

    Of several processes the main one speaks to it, for all of them. Where the server does not answer within
    ``timeout_s``, breaks off or fails, all answers of the draw are dropped, and it is begun anew, ``retries`` times at
    most: connected again, weights handed over again. ``group_port`` is where the server fetches the weights.
    Without ``stop_ids`` every answer has all of its tokens.
    """

    exact = False

    def __init__(
        self, url: str, *, group_port: int, timeout_s: float, retries: int, stop_ids: Sequence[int], device: str
    ) -> None:
        self.url, self.group_port, self.timeout_s, self.retries = url.rstrip("/"), group_port, timeout_s, retries
        self.stop_ids, self.device = tuple(stop_ids), device
        self._client: Any = None
        self._instance: Any = None
        self._held: list[int] | None = None
        self._announced: list[tuple[str, str, list[int]]] = []
        self.failures = 0
        """Draws, and attempts to connect, that were dropped."""

    def open(self) -> None:
        """Find the server, before anything is done that would be lost without it.

        Raises :class:`UserError` where there is none, or one that cannot take weights or would give other
        log-probabilities than those of what it draws.
        """
        if self.device != "cuda":
            raise UserError(
                f"server.url={self.url}: weights travel from GPU to GPU, and the policy is on the {self.device}",
                remedy="Say server.url=null, or engine.device=cuda where there is one.",
            )
        if console.is_main_process():
            self._persist(self._connected)

    def close(self) -> None:
        """Leave the server; the next draw begins with a new connection and all weights."""
        client, self._client, self._held = self._client, None, None
        if client is not None:
            client.close_communicator()
            client.session.close()

    def draw(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        prompt_ids: Sequence[str],
        *,
        samples: int,
        temperature: float,
        max_new_tokens: int,
        seed: int,
    ) -> list[Answer]:
        """As the protocol says. Raises :class:`UserError` where the server is gone for good or gives nonsense."""
        assert len(prompts) == len(prompt_ids), "every prompt has an id"
        # vLLM's seeds are 63 bits, and the number of the answer is still to be added.
        seeds = streams(seed, prompt_ids, [0] * len(prompts)) >> np.uint64(2)
        asks = [_Ask(list(ids), int(key)) for ids, key in zip(prompts, seeds, strict=True)]
        shares = _of_all(asks)
        drawn: list[list[_Drawn]] | UserError = []
        if console.is_main_process():
            every = [ask for share in shares for ask in share]
            try:
                drawn = self._persist(lambda: self._rollout(model, every, samples, temperature, max_new_tokens))
            except UserError as error:
                # Raised below, in every process: none is left waiting for answers that do not come.
                drawn = error
        drawn = _from_main(drawn)
        if isinstance(drawn, UserError):
            raise drawn
        first = sum(len(share) for share in shares[: _rank()])
        mine = drawn[first : first + len(asks)]
        return [Answer(place, sample, *one) for place, some in enumerate(mine) for sample, one in enumerate(some)]

    def _persist(self, work: Callable[[], Result]) -> Result:
        """The result of ``work``, in as many attempts as are allowed."""
        pause = FIRST_PAUSE
        for attempt in range(self.retries + 1):
            try:
                return work()
            except requests.RequestException as error:
                problem = _line(str(error))
            self.close()
            self.failures += 1
            if attempt < self.retries:
                console.say(f"  {self.url} fails ({problem}); again in {pause:g} s", style="yellow")
                signals.pause(pause, f"while {self.url} did not answer")
                pause = min(LONGEST_PAUSE, 2 * pause)
        raise UserError(
            f"server.url={self.url}: no answers in {self.retries + 1} attempt{'s' if self.retries else ''}",
            cause=f"The last time: {problem}",
            remedy=f"{START} Then give the same command again: it goes on from the last checkpoint. server.timeout_s "
            "and server.retries say how long it is waited for.",
        )

    # ── the connection ───────────────────────────────────────────────────────────────────────────

    def _connected(self) -> Any:
        """The client; a new one where there is none yet, or where the server is another than it was."""
        if self._client is not None and self._client.get_server_info().get("instance_id") != self._instance:
            self.close()
        if self._client is None:
            self._client, self._instance = self._connect()
        return self._client

    def _connect(self) -> tuple[Any, Any]:
        session = self._session()
        # TRL's client looks without a bound of time whether there is anybody.
        for path in ("/health", "/v1/models"):
            session.get(self.url + path)
        try:
            client = _client(self.url, self.group_port, session)
            info = client.get_server_info()
            mode, transfer = info["model_config"]["logprobs_mode"], info["weight_transfer_config"]
        except ImportError as error:
            raise UserError(
                f"server.url={self.url}: {error}",
                cause="The trainer hands weights over through vLLM's own code.",
                remedy='`pip install "alignment[vllm]"` brings it, in the version that the server has; '
                "server.url=null draws without it.",
            ) from None
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"server.url={self.url}: no vLLM server answers here ({error!r})", remedy=START) from error
        self._check(mode, transfer)
        if urlsplit(self.url).hostname in ("127.0.0.1", "localhost"):
            # vLLM would offer the weights at this machine's address in the network.
            os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
        try:
            client.init_communicator(device=self.device)
        except RuntimeError as error:
            raise requests.ConnectionError(
                f"trainer and server did not meet at port {self.group_port} (server.group_port): {error}"
            ) from error
        return client, info.get("instance_id")

    def _session(self) -> requests.Session:
        """What every request goes through, with the key where there is one."""
        session = requests.Session()
        session.mount("http://", _Bounded(self.url, self.timeout_s))
        key = os.environ.get(KEY, "").strip()
        if not all("!" <= character <= "~" for character in key):
            raise UserError(f"{KEY} holds what no key can hold", remedy=f"`export {KEY}=…` anew, or `unset {KEY}`.")
        if key:
            session.headers["Authorization"] = f"Bearer {key}"
        return session

    def _check(self, mode: str, transfer: Any) -> None:
        if mode != "processed_logprobs":
            raise UserError(
                f"server.url={self.url}: the server runs with --logprobs-mode {mode}",
                cause="Its numbers would not be the log-probabilities, at the temperature, of what it draws; importance"
                " weights formed with them are wrong.",
                remedy=START,
            )
        if transfer is None:
            raise UserError(f"server.url={self.url}: the server takes no weights", remedy=START)

    # ── a draw ───────────────────────────────────────────────────────────────────────────────────

    def _rollout(
        self, model: nn.Module, asks: Sequence[_Ask], samples: int, temperature: float, max_new_tokens: int
    ) -> list[list[_Drawn]]:
        """The answers to each prompt by the policy as it is now, all of them or none."""
        client = self._connected()
        self._hand_over(client, model)

        def one(ask: _Ask) -> list[_Drawn]:
            told = self._generate(client, ask, samples, temperature, max_new_tokens)
            return [self._read(*some, max_new_tokens) for some in told]

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(one, asks))

    def _hand_over(self, client: Any, model: nn.Module) -> None:
        """The weights that act in ``model``, by their names in the plain model, if they are others than before."""
        marks = _marks(model)
        if marks == self._held:
            return
        # What is announced stays the same from draw to draw; to list it, adapters have to be multiplied out.
        self._announced = self._announced or [
            (name, str(weight.dtype).removeprefix("torch."), list(weight.shape))
            for name, weight in multiplied_out(model)
        ]
        client.update_named_params(self._announced, ((name, weight.detach()) for name, weight in multiplied_out(model)))
        # What it remembers of prompts is of the weights before.
        client.reset_prefix_cache()
        self._held = marks

    def _generate(
        self, client: Any, ask: _Ask, samples: int, temperature: float, max_new_tokens: int
    ) -> list[tuple[list[int], list[list[float | None]], list[list[int]]]]:
        """Of each answer: its ids, and by token log-probabilities and the ids that they are of."""
        try:
            told = client.generate(
                [ask.ids],
                n=samples,
                temperature=temperature,
                top_p=1.0,
                top_k=0,
                max_tokens=max_new_tokens,
                logprobs=0,
                # Stop ids are ours alone: those of the server's tokenizer and generation config are ignored.
                generation_kwargs={"seed": ask.seed, "stop_token_ids": list(self.stop_ids), "ignore_eos": True},
            )
            found = list(zip(told["completion_ids"], told["logprobs"], told["logprob_token_ids"], strict=True))
        except (requests.RequestException, UserError):
            raise
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._nonsense(f"its reply has not the form that TRL reads ({error!r})") from error
        if told["prompt_ids"] != [ask.ids] or len(found) != samples:
            raise self._nonsense(f"asked for {samples} answers to one prompt, it gave {len(found)}, or to another one")
        return found

    def _read(
        self, ids: list[int], logprobs: list[list[float | None]], of: list[list[int]], max_new_tokens: int
    ) -> _Drawn:
        """vLLM leaves the stop id out of the text alone: ``ids`` end with it, and it has a log-probability."""
        drawn = [
            values[names.index(one)] if one in names else None
            for one, values, names in zip(ids, logprobs, of, strict=False)
        ]
        kept = [value for value in drawn if value is not None and math.isfinite(value)]
        if not len(ids) == len(kept) == len(logprobs):
            raise self._nonsense(f"of {len(ids)} tokens it gave {len(kept)} log-probabilities")
        finished = bool(ids) and ids[-1] in self.stop_ids
        whole = finished or len(ids) == max_new_tokens
        if not whole or len(ids) > max_new_tokens or any(one in self.stop_ids for one in ids[:-1]):
            raise self._nonsense(
                f"an answer of {len(ids)} tokens neither ends at its first stop id nor has all {max_new_tokens}"
            )
        return _Drawn(ids, kept, finished)

    def _nonsense(self, problem: str) -> UserError:
        return UserError(
            f"server.url={self.url}: {problem}",
            cause="Ratios and rewards need every token that was drawn, with its log-probability.",
            remedy=f"{START} Its version has to be one that TRL supports.",
        )


class _Bounded(HTTPAdapter):
    """Gives every request up after ``timeout_s`` without a byte, and tells failures (raised as a connection's) from
    refusals (:class:`UserError`)."""

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__(pool_maxsize=AT_ONCE)
        self.url, self.timeout_s = url, timeout_s

    def send(self, request: Any, *args: Any, **more: Any) -> requests.Response:
        response = super().send(request, *args, **more | {"timeout": self.timeout_s})
        if response.status_code == 200:
            return response
        told = f"{request.path_url}: status {response.status_code}: {_line(response.text)}"
        if response.status_code >= 500 or response.status_code in WORTH_RETRYING:
            raise requests.ConnectionError(told)
        remedy = f"Set {KEY} to the key that the server was given." if response.status_code == 401 else START
        raise UserError(f"server.url={self.url} refuses {told}", remedy=remedy)


def _client(url: str, group_port: int, session: requests.Session) -> Any:
    """TRL's client, which speaks through ``session`` from the first request on that asks for a key.

    Its own has none, and repeats every request by itself, also the one that announces weights.
    """
    from trl.generation.vllm_client import VLLMClient

    class Client(VLLMClient):
        def _get(self, url: str, **more: Any) -> dict:
            if self.session is not session:
                self.session.close()
                self.session = session
            return super()._get(url, **more)

    return Client(base_url=url, group_port=group_port)


def _marks(model: nn.Module) -> list[int]:
    """A number for each weight, of all its bits: others after every step of an optimiser."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    weights = [weight.detach() for weight in model.parameters()]
    return torch.stack([one.view(bits[one.element_size()]).sum(dtype=torch.int64) for one in weights]).tolist()


def _line(text: str) -> str:
    """One line, not long, and without the keys that servers repeat."""
    line = " ".join(without_secrets(text).split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


# ── processes ────────────────────────────────────────────────────────────────────────────────────


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _of_all(asks: list[_Ask]) -> list[list[_Ask]]:
    """What each process asks."""
    if not torch.distributed.is_initialized():
        return [asks]
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, asks)
    return shares


def _from_main(told: Result) -> Result:
    """What the main process has."""
    if not torch.distributed.is_initialized():
        return told
    carried = [told]
    torch.distributed.broadcast_object_list(carried, src=0)
    return carried[0]
