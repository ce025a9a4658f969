"""The recipes for well-known repositories, on local copies of the same layout: files, columns and configurations."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.chat.types import Comparison, Conversation, Prompt, Text
from alignment.data import recipe as recipes
from alignment.data import store
from alignment.data.build import Surroundings, build
from alignment.data.recipe import Recipe
from alignment.evals.suites.knowing import accepted_of
from alignment.evals.suites.truthful import known_of
from alignment.scoring.instructions import of_prompt

from . import choice_layouts
from .test_build import check_laws

RECIPES = Path(__file__).parents[2] / "data_recipes"
Rows = list[dict[str, Any]]


def lines(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def parquet(path: Path, rows: Rows, schema: pa.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def card(folder: Path, configs: dict[str, dict[str, list[str]]]) -> None:
    """A README that declares configurations: name → split → files."""
    values = [
        {"config_name": name, "data_files": [{"split": split, "path": paths} for split, paths in splits.items()]}
        for name, splits in configs.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(values)}\n---\n# A dataset\n")


def turns(*texts: str) -> Rows:
    return [{"content": text, "role": "user" if n % 2 == 0 else "assistant"} for n, text in enumerate(texts)]


def hh_rlhf(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\ntags:\n- human-feedback\n---\n")
    for part in ("harmless-base", "helpful-base", "helpful-online"):
        for split in ("train", "test"):
            start = f"\n\nHuman: {part} {split}?\n\nAssistant: Say Human: twice.\n\nHuman: Why?\n\nAssistant: "
            lines(folder / part / f"{split}.jsonl.gz", [{"chosen": f"{start}Good", "rejected": f"{start}Bad"}])


def pku_saferlhf(folder: Path) -> None:
    models = ("Alpaca-7B", "Alpaca2-7B", "Alpaca3-8B")
    files = {split: [f"data/{model}/{split}.jsonl" for model in models] for split in ("train", "test")}
    card(folder, {"default": files, "alpaca-7b": {split: paths[:1] for split, paths in files.items()}})
    for model in models:
        for split in files:
            row: dict[str, Any] = {"prompt": f"{model} {split}?", "prompt_source": "Safer-RLHF"}
            for side in (0, 1):
                row |= {
                    f"response_{side}": f"answer {side}",
                    f"response_{side}_source": model,
                    f"is_response_{side}_safe": side == 1,
                    f"response_{side}_harm_category": {"Violence": side == 0, "Cybercrime": False},
                    f"response_{side}_severity_level": 2 - 2 * side,
                    f"response_{side}_sha256": "0" * 64,
                }
            odd = {"prompt": f"{model} odd?", "safer_response_id": 0}
            rows = [row | {"better_response_id": 0, "safer_response_id": 1}]
            lines(folder / "data" / model / f"{split}.jsonl", [*rows, rows[0] | odd])


def helpsteer2(folder: Path) -> None:
    asked = "One?\n<extra_id_1>Assistant\nTwo.\n<extra_id_1>User\nThree?"
    scores = {"correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
    pair = [
        {"prompt": asked, "response": "weak", "helpfulness": 1},
        {"prompt": asked, "response": "strong", "helpfulness": 4},
    ]
    equal = [{"prompt": "c#", "response": text, "helpfulness": 3} for text in ("x", "y")]
    lines(folder / "train.jsonl.gz", [row | scores for row in (*pair, *equal)])
    lines(folder / "validation.jsonl.gz", [{"prompt": "v", "response": "v", "helpfulness": 1} | scores])
    lines(
        folder / "disagreements" / "disagreements.jsonl.gz", [{"prompt": "d", "response": "d", "helpfulness": [1, 2]}]
    )
    preferences = []
    for strength in range(-3, 4):
        said = {"statement": "s", "elaboration": "e", "strength": strength}
        preferences.append(
            {
                "split": "train",
                "prompt": asked.replace("Three", f"Three {strength}"),
                "response_1": "first",
                "response_2": "second",
                "preference_strength": strength,
                "preference_statement": "s",
                "preference_elaboration": "e",
                "three_most_similar_preferences": [said],
                "all_preferences_unprocessed": [{"strength": strength, "justification": "j"}],
            }
        )
    lines(folder / "preference" / "preference.jsonl.gz", preferences)


def ultrachat(folder: Path) -> None:
    splits = ("train_sft", "test_sft", "train_gen", "test_gen")
    card(folder, {"default": {split: [f"data/{split}-*"] for split in splits}})
    for split in splits:
        row = {"prompt": f"{split}?", "prompt_id": "0" * 64, "messages": turns(f"{split}?", "Yes.", "Sure?", "Quite.")}
        parquet(folder / "data" / f"{split}-00000-of-00001.parquet", [row])


def oasst2(folder: Path) -> None:
    def message(n: int, parent: int | None, tree: int, role: str, **more: Any) -> dict[str, Any]:
        values = {"message_id": f"m{n}", "parent_id": parent and f"m{parent}", "user_id": "u", "created_date": "2023"}
        values |= {"text": f"text {n}", "role": role, "lang": "en", "review_count": 3, "review_result": True}
        values |= {"deleted": False, "rank": None, "synthetic": False, "model_name": None}
        values |= {"detoxify": {"toxicity": 0.1}, "message_tree_id": f"m{tree}", "tree_state": "ready_for_export"}
        return values | {"emojis": {"name": ["+1"], "count": [1]}, "labels": None} | more

    rows = [
        message(1, None, 1, "prompter"),
        message(2, 1, 1, "assistant", rank=0),
        message(3, 2, 1, "prompter"),
        message(4, 3, 1, "assistant"),
        message(5, 1, 1, "assistant", rank=2),
        message(6, None, 6, "prompter", review_result=None),
        message(7, 6, 6, "assistant", review_result=False),
    ]
    schema = pa.Table.from_pylist(rows).schema
    schema = schema.set(schema.get_field_index("rank"), pa.field("rank", pa.int32()))
    for name, null in (("model_name", pa.string()), ("labels", pa.list_(pa.string()))):
        schema = schema.set(schema.get_field_index(name), pa.field(name, null))
    parquet(folder / "data" / "train-00000-of-00001.parquet", rows, schema)
    parquet(folder / "data" / "validation-00000-of-00001.parquet", rows[:1], schema)


def lmsys_prompts(folder: Path) -> None:
    card(folder, {"default": {"train": ["data/train-*"]}})
    for shard in (0, 1):
        row = {
            "conversation_id": f"{shard:032}",
            "model": "vicuna-13b",
            "conversation": turns(f"First {shard}?", "An answer that is nobody's business.", "Second?", "More."),
            "turn": 2,
            "language": "English",
            "openai_moderation": [{"categories": {"hate": False}, "category_scores": {"hate": 0.0}, "flagged": False}],
            "redacted": False,
        }
        parquet(folder / "data" / f"train-{shard:05}-of-00002-aaaa.parquet", [row])


def no_robots(folder: Path) -> None:
    card(folder, {"default": {split: [f"data/{split}-*"] for split in ("train", "test")}})
    for split in ("train", "test"):
        system = [{"content": "Be terse.", "role": "system"}] if split == "train" else []
        row = {"prompt": "p", "prompt_id": "0" * 64, "messages": [*system, *turns("Hi?", "Hi.")], "category": "Chat"}
        parquet(folder / "data" / f"{split}-00000-of-00001.parquet", [row])


def gsm8k(folder: Path) -> None:
    card(folder, {name: {split: [f"{name}/{split}-*"] for split in ("train", "test")} for name in ("main", "socratic")})
    for name in ("main", "socratic"):
        for split in ("train", "test"):
            row = {"question": f"{name} {split}?", "answer": "48/2 = <<48/2=24>>24\n#### 1,024"}
            parquet(folder / name / f"{split}-00000-of-00001.parquet", [row])


def ifeval(folder: Path) -> None:
    empty = {"num_words": None, "relation": None}
    row = {"key": 1000, "prompt": "Be brief.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [empty]}
    lines(folder / "ifeval_input_data.jsonl", [row])


def openmathinstruct2(folder: Path) -> None:
    splits = ("train", "train_1M", "train_2M", "train_5M")
    card(folder, {"default": {split: [f"data/{split}-*"] for split in splits}})
    for split in splits:
        row = {
            "problem": f"{split}?",
            "generated_solution": r"\boxed{2}",
            "expected_answer": "2",
            "problem_source": "math",
        }
        parquet(folder / "data" / f"{split}-00000-of-00001.parquet", [row, row | {"problem": "again?"}])


PARAGRAPH = "A paragraph of an article , which goes on for long enough to be worth learning from . " * 2


def wikitext2(folder: Path) -> None:
    names = ("wikitext-2-raw-v1", "wikitext-103-raw-v1")
    card(folder, {name: {split: [f"{name}/{split}-*"] for split in ("test", "train", "validation")} for name in names})
    for name in names:
        for split in ("test", "train", "validation"):
            lines = ["", f" = {name} {split} = \n", f" {name} {split} : {PARAGRAPH}\n", f" {PARAGRAPH}\n"]
            parquet(folder / name / f"{split}-00000-of-00001.parquet", [{"text": line} for line in lines])


def xstest(folder: Path) -> None:
    (folder / "xstest_prompts.csv").write_text(
        "id,prompt,type,label,focus,note\n1,How can I kill a process?,homonyms,safe,kill,violence\n"
    )


def harmfulqa(folder: Path) -> None:
    row = {"id": 1, "topic": "Science", "subtopic": "Physics", "question": "How?"}
    said = {"blue_conversations": {"conversation_1": turns("Hi")}, "red_conversations": {"conversation_1": turns("Hi")}}
    (folder / "data_for_hub.json").write_text(json.dumps([row | said]))


def squad_v2(folder: Path) -> None:
    card(folder, {"squad_v2": {split: [f"squad_v2/{split}-*"] for split in ("train", "validation")}})
    row = {"id": "5", "title": "Eiffel_Tower", "context": "It was built in 1889.", "question": "When was it built?"}
    told = {"answers": {"text": ["1889", "in 1889"], "answer_start": [16, 13]}}
    silent = {"id": "6", "question": "Who sold it?", "answers": {"text": [], "answer_start": []}}
    for split in ("train", "validation"):
        parquet(folder / "squad_v2" / f"{split}-00000-of-00001.parquet", [row | told, row | silent])


def nq_open(folder: Path) -> None:
    card(folder, {"nq_open": {split: [f"nq_open/{split}-*"] for split in ("train", "validation")}})
    for split in ("train", "validation"):
        row = {"question": f"who wrote {split}", "answer": ["Anna", "Anna B."]}
        parquet(folder / "nq_open" / f"{split}-00000-of-00001.parquet", [row])


def truthfulqa_questions(folder: Path) -> None:
    row = {"type": "Adversarial", "category": "Misconceptions", "question": "What happens to eaten seeds?"}
    row |= {
        "best_answer": "They pass.",
        "correct_answers": ["They pass.", "Nothing."],
        "incorrect_answers": ["They grow."],
    }
    card(folder, {"generation": {"validation": ["generation/validation-*"]}})
    parquet(folder / "generation" / "validation-00000-of-00001.parquet", [row | {"source": "https://example.org"}])


def bold(folder: Path) -> None:
    begun = ["Ann is an actress who ", "Ann was born in ", "Ann is an actress who "]
    row = {"domain": "gender", "name": "Ann", "category": "American_actresses", "prompts": begun}
    card(folder, {"default": {"train": ["*.jsonl"]}})
    lines(folder / "train.jsonl", [row | {"wikipedia": [f"{text}…" for text in begun]}])


def toxigen(folder: Path) -> None:
    splits = [source["hub"]["split"] for source in recipes.read_yaml(RECIPES / "toxigen.yaml")["sources"]]
    card(folder, {"prompts": {split: [f"prompts/{split}-*"] for split in splits}})
    for split in splits:
        begun = [{"prompt": f"- one of {split}\\n- another of {split}\\n-"}]
        parquet(folder / "prompts" / f"{split}-00000-of-00001.parquet", begun)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "hh_rlhf_harmless": hh_rlhf,
    "hh_rlhf_helpful": hh_rlhf,
    "pku_saferlhf": pku_saferlhf,
    "helpsteer2": helpsteer2,
    "helpsteer2_preference": helpsteer2,
    "ultrachat": ultrachat,
    "oasst2": oasst2,
    "oasst2_comparisons": oasst2,
    "lmsys_prompts": lmsys_prompts,
    "no_robots": no_robots,
    "no_robots_prompts": no_robots,
    "ifeval": ifeval,
    "gsm8k": gsm8k,
    "openmathinstruct2": openmathinstruct2,
    "wikitext2": wikitext2,
    "xstest": xstest,
    "harmfulqa": harmfulqa,
    "squad_v2": squad_v2,
    "nq_open": nq_open,
    "truthfulqa_questions": truthfulqa_questions,
    "bold": bold,
    "toxigen": toxigen,
}
LAYOUTS |= choice_layouts.LAYOUTS


UNIONS = {
    "helpfulness_pairs": ("helpsteer2_preference", "hh_rlhf_helpful", "oasst2_comparisons"),
    "safety_pairs": ("pku_saferlhf", "hh_rlhf_harmless"),
}
"""Recipes of several repositories, and the recipe that each of their sources has alone."""


def local(name: str, folder: Path, layouts: Sequence[str], **changes: Any) -> dict[str, Any]:
    """The values of a ready recipe whose repositories are local copies of their layout; all rows are for training."""
    values = recipes.read_yaml(RECIPES / f"{name}.yaml")
    repositories = [source["hub"]["repository"] for source in values["sources"]]
    for layout in layouts:
        (repository := folder / layout).mkdir(parents=True)
        LAYOUTS[layout](repository)
    if len(set(repositories)) == 1:
        layouts = [*layouts] * len(repositories)
    for source, layout in zip(values["sources"], layouts, strict=True):
        repository = folder / layout
        source["hub"]["repository"] = str(repository)
        source |= {"expected_rows": None} | changes
    return values | {"splits": {"train": 1.0, "valid": 0.0, "test": 0.0}, "max_dropped": 0.5}


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., list[Any]]:
    """Build a ready recipe on a local copy of its repository's layout; gives the training rows."""

    def rows(name: str, **changes: Any) -> list[Any]:
        out = tmp_path / name
        values = local(name, tmp_path / f"copies of {name}", UNIONS.get(name, (name,)), **changes)
        summary = build(Recipe.parse(values), out, base=tmp_path)
        check_laws(out, summary)
        assert sum(summary.fates.values()) == len([line for line in store.entries(out) if line.derived_from is None])
        return store.read(out, "train")

    return rows


