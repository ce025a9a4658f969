"""Slerp of task vectors beside mergekit's nuslerp, on two bf16 policies and their start, in one run.

    python benchmarks/merge.py [--shape small|quarter|2b] [--repeats 3] [--cold] [--only ours|plain|mergekit]

Writes the models (three times 5.2 GB for ``2b``) with drawn weights and short task vectors, merges them by turns, and
removes everything in the end. Every turn is a process of its own; what is printed is its time with the interpreter's
start, and the most memory it held. ``plain`` reads the three inputs and writes one output with nothing computed. The
values of both merges are compared with float64 on drawn parts of tensors. Time, memory and disk of a 27B shape are
predicted by headers alone, and so is what is measured here. mergekit lives in an environment that is built once, below
``--cache``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from alignment.merging.layout import Layout

HERE = Path(__file__).resolve()
CACHE = HERE.parent.parent / ".cache" / "benchmarks"
PACKAGES = ("torch==2.13.0", "mergekit==0.1.5", "transformers==5.23.0")
SHAPES = {"small": (2, 16_000), "quarter": (6, 64_000), "2b": (26, 256_000), "27b": (46, 256_000)}
"""Layers and vocabulary; of Gemma 2 2B in everything else, and of 27B for the last, which is only predicted."""
NAMES = ("first", "second", "start")
PEERS = {"mergekit": "bfloat16", "mergekit32": "float32"}
"""mergekit's arithmetic: in the models' dtype, as its users have it, and in fp32, which only tells values."""
MOVED = 0.02
"""The length of a task vector, relative to the weights."""
SHARD = 2 * 10**9
MEMORY = 512 << 20
POOL = 1 << 24


def main() -> None:
    chosen = arguments()
    if chosen.role:
        ROLES[chosen.role](chosen)
        return
    sides = [chosen.only] if chosen.only else ["plain", "ours", "mergekit"]
    python = environment(chosen.cache / "mergekit-0.1.5") if "mergekit" in sides else None
    told("predict", chosen, "27b")
    with tempfile.TemporaryDirectory(dir=chosen.folder) as made:
        folder = Path(made)
        for shape in ("2b", "quarter") if chosen.shape == "2b" else (chosen.shape,):
            wanted = sides if shape == chosen.shape else ["ours", *(["mergekit32"] if python else [])]
            told("predict", chosen, shape)
            need = 6 * told("write", chosen, shape, folder)["bytes"]
            print(f"{shape}: {need / 6e9:.2f} GB a model, {chosen.threads} threads, {chosen.repeats} turns", flush=True)
            turns(wanted, shape, folder, chosen, python)
            for side in [side for side in wanted if side != "plain"]:
                print(f"  {side:9} against float64: {told('check', chosen, shape, folder, side)}", flush=True)
            for left in folder.iterdir():
                shutil.rmtree(left)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[shape for shape in SHAPES if shape != "27b"], default="2b")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cold", action="store_true", help="forget the models before every turn: they come from disk")
    parser.add_argument("--folder", type=Path, default=None, help="where the models are written for a while")
    parser.add_argument("--only", choices=["ours", "plain", "mergekit"])
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the peer's environment lies")
    parser.add_argument("--role", choices=[*ROLES], help=argparse.SUPPRESS)
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


# ── turns ────────────────────────────────────────────────────────────────────────────────────────


def turns(sides: Sequence[str], shape: str, folder: Path, chosen: argparse.Namespace, python: Path | None) -> None:
    """Each side in turn, several times; the medians, and what they are to each other."""
    models = [str(folder / name) for name in NAMES]
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(chosen.repeats):
        for side in sides:
            out = folder / side
            shutil.rmtree(out, ignore_errors=True)
            if chosen.cold:
                forget(folder)
            if side in PEERS:
                command = [str(python), str(HERE.parent / "peers" / "mergekit.py"), *models, str(out), PEERS[side]]
            else:
                command = own(side, chosen, shape, folder)
            seconds, peak = measured(command, chosen.threads)
            found[side].append(seconds)
            print(f"  {side:9} {seconds:7.1f} s  {peak / 2**20:8,.0f} MiB", flush=True)
    medians = {side: statistics.median(values) for side, values in found.items()}
    for other in {"mergekit", "plain"} & medians.keys() if "ours" in medians else ():
        ratios = [ours / theirs for ours, theirs in zip(found["ours"], found[other], strict=True)]
        print(f"  ours / {other}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def forget(folder: Path) -> None:
    """Let the kernel drop what it holds of the models, once it is written."""
    os.sync()
    for path in folder.rglob("*.safetensors"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def measured(command: Sequence[str], threads: int) -> tuple[float, int]:
    """Seconds and bytes of a process; this one stays small, since a child counts its parent's memory at first."""
    os.sync()
    began = time.monotonic()
    child = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return time.monotonic() - began, usage.ru_maxrss * 1024


