"""What records, sums, pages and cards tell of energy, and how well several processes work together."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from release import lineages
from report_support import Making
from tests_support import call

from alignment import artifacts, run
from alignment.artifacts import Artifact
from alignment.energy import meter, record
from alignment.energy.record import Energy
from alignment.errors import UserError
from alignment.release import card, steps
from alignment.reporting.page import tables
from alignment.reporting.page.gather import gather
from alignment.training import tracking

GRID = 0.5
TOOK = Energy("a device", 1, 2.0, 0.5, "measured", 0.25, GRID, "cooling", 1)


def took(**changes: Any) -> Energy:
    return replace(TOOK, **changes)


# ── records and sums ─────────────────────────────────────────────────────────────────────────────


def artifact(folder: Path, energy: Energy | None) -> Artifact:
    folder.mkdir(parents=True)
    (folder / "weights").write_text("1")
    return Artifact(folder, "policy", "sft", "sft", "f" * 64, energy=energy)


def test_a_record_tells_energy_and_no_digest_holds_it(tmp_path: Path) -> None:
    made = artifact(tmp_path / "a", took())
    (made.path / meter.FOLDER).mkdir()
    (made.path / meter.FOLDER / "0000-1.json").write_text("{}")
    finished = artifacts.finish(made)
    assert artifacts.load(made.path).energy == TOOK
    assert [*finished.files] == ["weights"]
    assert finished.files == artifacts.finish(artifact(tmp_path / "b", took(kwh=9.0))).files


def test_a_record_from_before_is_read(tmp_path: Path) -> None:
    made = artifacts.finish(artifact(tmp_path / "a", took()))
    path = made.path / artifacts.RECORD
    told = json.loads(path.read_text())
    del told["energy"]
    path.write_text(json.dumps(told))
    assert artifacts.load(made.path).energy is None
    assert artifacts.SCHEMA_VERSION == told["schema_version"] == 1


def test_tokens_per_kwh_want_both(tmp_path: Path) -> None:
    one = Artifact(tmp_path, "policy", "sft", "sft", "f", energy=took(kwh=0.5), notes={"tokens_processed": 1_000})
    assert one.tokens_per_kwh == 2_000
    assert replace(one, notes={}).tokens_per_kwh is None
    assert replace(one, energy=took(kwh=None)).tokens_per_kwh is None
    assert replace(one, energy=None).tokens_per_kwh is None


def test_sums_say_what_is_not_in_them() -> None:
    some = [
        took(),
        took(kwh=None, kg_co2eq=None, how="unknown: why"),
        None,
        took(device="another", kwh=2.0, kg_co2eq=1),
    ]
    found = record.total(some)
    assert (found.kwh, found.kg_co2eq, found.known, found.unknown) == (2.5, 1.25, 2, 2)
    assert found.device_hours == {"a device": 4.0, "another": 2.0}
    assert found.text == (
        "2.5 kWh, 1.25 kg CO₂eq (2 artifacts); 2 artifacts whose kWh are not known; 4 h of a device; 2 h of another"
    )
    assert record.total([None]).text == "1 artifact whose kWh are not known"
    assert record.total([took(), took(kg_co2eq=None)]).kg_co2eq is None


@pytest.mark.parametrize(
    ("kwh", "kg", "text"),
    [
        (0.0123, 0.00563, "12.3 Wh, 5.63 g CO₂eq"),
        (0.1, 0.1, "0.1 kWh, 0.1 kg CO₂eq"),
        (12345.6, 5432.1, "12,346 kWh, 5,432 kg CO₂eq"),
        (2.0, None, "2 kWh"),
    ],
)
def test_amounts_are_in_units_that_people_read(kwh: float, kg: float | None, text: str) -> None:
    assert record.amounts(kwh, kg) == text


def test_what_one_artifact_took_in_words() -> None:
    assert TOOK.text == "0.5 kWh, 0.25 kg CO₂eq (measured); 2 h of a device"
    several = took(devices=8, sessions=3, kwh=None, how="unknown: why")
    assert several.text == "unknown: why; 2 h of 8 × a device, in 3 starts"


@pytest.fixture
def making(tmp_path: Path) -> Making:
    """Two models of one dataset, their merge, and a parent that is gone."""
    making = Making(tmp_path / "runs")
    making.add("rows", "data", "dataset", energy=took(device="a processor"))
    for name in ("one", "two"):
        parents = {"data": "rows", "weights": "run:lost"}
        making.add(name, "sft", "policy", parents, energy=took(device="<a GPU>"), notes={"tokens_processed": 10})
    making.add("both", "merge", "policy", {"models.0": "one", "models.1": "two"})
    return making


def test_a_lineage_counts_every_artifact_once_and_what_is_gone_as_unknown(making: Making) -> None:
    found = gather([making.made["both"], making.made["one"]]).energy
    assert (found.kwh, found.known, found.unknown) == (1.5, 3, 2)
    assert found.device_hours == {"a processor": 2.0, "<a GPU>": 4.0}


def test_what_is_not_ours_is_no_part_of_the_sum(tmp_path: Path) -> None:
    making = Making(tmp_path / "runs")
    making.add("judged", "measure", "evaluation", {"models.0": "gold:overall"}, energy=took())
    found = gather([making.made["judged"]]).energy
    assert (found.known, found.unknown) == (1, 0)


def test_the_page_has_a_line_for_each_and_the_sum(making: Making) -> None:
    told = tables.energy(gather([making.made["both"]]))
    assert told.count("<tr>") == 1 + 3
    assert "1.5 kWh, 0.75 kg CO₂eq (3 artifacts); 2 artifacts whose kWh are not known" in told
    assert "Not in it: cooling" in told
    assert "<td>&lt;a GPU&gt;</td><td>2</td><td>0.5</td><td>0.25</td><td>measured</td><td>20</td>" in told
    assert tables.energy(gather([])) == "<p>No record tells it.</p>"


def test_a_model_card_has_a_line_for_each_step_and_the_sum(tmp_path: Path) -> None:
    store = tmp_path / "runs"
    rows = lineages.made(store, "rows", "data", "dataset", energy=took(device="a processor", kwh=0.001, kg_co2eq=5e-4))
    base = lineages.made(store, "base", "pretrain", "policy", {"data": ("step:rows", rows)}, energy=took(devices=8))
    parents = {"data": ("step:rows", rows), "model.weights": ("step:base", base)}
    model = lineages.made(store, "model", "sft", "policy", parents)
    told = steps.energy(lineages.lineage(store, model))
    assert "In all: 0.501 kWh, 0.251 kg CO₂eq (2 artifacts); 1 artifact whose kWh are not known" in told
    assert "| base | 8 × a device | 2 | 0.5 | 0.25 | measured |" in told
    assert "reckoned with 0.5 kg for each kWh" in told
    assert "Not in it: cooling" in told
    assert steps.of_lineage(lineages.lineage(store, base)).unknown == 0
    bare = lineages.made(store, "bare", "sft", "policy")
    assert steps.energy(lineages.lineage(store, bare)).endswith("No record of the lineage tells what it took.")


def test_the_hub_is_told_grams_where_every_step_knows_them(tmp_path: Path) -> None:
    one = lineages.made(tmp_path / "runs", "one", "sft", "policy", energy=took(kg_co2eq=0.25))
    known = SimpleNamespace(nodes=lineages.lineage(tmp_path / "runs", one))
    assert card._emissions(known)["emissions"] == 250.0
    two = lineages.made(tmp_path / "runs", "two", "sft", "policy", {"model.weights": ("step:one", one)})
    assert card._emissions(SimpleNamespace(nodes=lineages.lineage(tmp_path / "runs", two))) == {}


def test_a_run_of_wandb_is_told_what_is_known(tmp_path: Path) -> None:
    one = Artifact(tmp_path, "policy", "sft", "sft", "f", energy=took(), notes={"tokens_processed": 1_000})
    told = {"energy/device_hours": 2.0, "energy/kwh": 0.5, "energy/kg_co2eq": 0.25, "energy/tokens_per_kwh": 2_000}
    assert tracking._energy(one) == told
    assert tracking._energy(replace(one, energy=took(kwh=None, kg_co2eq=None))) == {"energy/device_hours": 2.0}
    assert tracking._energy(replace(one, energy=None)) == {}


# ── the door ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("said", "why"), [("grid=-1", "grid=-1"), ("watts=0", "watts=0"), ("watts=much", "watts")])
def test_what_makes_no_sense_is_refused(said: str, why: str) -> None:
    key, _, value = said.partition("=")
    with pytest.raises(UserError, match=why):
        run.Door.parse({**run.configure(run.read(["stage=sft"])), key: value if value == "much" else float(value)}, "x")


def test_what_is_stated_does_not_change_what_a_step_is() -> None:
    plain, stated = (run.configure(run.read(["stage=sft", *said])) for said in ([], ["grid=0.1", "watts=90"]))
    assert (stated["grid"], stated["watts"]) == (0.1, 90)
    assert {key: stated[key] for key in stated if key not in run.Door.model_fields} == {
        key: plain[key] for key in plain if key not in run.Door.model_fields
    }
    assert {"grid", "watts"}.isdisjoint(run.compose("sft", {}))


def test_every_step_of_a_pipeline_tells_what_it_took(tmp_path: Path) -> None:
    said = call(tmp_path, "stage=data", "recipe=miniature_prompts", "watts=100", "grid=0.4")
    assert said.returncode == 0, said.stdout + said.stderr
    (path,) = (tmp_path / "solo").glob(f"*/{artifacts.RECORD}")
    found = artifacts.load(path.parent)
    assert found.energy is not None
    if found.energy.how == "stated watts":
        assert found.energy.kwh == pytest.approx(found.energy.device_hours * 0.1)
    assert found.energy.kg_co2eq == pytest.approx((found.energy.kwh or 0) * 0.4)
    assert found.energy.device == artifacts.machine()["cpu"]
    assert not (path.parent / meter.FOLDER).exists()
    shown = call(tmp_path, "stage=show", "target=latest:data", "examples=0").stdout
    assert found.energy.text in shown
    assert "(1 artifact)" in shown or "1 artifact whose kWh are not known" in shown


# ── scaling ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def scaling() -> Any:
    path = Path(__file__).parents[1] / "benchmarks" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_efficiency_of_several_processes_is_their_rate_by_their_number(scaling: Any, tmp_path: Path) -> None:
    notes = {"tokens_per_second": 1000, "processes": 1}
    one = Artifact(tmp_path, "policy", "sft", "sft", "f" * 64, notes=notes)
    # Four processes that are three times as fast.
    four = replace(one, notes={"tokens_per_second": 3000, "processes": 4})
    assert scaling.efficiency(one, four) == 0.75
    assert scaling.efficiency(one, one) == 1.0
    with pytest.raises(UserError, match="not the same step"):
        scaling.efficiency(one, replace(four, fingerprint="e" * 64))
    with pytest.raises(UserError, match="no tokens per second"):
        scaling.efficiency(one, replace(four, notes={"processes": 4}))