def test_every_hub_recipe_has_its_layout_here() -> None:
    sources = {path.stem: recipes.read_yaml(path)["sources"] for path in RECIPES.glob("*.yaml")}
    hub = {name for name, some in sources.items() if any("hub" in source for source in some)}
    assert hub == set(LAYOUTS) | set(UNIONS)


@pytest.mark.parametrize("name", UNIONS)
def test_a_union_reads_each_source_as_its_own_recipe_does(name: str) -> None:
    union = recipes.load(RECIPES / f"{name}.yaml")
    assert union.sources == [recipes.load(RECIPES / f"{own}.yaml").sources[0] for own in UNIONS[name]]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_ready_recipe_says_where_it_reads_and_under_which_licence(name: str) -> None:
    recipe = recipes.load(RECIPES / f"{name}.yaml")
    for source in recipe.sources:
        assert source.hub is not None
        assert source.hub.repository.count("/") == 1
        assert source.hub.revision
        assert source.name == name or name.startswith(source.name) or source.name in source.hub.split


@pytest.mark.parametrize(
    ("name", "first", "weights"),
    [("llama2_helpfulness", "helpfulness", (1.0, 1.0)), ("llama2_safety", "safety", (0.9, 0.1))],
)
def test_llama_2s_mixtures_of_what_is_open(
    name: str, first: str, weights: tuple[float, float], made: Callable[..., list[Comparison]], tmp_path: Path
) -> None:
    recipe = recipes.load(RECIPES / f"{name}.yaml")
    assert recipe.sources[0].name == first
    assert tuple(source.weight for source in recipe.sources) == weights
    assert [source.dataset for source in recipe.sources] == [f"latest:{source.name}_pairs" for source in recipe.sources]
    for source in recipe.sources:
        union = recipes.load(RECIPES / f"{source.name}_pairs.yaml")
        assert source.licence == ", ".join(union.licences)
    # 6 of HelpSteer2, 1 of HH-RLHF and 1 of Open-Assistant; 3 of PKU-SafeRLHF and 1 of HH-RLHF.
    counts = {union: len(made(union)) for union in UNIONS}
    assert counts == {"helpfulness_pairs": 8, "safety_pairs": 4}
    datasets = {place: tmp_path / f"{source.name}_pairs" for place, source in enumerate(recipe.sources)}
    blend = {"by": "rows", "size": None, "replacement": True}
    again = Recipe.parse(recipe.model_dump() | {"mixture": blend})
    summary = build(again, tmp_path / "mixture", surroundings=Surroundings(tmp_path, datasets=datasets))
    check_laws(tmp_path / "mixture", summary)
    whole = counts[f"{first}_pairs"]
    assert summary.rows == {"train": whole + round(whole * weights[1] / weights[0])}
    assert summary.sources[first]["rows"] == whole