def own(role: str, chosen: argparse.Namespace, shape: str, folder: Path | None, side: str = "") -> list[str]:
    """The command of a process of this file."""
    numbers = ["--shape", shape] if shape != "27b" else []
    place = [] if folder is None else ["--folder", str(folder)]
    command = [sys.executable, str(HERE), "--role", role, "--threads", str(chosen.threads), *numbers, *place]
    return [*command, *(["--side", side] if side else [])]


def told(role: str, chosen: argparse.Namespace, shape: str, folder: Path | None = None, side: str = "") -> Any:
    """What a process of this file prints, as JSON; a prediction is passed on."""
    done = subprocess.run(own(role, chosen, shape, folder, side), check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    if role == "predict":
        print(f"{shape} predicted: {answer}", flush=True)
    return answer


def environment(folder: Path) -> Path:
    """The Python of an environment with ``PACKAGES``, built where it is not there yet."""
    python, built = folder / "bin" / "python", folder / "packages.txt"
    wanted = "\n".join(PACKAGES) + "\n"
    if not built.is_file() or built.read_text(encoding="utf-8") != wanted:
        print(f"building {folder}: {', '.join(PACKAGES)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        # Nothing in it is for a repository, wherever the cache lies.
        (folder / ".gitignore").write_text("*\n", encoding="utf-8")
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        subprocess.run([str(python), *install], check=True)
        built.write_text(wanted, encoding="utf-8")
    return python


# ── the models ───────────────────────────────────────────────────────────────────────────────────


def layout_of(shape: str, directory: Path) -> Layout:
    """Where the tensors of a shape lie in files of ``SHARD`` bytes, in bf16; nothing need be there."""
    import torch

    from alignment.gemma import core
    from alignment.merging.layout import INDEX, PREFIX, Entry, Layout, Shard

    with torch.device("meta"):
        held = core.MODELS["gemma2"](config_of(shape)).state_dict()
    held.pop("lm_head.weight", None)
    files: list[list[str]] = [[]]
    size = 0
    for name in sorted(held):
        if files[-1] and size + 2 * held[name].numel() > SHARD:
            files.append([])
            size = 0
        files[-1].append(name)
        size += 2 * held[name].numel()
    shards = []
    for number, names in enumerate(files, 1):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            end = offset + 2 * held[name].numel()
            header[name] = {"dtype": "BF16", "shape": [*held[name].shape], "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        head = len(text).to_bytes(PREFIX, "little") + text
        path = directory / f"model-{number:05}-of-{len(files):05}.safetensors"
        entries = [
            Entry(name, "BF16", tuple(held[name].shape), path, len(head) + header[name]["data_offsets"][0])
            for name in names
        ]
        shards.append(Shard(path, head, len(head) + offset, tuple(entries)))
    return Layout(directory, tuple(shards), directory / INDEX)


def config_of(shape: str) -> Any:
    """Gemma 2 of 2B or 27B, with fewer layers and words."""
    from dataclasses import replace

    from alignment.gemma import core
    from alignment.gemma.presets import TokenIds, shape_named

    layers, vocabulary = SHAPES[shape]
    config = core.config(
        replace(shape_named("gemma2_27b" if shape == "27b" else "gemma2_2b"), layers=layers), vocabulary, TokenIds()
    )
    config.architectures = ["Gemma2ForCausalLM"]
    return config


def write(chosen: argparse.Namespace) -> None:
    """Two policies and their start: stretches of one pool of normal numbers, other ones for every tensor and model."""
    import torch

    layouts = [layout_of(chosen.shape, chosen.folder / name) for name in NAMES]
    needed = 6 * sum(shard.size for shard in layouts[0].shards)
    free = shutil.disk_usage(chosen.folder).free
    if needed > free:
        raise SystemExit(f"{chosen.folder}: {needed / 1e9:.0f} GB are needed and {free / 1e9:.0f} GB are free")
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(POOL, generator=generator)
    for layout in layouts:
        layout.directory.mkdir()
        config_of(chosen.shape).save_pretrained(layout.directory)
        names = {entry.name: shard.path.name for shard in layout.shards for entry in shard.entries}
        index = {"metadata": {"total_size": sum(2 * entry.count for entry in layout.entries.values())}}
        assert layout.index is not None
        layout.index.write_text(json.dumps(index | {"weight_map": names}))
    for shards in zip(*(layout.shards for layout in layouts), strict=True):
        files = [open(shard.path, "wb") for shard in shards]  # noqa: SIM115
        for file, shard in zip(files, shards, strict=True):
            file.write(shard.head)
        for entry in shards[0].entries:
            for begin in range(0, entry.count, POOL // 4):
                count = min(POOL // 4, entry.count - begin)
                places = torch.randint(0, POOL - count, (3,), generator=generator).tolist()
                *moved, start = (pool[place : place + count] for place in places)
                for file, values in zip(files, (*(start + MOVED * one for one in moved), start), strict=True):
                    file.write((values * 0.02).bfloat16().view(torch.int16).numpy().data)
        for file in files:
            file.close()
    print(json.dumps({"bytes": needed // 6}))


# ── sides of ours ────────────────────────────────────────────────────────────────────────────────


def ours(chosen: argparse.Namespace) -> None:
    """The merge as stage=merge does it, one angle a tensor as mergekit has."""
    from alignment.merging import checkpoint, layout, plan

    *models, start = (layout.read(chosen.folder / name) for name in NAMES)
    out = chosen.folder / "ours"
    out.mkdir()
    merge = plan.slerp(models, None, start, "tensor")
    checkpoint.merge(merge, out, memory=MEMORY, threads=chosen.threads, on_progress=lambda done: None)


def plain(chosen: argparse.Namespace) -> None:
    """Read three, write one, as durably as ours: the same slices and threads, and nothing computed."""
    from concurrent.futures import ThreadPoolExecutor

    step = 1 << 21
    folders = [chosen.folder / name for name in NAMES]
    out = chosen.folder / "plain"
    out.mkdir()

    def copied(name: str, begin: int) -> None:
        inputs = [os.open(folder / name, os.O_RDONLY) for folder in folders]
        target = os.open(out / name, os.O_RDWR | os.O_CREAT)
        rooms = [bytearray(step) for _ in inputs]
        size = os.fstat(inputs[0]).st_size
        for place in range(begin, size, step * chosen.threads):
            for file, room in zip(inputs, rooms, strict=True):
                count = os.preadv(file, [room], place)
            os.pwrite(target, memoryview(rooms[0])[:count], place)
        for file in (*inputs, target):
            os.close(file)

    with ThreadPoolExecutor(chosen.threads) as pool:
        for name in sorted(path.name for path in folders[0].glob("*.safetensors")):
            begins = range(0, step * chosen.threads, step)
            list(pool.map(copied, [name] * chosen.threads, begins))
            with open(out / name, "rb") as file:
                os.fsync(file.fileno())


def check(chosen: argparse.Namespace) -> None:
    """The largest distance from float64, in steps of bf16 at the start or there, and the share that is its rounding."""
    import torch
    from safetensors import safe_open

    from alignment.merging import layout

    *models, start = (layout.read(chosen.folder / name) for name in NAMES)
    out = layout.read(chosen.folder / chosen.side)
    worst, same, counted = 0.0, 0, 0
    generator = torch.Generator().manual_seed(1)
    names = sorted(out.entries)
    sample = {"model.norm.weight"} | {
        names[int(torch.randint(len(names), (1,), generator=generator))] for _ in range(5)
    }

    def read(held: Layout, name: str) -> Tensor:
        with safe_open(held.entries[name].path, framework="pt") as tensors:
            return tensors.get_tensor(name).flatten()

    for name in sorted(sample - {"model.embed_tokens.weight"}):
        begun = read(start, name).double()
        first, second = (read(model, name).double() - begun for model in models)
        angle = math.acos(float(first @ second / (first.norm() * second.norm())))
        wanted = begun + (first + second) * (math.sin(angle / 2) / math.sin(angle))
        found = read(out, name)
        steps = torch.exp2(torch.floor(torch.log2(torch.maximum(wanted.abs(), begun.abs())))) * 2.0**-7
        worst = max(worst, float(((found.double() - wanted).abs() / steps).max()))
        same += int((found == wanted.bfloat16()).sum())
        counted += found.numel()
    told = {"steps": round(worst, 4), "correctly rounded": f"{same / counted:.4%}", "numbers": counted}
    print(json.dumps(told))


def predict(chosen: argparse.Namespace) -> None:
    """What a merge will take, by headers alone."""
    from alignment.merging import plan, stream

    shape = "27b" if "--shape" not in sys.argv else chosen.shape
    *models, start = (layout_of(shape, Path(name)) for name in NAMES)
    merge = plan.slerp(models, None, start, "layer")
    forecast = plan.forecast(merge, chosen.threads)
    room = stream.room(merge, MEMORY, chosen.threads)
    buffers = room.threads * stream.held(merge, room.slice)
    told = {
        "read": f"{forecast.read / 1e9:.2f} GB",
        "disk": f"{forecast.written / 1e9:.2f} GB",
        "buffers": f"{buffers / 2**20:.0f} MiB",
        "seconds": round(forecast.seconds, 1),
    }
    print(json.dumps(told))


ROLES = {"write": write, "ours": ours, "plain": plain, "check": check, "predict": predict}


if __name__ == "__main__":
    main()
