"""Learning from a teacher's whole distribution: ours, plain PyTorch and TRL's kernel, on the same tensors, in one run.

    python benchmarks/distillation.py [--tokens 2048] [--width 2304] [--pieces 64000] [--dtype float32] [--repeats 3]

One step of the head: hidden states and output weights of a student and of a teacher in, loss and both gradients of the
student out, with Gemma 2's final soft cap. The sides take turns, each in a process of its own:

=========== =========================================================================================================
ours        ``chunked_imitation`` with the teacher's head in memory
top-k       the same with 64 tokens' log-probabilities and what the others share, as ``stage=teach`` stores them
draws       the same with 16 tokens drawn from the others besides, which forward KL alone looks at
unchunked   the logits of both, in whole, ``log_softmax`` in fp32 and ``kl_div``
trl         ``trl.kernels.chunked_divergence.ChunkedDivergenceFunction``, of the version installed here
=========== =========================================================================================================

What TRL's DistillationTrainer does with both models' hidden states is exactly that function over all positions (on a
CPU it does not leave any out), its sum, and a division (``_chunked_divergence_loss``): so the function is measured.

Seconds are of forward and backward; memory is the process's peak less what it held before (inputs and weights) and
less the two gradients. Ratios are to the side named, and their median is over the turns. Agreement is with float64, in
fp32, of ``--checked`` tokens: ‖g − g64‖ / ‖g64‖ for the hidden states and for the weight.

TRL computes every tile's logits again in its backward pass: 6 products (with JSD 8) where the others have 4. So it was
predicted to take 1.5 times their time, and more for bf16, which it multiplies in fp32 on a CPU. Processor time of 1,024
tokens, 64,000 pieces, one thread: ours 9.2 s, unchunked 10.8, TRL 21.0 in fp32; 4.6, 5.3 and 23 in bf16. Its kernel
for log-probabilities beside ``objectives.tokens.gather_logprobs`` (2,048 tokens, both directions): 19 s against 20 in
fp32 and 16 against 11 in bf16, with 1.8 and 1.9 times the memory. Hence neither stands behind the objectives.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

HERE = Path(__file__).resolve()
SIDES = ("ours", "top-k", "draws", "unchunked", "trl")
STORED = ("top-k", "draws")
BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.5}
SOFTCAP, LIKELIEST, DRAWS = 30.0, 64, 16
MIB = 2**20
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 * MIB), "MALLOC_TRIM_THRESHOLD_": str(64 * MIB)}
"""What is freed goes back to the system from 32 MiB on, for every side; glibc would move this threshold as it goes."""


def main() -> None:
    chosen = arguments()
    if chosen.role:
        print(json.dumps(ROLES[chosen.role](chosen)))
        return
    shape = f"{chosen.tokens:,} tokens, width {chosen.width:,}, {chosen.pieces:,} pieces, {chosen.dtype}"
    print(f"{shape}, {chosen.divergence}, {chosen.threads} threads, {chosen.repeats} turns", flush=True)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in chosen.sides}
    for _ in range(chosen.repeats):
        for side in chosen.sides:
            found[side].append(told("measure", side, chosen))
            last = found[side][-1]
            print(f"  {side:10} {last['seconds']:8.2f} s {last['bytes'] / MIB:10,.0f} MiB", flush=True)
    for side in chosen.sides:
        for other in [other for other in ("unchunked", "trl") if side in ("ours", *STORED) and other in found]:
            ratios = {
                what: [mine[what] / theirs[what] for mine, theirs in zip(found[side], found[other], strict=True)]
                for what in ("seconds", "bytes")
            }
            seconds, memory = (statistics.median(ratios[what]) for what in ("seconds", "bytes"))
            spread = f"{min(ratios['seconds']):.2f} to {max(ratios['seconds']):.2f}"
            print(f"{side} / {other}: time {seconds:.2f} ({spread}), memory {memory:.2f}", flush=True)
    if chosen.checked:
        print(f"against float64, fp32, {min(chosen.checked, chosen.tokens)} tokens:", flush=True)
        for side in chosen.sides:
            print(f"  {side:10} {told('agree', side, chosen)}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--pieces", type=int, default=64_000)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--divergence", choices=[*BETAS], default="forward_kl")
    parser.add_argument("--chunk", type=int, help="tokens of a chunk of ours, where not its own choice")
    parser.add_argument("--checked", type=int, default=64, help="tokens whose gradients are compared with float64")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--role", choices=[*ROLES], help=argparse.SUPPRESS)
    return parser.parse_args()


def told(role: str, side: str, chosen: argparse.Namespace) -> Any:
    """What a process of this file finds for one side."""
    numbers = ("tokens", "width", "pieces", "dtype", "divergence", "threads", "checked")
    options = [part for name in numbers for part in (f"--{name}", str(getattr(chosen, name)))]
    options += ["--chunk", str(chosen.chunk)] if chosen.chunk else []
    own = {"OMP_NUM_THREADS": str(chosen.threads), "PYTHONPATH": str(HERE.parents[1])}
    environment = {**os.environ, **ALLOCATOR, **own}
    command = [sys.executable, str(HERE), "--role", role, "--sides", side, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:] or f"{side} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


# ── the sides ────────────────────────────────────────────────────────────────────────────────────


class Material(NamedTuple):
    """N tokens, D width, V pieces, K likeliest, O = K + 1, M draws. ``stored`` are the fields of ``Likeliest``, for the
    sides that read them."""

    hidden_ND: Tensor
    weight_VD: Tensor
    labels_N: Tensor
    teacher_ND: Tensor
    teacher_VD: Tensor
    stored: tuple[Tensor, ...] | None


def material(tokens: int, dtype: Any, chosen: argparse.Namespace) -> Material:
    """Logits of a few units, on which student and teacher differ."""
    import torch

    torch.manual_seed(0)
    hidden_ND, teacher_ND = (torch.randn(tokens, chosen.width, dtype=dtype) for _ in range(2))
    weights = [torch.empty(chosen.pieces, chosen.width, dtype=dtype).normal_(0, 3 / chosen.width**0.5) for _ in "st"]
    labels_N = torch.randint(0, chosen.pieces, (tokens,))
    told = stored(tokens, chosen.pieces, chosen.sides[0] == "draws") if chosen.sides[0] in STORED else None
    return Material(hidden_ND.requires_grad_(), weights[0].requires_grad_(), labels_N, teacher_ND, weights[1], told)


def stored(tokens: int, pieces: int, draws: bool) -> tuple[Tensor, ...]:
    """``ids_NK``, ``logprobs_NK`` and ``tail_N`` of no teacher in particular; then ``drawn_NM`` and ``entropy_N``."""
    import torch

    apart = pieces // LIKELIEST
    ids_NK = (torch.randint(0, pieces, (tokens, 1)) + torch.arange(LIKELIEST) * apart) % pieces
    logprobs_NO = (3 * torch.randn(tokens, LIKELIEST + 1)).log_softmax(-1)
    likeliest = ids_NK, logprobs_NO[:, :-1], logprobs_NO[:, -1]
    if not draws:
        return likeliest
    # Between two of the likeliest there are others alone.
    drawn_NM = (ids_NK[:, :DRAWS] + torch.randint(1, apart, (tokens, DRAWS))) % pieces
    return *likeliest, drawn_NM, 5 * torch.rand(tokens)


def ours(given: Material, chosen: argparse.Namespace) -> Tensor:
    from alignment.objectives.imitation import Likeliest, TeacherHead, chunked_imitation

    teacher = Likeliest(*given.stored) if given.stored else TeacherHead(given.teacher_ND, given.teacher_VD, SOFTCAP)
    chunk = {"chunk_tokens": chosen.chunk} if chosen.chunk else {}
    return chunked_imitation(
        given.hidden_ND,
        given.weight_VD,
        given.labels_N,
        teacher,
        divergence=chosen.divergence,
        beta=BETAS[chosen.divergence],
        temperature=1.0,
        nll_weight=0.0,
        softcap=SOFTCAP,
        **chunk,
    ).loss


def unchunked(given: Material, chosen: argparse.Namespace) -> Tensor:
    import torch
    from torch.nn.functional import kl_div

    def logprobs_of(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        return torch.log_softmax(SOFTCAP * torch.tanh(hidden_ND @ weight_VD.T / SOFTCAP), -1, dtype=torch.float32)

    with torch.no_grad():
        teacher_NV = logprobs_of(given.teacher_ND, given.teacher_VD)
    student_NV, beta = logprobs_of(given.hidden_ND, given.weight_VD), BETAS[chosen.divergence]
    if chosen.divergence == "forward_kl":
        return kl_div(student_NV, teacher_NV, reduction="sum", log_target=True)
    if chosen.divergence == "reverse_kl":
        return kl_div(teacher_NV, student_NV, reduction="sum", log_target=True)
    mixture_NV = torch.logsumexp(torch.stack([teacher_NV, student_NV]), 0) - torch.log(torch.tensor(2.0))
    of_teacher = kl_div(mixture_NV, teacher_NV, reduction="sum", log_target=True)
    of_student = kl_div(mixture_NV, student_NV, reduction="sum", log_target=True)
    return beta * of_teacher + (1 - beta) * of_student


def trl(given: Material, chosen: argparse.Namespace) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    student, teacher = (given.hidden_ND, given.weight_VD, None), (given.teacher_ND, given.teacher_VD, None)
    caps = (1.0, SOFTCAP, 1.0, SOFTCAP)
    value_N, _ = ChunkedDivergenceFunction.apply(*student, *teacher, BETAS[chosen.divergence], 1.0, *caps)
    return value_N.sum()


LOSSES: dict[str, Callable[[Material, argparse.Namespace], Tensor]] = {
    "ours": ours,
    "top-k": ours,
    "draws": ours,
    "unchunked": unchunked,
    "trl": trl,
}


# ── what a process of its own finds ──────────────────────────────────────────────────────────────


def measure(chosen: argparse.Namespace) -> dict[str, float]:
    """``seconds`` of one step, and the ``bytes`` it held beyond inputs, weights and gradients."""
    import torch

    side, dtype = chosen.sides[0], getattr(torch, chosen.dtype)
    small = argparse.Namespace(**{**vars(chosen), "width": 64, "pieces": 1000})
    LOSSES[side](material(64, dtype, small), small).backward()
    given = material(chosen.tokens, dtype, chosen)
    # What was freed before goes back to the system, and the high-water mark begins anew.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    held, began = memory("VmRSS"), time.perf_counter()
    (LOSSES[side](given, chosen) / chosen.tokens).backward()
    seconds = time.perf_counter() - began
    gradients = sum(one.numel() * one.element_size() for one in given[:2])
    return {"seconds": seconds, "bytes": memory("VmHWM") - held - gradients}


def memory(what: str) -> int:
    """Bytes of this process: what it holds (VmRSS), or the most it has held since that was reset (VmHWM)."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def agree(chosen: argparse.Namespace) -> str:
    """How far the gradients of one side are from float64's, for fp32 inputs; its logits are made a part at a time."""
    import torch

    side, tokens = chosen.sides[0], min(chosen.checked, chosen.tokens)
    given = material(tokens, torch.float32, chosen)
    LOSSES[side](given, chosen).backward()
    assert given.hidden_ND.grad is not None
    assert given.weight_VD.grad is not None

    parts = [slice(begin, begin + 8192) for begin in range(0, chosen.pieces, 8192)]

    def logits_of(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        return torch.cat([hidden_ND.detach().double() @ weight_VD.detach()[part].double().T for part in parts], -1)

    student_NV = logits_of(given.hidden_ND, given.weight_VD).requires_grad_()
    teacher_NV = logits_of(given.teacher_ND, given.teacher_VD)
    (gradient_NV,) = torch.autograd.grad(exact(chosen.divergence, student_NV, teacher_NV, given.stored), student_NV)
    hidden_ND, apart, whole = torch.zeros_like(given.hidden_ND, dtype=torch.float64), 0.0, 0.0
    for part in parts:
        hidden_ND += gradient_NV[:, part] @ given.weight_VD.detach()[part].double()
        weight_VD = gradient_NV[:, part].T @ given.hidden_ND.detach().double()
        apart += float((given.weight_VD.grad[part] - weight_VD).square().sum())
        whole += float(weight_VD.square().sum())
    of_hidden = float((given.hidden_ND.grad - hidden_ND).norm() / hidden_ND.norm())
    return f"hidden {of_hidden:.1e}, weight {(apart / whole) ** 0.5:.1e}"


def exact(divergence: str, student: Tensor, teacher: Tensor, told: tuple[Tensor, ...] | None) -> Tensor:
    """The divergence of logits before the cap, by its definition; of what is stored, where a side reads that."""
    import torch

    q, p = ((SOFTCAP * torch.tanh(logits / SOFTCAP)).softmax(-1) for logits in (student, teacher))
    within = torch.zeros(())
    if told:
        ids, whole = told[0].long(), q
        others = 1 - q.gather(-1, ids).sum(-1, keepdim=True)
        q = torch.cat([q.gather(-1, ids), others], -1)
        p = torch.cat([told[1], told[2][:, None]], -1).double().softmax(-1)
        if len(told) == 5:
            crossed = -(whole.gather(-1, told[3]) / others).log().mean(-1)
            within = (p[:, -1] * (crossed - told[4])).sum()
    m, beta = 0.5 * (p + q), BETAS[divergence]
    if divergence == "forward_kl":
        return (p * (p / q).log()).sum() + within
    if divergence == "reverse_kl":
        return (q * (q / p).log()).sum()
    return (beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum()


ROLES: dict[str, Callable[[argparse.Namespace], Any]] = {"measure": measure, "agree": agree}


if __name__ == "__main__":
    main()