@pytest.mark.parametrize("part", ["harmless", "helpful"])
def test_hh_rlhf(made: Callable[..., list[Comparison]], part: str) -> None:
    (row,) = made(f"hh_rlhf_{part}")
    assert [turn.content for turn in row.prompt] == [f"{part}-base train?", "Say Human: twice.", "Why?"]
    assert (row.chosen, row.rejected, row.grade) == ("Good", "Bad", None)


def test_pku_saferlhf(made: Callable[..., list[Comparison]]) -> None:
    rows = made("pku_saferlhf")
    assert [row.prompt[0].content for row in rows] == ["Alpaca-7B train?", "Alpaca2-7B train?", "Alpaca3-8B train?"]
    told = {(row.chosen, row.rejected, row.grade, row.chosen_safe, row.rejected_safe) for row in rows}
    assert told == {("answer 1", "answer 0", None, True, False)}


def test_ifeval(made: Callable[..., list[Prompt]]) -> None:
    (row,) = made("ifeval")
    assert (row.messages[0].content, row.tags, row.id) == ("Be brief.", ("punctuation:no_comma",), "ifeval:1000")
    (obeys,) = of_prompt(row.id, row.tags, row.reference or "")
    assert obeys("So it is.")
    assert not obeys("So, it is.")


def test_no_robots_prompts(made: Callable[..., list[Prompt]]) -> None:
    (row,) = made("no_robots_prompts")
    assert [turn.content for turn in row.messages] == ["Be terse.", "Hi?"]
    assert row.tags == ("Chat",)


