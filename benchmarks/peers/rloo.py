"""TRL's RLOOTrainer on a job of ``benchmarks/rl.py``, with its reward model given to it as a model.

python benchmarks/peers/rloo.py <job.json> <result.json>
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from job import Job, Laps
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
)
from trl import RLOOConfig, RLOOTrainer


class Watching(TrainerCallback):
    """Notes the ends of updates, and the lengths that the trainer logs."""

    def __init__(self, laps: Laps) -> None:
        self.laps = laps

    def on_log(self, *_: Any, **told: Any) -> None:
        """The trainer logs after every update, and once at the end without lengths."""
        if "completions/mean_length" in told["logs"]:
            self.laps.tokens.append(told["logs"]["completions/mean_length"])

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """An update ends."""
        self.laps.end()


def main() -> None:
    job, laps = Job.read(sys.argv[1]), Laps()
    torch.set_num_threads(job.threads)
    with tempfile.TemporaryDirectory() as out:
        trainer = _trainer(job, laps, out)
        trainer.train()
    laps.tell(job, sys.argv[2], ["trl", "transformers", "torch"])


def _trainer(job: Job, laps: Laps, out: str) -> RLOOTrainer:
    # The trainer always has stop ids, those of the policy's generation config: they are kept from being drawn.
    exact = {} if job.stop_id is not None else {"min_new_tokens": job.answer_tokens}
    arguments = RLOOConfig(
        output_dir=out,
        max_steps=job.updates + 1,
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=1,
        num_generations=job.samples,
        max_completion_length=job.answer_tokens,
        generation_kwargs=exact,
        temperature=1.0,
        beta=job.beta,
        learning_rate=job.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        adam_epsilon=1e-5,
        weight_decay=0.1,
        max_grad_norm=1.0,
        bf16=job.bf16,
        use_cpu=True,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        seed=job.seed,
    )
    trainer = RLOOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.policy, attn_implementation="eager", dtype=torch.float32),
        reward_funcs=AutoModelForSequenceClassification.from_pretrained(
            job.reward, attn_implementation="eager", dtype=torch.float32
        ),
        args=arguments,
        train_dataset=Dataset.from_list(
            [{"prompt": [{"role": "user", "content": question}]} for question in job.questions]
        ),
        processing_class=AutoTokenizer.from_pretrained(job.policy),
        reward_processing_classes=AutoTokenizer.from_pretrained(job.reward),
        callbacks=[Watching(laps)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


if __name__ == "__main__":
    main()
