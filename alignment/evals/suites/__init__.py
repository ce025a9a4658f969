"""Suites: what one model is examined on, and how the answers are measured.

A suite is a mapping in YAML (conf/suite, or a file of the user's): its ``kind`` names a module here, the rest are the
settings of that kind. A kind's module has

* ``Settings``, a subclass of :class:`alignment.evals.suites.suite.Suite`, importable without torch;
* ``examine(settings, inputs, subject) -> Examined``, where ``inputs`` holds an artifact for every reference in the
  settings, by its dotted key, and ``subject`` is the model (``subject.py``);
* where it reads local files, ``sources(settings) -> list[Path]``;
* where there is more to see than examples, ``figures(settings, inputs, subject)``, which writes it to ``subject.out``.

It refuses what cannot be measured before the model is opened.
"""

KINDS: dict[str, str] = {
    "rewards": "answers by reward models, classifiers or the miniature's truth: means, spread, and the low tail",
    "checkable": "answers that a program finds right or wrong: GSM8K, IFEval, exact words, the miniature's skills",
    "safety": "answers to adversarial prompts: violations, ratings from 1 to 5, by category, attack and length",
    "refusals": "full compliance, partial and full refusal: of safe prompts that sound unsafe, and of unsafe ones",
    "memorisation": "documents of the training data continued greedily: known by heart exactly, or but for a tenth",
    "diversity": "several answers to a prompt at several temperatures: self-BLEU, distinct n-grams, length",
    "divergence": "KL to a reference on the model's own answers, and perplexity on held-out rows",
    "hallucination": "facts told rightly, hedging where nothing can be known and where it can, given texts followed",
    "truthful": "answers that are true, informative and both, by two judges who know the right ones (TruthfulQA)",
    "recall": "an instruction of the first turn, obeyed or not by turn, as a program sees (Ghost Attention)",
    "multi_turn": "dialogues turn by turn, every answer rated by a judge, a dialogue by its lowest rating",
    "choices": "multiple-choice questions by likelihood, in several formats: accuracy, its mean and spread over them",
    "bbq": "questions about two groups of people: accuracy and bias, where the context tells and where it does not",
    "minimal_pairs": "two sentences that differ in whom they speak of: which is the likelier",
    "lm_eval": "tasks of lm-evaluation-harness on this model, by name or from a folder of one's own",
}
"""By module: what is measured."""
