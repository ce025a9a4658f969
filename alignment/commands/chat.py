"""Talk to a model in the terminal, or ask it one thing with prompt=…."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignment import console
from alignment.artifacts import Artifact
from alignment.settings import Settings as StrictSettings
from alignment.settings import execution, identity, reference, text
from alignment.store import Store
from alignment.training.engine import EngineSettings

if TYPE_CHECKING:
    from alignment.sampling.sampler import Sampler
    from alignment.training.policies import Policy

LEAVE = ("/quit", "/exit")
HELP = "Enter sends; /new begins a new conversation, /quit or Ctrl-D leaves."


class Settings(StrictSettings):
    """``stage=chat``."""

    model: str = reference("the model to talk to")
    prompt: str | None = text("one question, answered at once; null opens a conversation")
    system: str | None = text("an instruction that heads the first user turn (Gemma has no system role); null for none")
    temperature: float = identity("at which answers are drawn; 0 takes the likeliest token", ge=0, le=5)
    top_p: float = identity("the smallest set of tokens with this share of the probability", gt=0, le=1)
    max_new_tokens: int = identity("length of an answer at most", ge=1)
    seed: int = identity("of the answers", ge=0)
    engine: EngineSettings = execution("where and how it runs")


def run(settings: Settings, inputs: dict[str, Artifact], store: Store) -> None:
    """Answer ``prompt``, or read turns until the user leaves."""
    from alignment.sampling.sampler import Sampler
    from alignment.training import policies
    from alignment.training.engine import resolve

    policy = policies.open_policy(inputs["model"], resolve(settings.engine))
    sampler = Sampler(policy.model, stop_ids=policy.stop_ids, pad_id=policy.tokenizer.pad_id)
    if settings.prompt is not None:
        talk = Talk(settings, policy, sampler)
        console.console().print(talk.answer(settings.prompt), markup=False, soft_wrap=True)
        return
    console.say(f"[dim]{console.plain(inputs['model'].path)}  {HELP}[/dim]")
    talk = Talk(settings, policy, sampler)
    while True:
        try:
            said = console.console().input("[bold]you  [/bold] ").strip()
        except EOFError:
            console.say()
            return
        if said in LEAVE:
            return
        if said == "/new":
            talk = Talk(settings, policy, sampler)
            console.say("[dim]a new conversation[/dim]")
        elif said:
            console.console().print(f"model  {talk.answer(said)}", style="green", markup=False, soft_wrap=True)


class Talk:
    """One conversation. Ids that were drawn stay as they were drawn; only the next turn is added."""

    def __init__(self, settings: Settings, policy: Policy, sampler: Sampler) -> None:
        self.settings, self.policy, self.sampler = settings, policy, sampler
        self.ids: list[int] = []
        self.drawn: list[int] = []
        self.turns = 0

    def answer(self, said: str) -> str:
        """The model's answer to what the user says next."""
        from alignment.chat.render import answer_text, continue_ids, prompt_ids
        from alignment.chat.types import messages

        tokenizer = self.policy.tokenizer
        if not self.ids:
            system = (("system", self.settings.system),) if self.settings.system else ()
            self.ids = prompt_ids(messages(*system, ("user", said)), tokenizer)
        else:
            self.ids = continue_ids(self.ids, self.drawn, said, tokenizer)
        room = max(1, min(self.settings.max_new_tokens, self.policy.tokens_limit - len(self.ids)))
        (answer,) = self.sampler.draw(
            [self.ids],
            [f"turn {self.turns}"],
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            max_new_tokens=room,
            seed=self.settings.seed,
        )
        self.turns += 1
        self.drawn = answer.ids
        return answer_text(answer.ids, tokenizer)
