"""Every stage struck by faults, and started again: what comes of it is the same to the bit, or the campaign says where.

``python tests/faults/campaign.py`` (``make faults``) strikes with SIGKILL at random times and at random changes to the
disk, fills the disk on the way, changes a byte of a checkpoint, and cuts off files: of parts, of checkpoints, of
finished inputs, of results without a record. After each the same command is given again. It prints a line a case and a
table at the end, and exits with 1 where anything was lost, differs, or was taken for whole. Its log is
``<folder>/log.jsonl``: what stands there for the same code is not done again, so a campaign that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from stage_runs import STAGES, outcome
from striking import (
    ROOT,
    WITH_CHECKPOINTS,
    WITH_PARTS,
    WITH_WEIGHTS,
    Result,
    Room,
    Struck,
    Undisturbed,
    byte,
    full,
    kill,
    may_mount,
    need,
    rows,
    same,
    shard,
    unsealed,
)
from tests_support import QUIET, call

from alignment.files import digest_folder, digest_json

Case = tuple[str, str, Callable[[Room, str, Undisturbed, random.Random, Result], None]]
"""Name, stage, and what is done."""


def cases(kills: int, fulls: int, bytes_: int, shards: int, results: int) -> Iterator[Case]:
    """All cases, the kinds among each other, always the same ones under the same names."""
    cuts = (("cut part", WITH_PARTS), ("cut checkpoint", WITH_CHECKPOINTS), ("cut weights", WITH_WEIGHTS))
    names = [*STAGES]
    for number in range(max(kills, fulls, bytes_, shards, results)):
        if number < kills:
            yield f"kill/{number}", names[number % len(names)], kill
        if number < fulls:
            yield f"full disk/{number}", names[number % len(names)], full
        if number < bytes_:
            yield f"byte/{number}", WITH_CHECKPOINTS[number % len(WITH_CHECKPOINTS)], byte
        if number < shards:
            kind, stages = cuts[number % len(cuts)]
            yield f"{kind}/{number}", stages[number // len(cuts) % len(stages)], shard
        if number < results:
            yield f"cut result/{number}", names[number % len(names)], unsealed


def undisturbed(room: Room, folder: Path, code: str, stage: str) -> Undisturbed:
    """A run of a process of its own, and one that is forked: both make the same."""
    path = folder / f"undisturbed-{stage}.json"
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept.pop("code") == code:
            return Undisturbed(**kept)
    store = room.store(stage)
    made = call(store, *STAGES[stage][1])
    need(made.returncode == 0, f"undisturbed {stage} ends with {made.returncode}: {made.stdout}{made.stderr}")
    found = Undisturbed(outcome(store), rows(store), 0.0, 0)
    store, counted = room.store(stage), room.folder / "count"
    began = time.monotonic()
    status, told = room.start(stage, store, count=str(counted))
    found.seconds, found.changes = time.monotonic() - began, int(counted.read_text())
    need(status == 0, f"undisturbed {stage} ends with {status}: {told}")
    same(store, found)
    path.write_text(json.dumps({"code": code, **asdict(found)}))
    return found


def run(folder: Path, todo: list[Case], workers: int, seed: int) -> list[Result]:
    """Do what the log does not have yet."""
    code = digest_json(digest_folder(ROOT / "alignment", keep=lambda name: name.endswith(".py")))[:12]
    log, lock = folder / "log.jsonl", threading.Lock()
    smoke = folder / "smoke"
    if call(smoke, "stage=pipeline", "pipeline=smoke", *QUIET).returncode:
        raise SystemExit(
            "pipeline=smoke does not run through: see `python -m alignment.run stage=pipeline pipeline=smoke`"
        )
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    known = {line["case"]: line for line in lines if line.pop("code") == code and line.pop("seed") == seed}
    done = [Result(**known[name]) for name, *_ in todo if name in known]
    plains: dict[str, Undisturbed] = {}
    waiting: queue.Queue[Case] = queue.Queue()
    for one in (one for one in todo if one[0] not in known):
        waiting.put(one)

    def work(number: int) -> None:
        room = Room(folder / f"worker-{number}", smoke)
        while True:
            try:
                name, stage, do = waiting.get_nowait()
            except queue.Empty:
                room.close()
                return
            result, began = Result(name, stage), time.monotonic()
            try:
                with lock:
                    plains[stage] = plains.get(stage) or undisturbed(room, folder, code, stage)
                began = time.monotonic()
                do(room, stage, plains[stage], random.Random(f"{seed}/{name}"), result)
            except Struck as error:
                result.bad.append(str(error))
            result.seconds = time.monotonic() - began
            with lock:
                done.append(result)
                with open(log, "a") as file:
                    file.write(json.dumps({"code": code, "seed": seed, **asdict(result)}) + "\n")
                print(
                    f"{len(done):4}/{len(todo)}  {name:18} {stage:10} {result.seconds:5.1f} s  {_line(result)}",
                    flush=True,
                )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def _line(result: Result) -> str:
    return "; ".join(result.bad) or result.named or ("identical" if result.struck else "identical, not struck")


def table(results: list[Result]) -> None:
    """By stage, then by kind."""
    for title, key in (("stage", lambda one: one.stage), ("fault", lambda one: one.case.split("/")[0])):
        groups: dict[str, list[Result]] = defaultdict(list)
        for one in results:
            if key(one) and (title == "fault" or one.case.startswith("kill/")):
                groups[key(one)].append(one)
        print(f"\n{title:16} {'cases':>6} {'struck':>7} {'named':>6} {'identical':>10} {'bad':>4} {'seconds':>8}")
        for name, some in [*sorted(groups.items()), ("all", [one for every in groups.values() for one in every])]:
            counts = (len(some), sum(one.struck for one in some), sum(bool(one.named) for one in some))
            good = sum(not one.bad for one in some)
            seconds = sum(one.seconds for one in some)
            print(f"{name:16} {counts[0]:6} {counts[1]:7} {counts[2]:6} {good:10} {len(some) - good:4} {seconds:8.0f}")
    for one in results:
        for bad in one.bad:
            print(f"BAD  {one.case}  {one.stage}: {bad}")


def main() -> int:
    """The campaign's command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "faults", help="stores, logs and results")
    for name, count in (("kills", 200), ("full", 31), ("bytes", 30), ("shards", 54), ("results", 31)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--workers", type=int, default=2, help="cases at a time")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    # Sums come out alike in a process of its own and in one that is forked, which has one thread.
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    fulls = given.full
    if fulls and not may_mount(folder / "disk"):
        print("no case with a full disk: small file systems cannot be mounted here (it takes root)")
        fulls = 0
    began = time.monotonic()
    todo = [*cases(given.kills, fulls, given.bytes, given.shards, given.results)]
    results = run(folder, todo, given.workers, given.seed)
    table(results)
    print(f"\n{time.monotonic() - began:.0f} s now; the log is {folder / 'log.jsonl'}")
    return int(any(one.bad for one in results))


if __name__ == "__main__":
    sys.exit(main())
