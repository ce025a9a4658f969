"""TRL's last PPOTrainer on a job of ``benchmarks/rl.py``; runs in the environment that the benchmark builds for it.

python benchmarks/peers/ppo.py <job.json> <result.json>
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
from trl import PPOConfig, PPOTrainer
from trl.trainer import ppo_trainer


class Watching(TrainerCallback):
    """Notes the ends of updates."""

    def __init__(self, laps: Laps) -> None:
        self.laps = laps

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """An update ends."""
        self.laps.end()


def main() -> None:
    job, laps = Job.read(sys.argv[1]), Laps()
    torch.set_num_threads(job.threads)
    _count_tokens(job, laps)
    with tempfile.TemporaryDirectory() as out:
        trainer = _trainer(job, laps, out)
        trainer.train()
    laps.tell(job, sys.argv[2], ["trl", "transformers", "torch"])


def _trainer(job: Job, laps: Laps, out: str) -> PPOTrainer:
    arguments = PPOConfig(
        output_dir=out,
        total_episodes=(job.updates + 1) * job.batch,
        per_device_train_batch_size=job.batch,
        local_rollout_forward_batch_size=job.batch,
        gradient_accumulation_steps=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        response_length=job.answer_tokens,
        stop_token_id=job.stop_id,
        temperature=1.0,
        kl_coef=job.beta,
        learning_rate=job.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta2=0.95,
        adam_epsilon=1e-5,
        weight_decay=0.1,
        bf16=job.bf16,
        use_cpu=True,
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        seed=job.seed,
    )
    tokenizer = AutoTokenizer.from_pretrained(job.policy)
    trainer = PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=_policy(job),
        ref_model=_policy(job),
        reward_model=_reward(job),
        value_model=_reward(job),
        train_dataset=Dataset.from_dict({"input_ids": job.prompts}),
        eval_dataset=Dataset.from_dict({"input_ids": job.prompts[: job.batch]}),
        callbacks=[Watching(laps)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _policy(job: Job) -> Any:
    return AutoModelForCausalLM.from_pretrained(job.policy, attn_implementation="eager", dtype=torch.float32)


def _reward(job: Job) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        job.reward, attn_implementation="eager", dtype=torch.float32
    )


def _count_tokens(job: Job, laps: Laps) -> None:
    """Note how many tokens are drawn for an answer: the trainer does not tell. Behind a stop id it draws padding."""
    generate = ppo_trainer.batch_generation

    def counted(model: Any, queries: Any, rows: int, pad_token_id: int, settings: Any) -> Any:
        found, logits = generate(model, queries, rows, pad_token_id, settings)
        drawn = found[:, queries.shape[1] :]
        laps.tokens.append(
            drawn.shape[1] if job.stop_id is None else (drawn != pad_token_id).sum(1).float().mean().item()
        )
        return found, logits

    ppo_trainer.batch_generation = counted


if __name__ == "__main__":
    main()