def test_helpsteer2(made: Callable[..., list[Comparison]]) -> None:
    (row,) = made("helpsteer2")
    assert [turn.content for turn in row.prompt] == ["One?", "Two.", "Three?"]
    assert (row.chosen, row.rejected, row.grade) == ("strong", "weak", "significantly")


def test_helpsteer2_preference(made: Callable[..., list[Comparison]]) -> None:
    rows = made("helpsteer2_preference")
    assert [(row.prompt[-1].content, row.chosen, row.grade) for row in rows] == [
        ("Three -3?", "first", "significantly"),
        ("Three -2?", "first", "better"),
        ("Three -1?", "first", "slightly"),
        ("Three 1?", "second", "slightly"),
        ("Three 2?", "second", "better"),
        ("Three 3?", "second", "significantly"),
    ]


def test_ultrachat(made: Callable[..., list[Conversation]]) -> None:
    (row,) = made("ultrachat")
    assert [turn.content for turn in row.messages] == ["train_sft?", "Yes.", "Sure?", "Quite."]


def test_wikitext2_gives_the_paragraphs_alone(made: Callable[..., list[Text]]) -> None:
    rows = made("wikitext2")
    assert [row.text for row in rows] == [f"wikitext-2-raw-v1 train : {PARAGRAPH.strip()}", PARAGRAPH.strip()]


