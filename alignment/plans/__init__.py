"""Plans: Python functions that lay out whole pipelines. ``conf/pipeline/*.yaml`` chooses one and gives its numbers.

A plan is a module of this folder with ``Settings`` and ``steps(settings) -> list[Step]``.
"""

PLANS: dict[str, str] = {
    "mini": "the miniature, from nothing to a merged policy, in minutes",
    "full": "the same with a teacher, Ghost Attention, pre-prompts, two iterations of WARP, and a release",
    "reward_effects": "margins, mixtures and the safety loss of reward models, over several seeds",
    "reward_scaling": "reward models of several sizes on several amounts of comparisons",
    "reward_rounds": "reward models trained through round i on the comparisons of round j",
    "llama2": "versions by rejection sampling with a pool, Ghost Attention on the way, PPO at the end",
    "gemma2": "a teacher's answers, a larger reward model, REINFORCE, averages over runs and phases",
    "rl_effects": "rejection sampling, PPO, β, moving anchors and DPO beside each other, over several seeds",
    "alignment_tax": "a base model and what became of it beside each other, by capability: what alignment costs",
    "ghost_effects": "Ghost Attention beside none on the same dialogues: recall by turn, over several seeds",
    "hedging": "a teacher's data with and without attribution, hedging and refusals: fewer hallucinations",
    "distillation": "small models from scratch and distilled: perplexity by size over several seeds, on several worlds",
    "on_policy": "distillation on the student's own answers: shares of them beside each other, over several seeds",
    "warm": "reward models with averaged weights beside their members and their ensemble",
    "warp": "runs under moving anchors, merged by slerp and drawn back, iteration after iteration, with their fronts",
    "warp_effects": "WARP beside fixed anchors, slerp beside linear, iteration beside iteration, over several seeds",
    "safety_scaling": "growing shares of safety data beside the same helpfulness data, over several seeds",
    "memorisation": "what models of several sizes know by heart of text that stands there once, 10 and 100 times",
    "observations": "Llama 2's: answers over temperature from SFT to V5, dated questions, a tool that is described",
}
