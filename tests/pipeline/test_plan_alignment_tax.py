"""The plan of the alignment tax: the base model and what became of it, in a chat and outside of one."""

from __future__ import annotations

from alignment import pipeline, run
from alignment.evals.suites import capabilities, suite


def test_every_model_is_examined_on_every_suite_and_compared_with_the_base() -> None:
    plan = run.compose("pipeline", {"pipeline": "alignment_tax"})["pipeline"]
    (tax,) = pipeline.steps_of(plan)
    capabilities.check(tax.settings["capabilities"], tax.settings["suites"])
    assert tax.settings["capabilities"]["code"] == []
    assert (tax.option, tax.settings["against"], tax.settings["names"][0]) == ("evaluate/suites", "first", "base")
    assert len(tax.settings["models"]) == len(tax.settings["names"]) == 4
    found = {name: suite.parse(run.compose("assess", {"suite": name})["suite"]) for name in tax.settings["suites"]}
    asked = {name: one.prompting for name, one in found.items() if one.kind == "choices"}
    assert asked == {"miniature_choices": "chat", "miniature_choices_raw": "few_shot"}
    assert all(len(found[name].formats) == 12 for name in asked)


def test_of_real_models_every_suite_measures_one_of_llama_2s_groups() -> None:
    values = run.compose("evaluate/tax", {})
    told = values["capabilities"]
    capabilities.check(told, values["suites"])
    groups = ["code", "commonsense", "commonsense in twelve formats", "knowledge", "reading", "maths"]
    assert [*told] == [*groups, "MMLU", "BBH", "AGIEval"]
    assert sorted(one for of in told.values() for one in of) == sorted(values["suites"])
    for name in values["suites"]:
        suite.parse(run.compose("assess", {"suite": name})["suite"])