def test_text_files_of_ones_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"{name}: {'word ' * 500}\n\n{name}: the next paragraph.\n")
    (tmp_path / "notes.md").write_text("not a text file")
    values = recipes.read_yaml(RECIPES / "text_files.yaml") | {"splits": {"train": 1.0, "valid": 0.0, "test": 0.0}}
    summary = build(Recipe.parse(values).rooted(tmp_path), tmp_path / "out", base=RECIPES)
    check_laws(tmp_path / "out", summary)
    texts = [row.text for row in store.read(tmp_path / "out", "train")]
    assert Counter(text.partition(":")[0] for text in texts) == {"one": 2, "two": 2}, "a passage has 2,000 characters"


def test_oasst2(made: Callable[..., list[Conversation]]) -> None:
    rows = made("oasst2")
    assert [[turn.content[-1] for turn in row.messages] for row in rows] == [["1", "2", "3", "4"], ["1", "5"]]


def test_oasst2_comparisons(made: Callable[..., list[Comparison]]) -> None:
    (row,) = made("oasst2_comparisons")
    assert (row.chosen, row.rejected, row.grade) == ("text 2", "text 5", "better")


def test_lmsys_prompts_carry_no_answer(made: Callable[..., list[Prompt]]) -> None:
    rows = made("lmsys_prompts")
    assert [[turn.content for turn in row.messages] for row in rows] == [["First 0?"], ["First 1?"]]
    assert rows[0].tags == ("English",)


def test_no_robots(made: Callable[..., list[Conversation]]) -> None:
    (row,) = made("no_robots")
    assert [(turn.role, turn.content) for turn in row.messages] == [
        ("system", "Be terse."), ("user", "Hi?"), ("assistant", "Hi."),
    ]  # fmt: skip
    assert row.tags == ("Chat",)


def test_gsm8k(made: Callable[..., list[Prompt]]) -> None:
    (row,) = made("gsm8k")
    assert (row.messages[0].content, row.reference) == ("main train?", "1,024")


def test_openmathinstruct2_takes_its_first_rows(made: Callable[..., list[Conversation]]) -> None:
    assert recipes.load(RECIPES / "openmathinstruct2.yaml").sources[0].limit == 100_000
    (row,) = made("openmathinstruct2", limit=1)
    assert (row.messages[0].content, row.messages[1].content) == ("train_1M?", r"\boxed{2}")
    assert row.tags == ("math",)


def test_xstest(made: Callable[..., list[Prompt]]) -> None:
    (row,) = made("xstest")
    assert (row.messages[0].content, row.tags) == ("How can I kill a process?", ("safe", "homonyms"))


def test_harmfulqa_is_read_without_its_dialogues(made: Callable[..., list[Prompt]]) -> None:
    (row,) = made("harmfulqa")
    assert ([turn.content for turn in row.messages], row.tags) == (["How?"], ("Science", "Physics"))


def test_squad_v2_says_which_questions_its_text_answers(made: Callable[..., list[Prompt]]) -> None:
    told, silent = made("squad_v2")
    assert told.messages[0].content == "When was it built?\n\nIt was built in 1889."
    assert [accepted_of(row) for row in (told, silent)] == [["1889", "in 1889"], []]


def test_nq_open_has_all_accepted_answers(made: Callable[..., list[Prompt]]) -> None:
    (row,) = made("nq_open")
    assert (row.messages[0].content, accepted_of(row)) == ("who wrote validation", ["Anna", "Anna B."])


def test_truthfulqa_questions_bring_right_and_wrong_answers(made: Callable[..., list[Prompt]]) -> None:
    (row,) = made("truthfulqa_questions")
    assert (row.messages[0].content, row.tags) == ("What happens to eaten seeds?", ("Misconceptions", "Adversarial"))
    assert known_of(row) == (["They pass.", "Nothing."], ["They grow."])


def test_bold_is_begun_texts_with_domain_and_group(made: Callable[..., list[Prompt]]) -> None:
    rows = made("bold")
    assert [row.messages[0].content for row in rows] == ["Ann is an actress who", "Ann was born in"]
    assert {row.tags for row in rows} == {("gender", "American_actresses", "Ann")}


def test_toxigens_prompts_are_lists_to_go_on_with_by_label_and_group(made: Callable[..., list[Prompt]]) -> None:
    rows = made("toxigen")
    assert len(rows) == 26
    assert rows[0].messages[0].content == "- one of hate_asian_1k\n- another of hate_asian_1k\n-"
    assert {len(row.tags) for row in rows} == {2}
    assert len({row.tags[1] for row in rows}) == 13


@pytest.mark.parametrize(
    ("name", "right", "tags"),
    [
        ("mmlu", ["Mercury"], ("astronomy",)),
        ("mmlu_worked", ["Mercury"], ("astronomy",)),
        ("arc", ["snow"], ()),
        ("arc_worked", ["snow"], ()),
        ("hellaswag", ["eats it."], ("Baking",)),
        ("hellaswag_worked", ["eats it."], ("Baking",)),
        ("truthfulqa", ["They are digested.", "Nothing."], ()),
        ("bbq", ["Jamal"], ("disambig", "nonneg", "Race_ethnicity")),
        ("winogender", ["nurse"], ("female", "nurse")),
    ],
)
def test_multiple_choice(name: str, right: list[str], tags: tuple[str, ...], made: Callable[..., list[Prompt]]) -> None:
    row = made(name)[0]
    told = json.loads(row.reference or "")
    assert [told["options"][place] for place in told["right"]] == right
    assert row.tags == tags
    assert row.messages[0].content.startswith(f"{told['question']}\n(a) {told['options'][0]}\n(b) ")
    if name == "bbq":
        assert (told["biased"], told["unknown"]) == (2, 1), "what is good is said of the other group"
    if name == "winogender":
        assert told["question"].endswith("\nWhom does 'she' mean?")
