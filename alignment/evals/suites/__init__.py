"""Suites: what one model is examined on, and how the answers are measured.

A suite is a mapping in YAML (conf/suite, or a file of the user's): its ``kind`` names a module here, the rest are the
settings of that kind. A kind's module has

* ``Settings``, a subclass of :class:`alignment.evals.suites.suite.Suite`, importable without torch;
* ``examine(settings, inputs, subject) -> Examined``, where ``inputs`` holds an artifact for every reference in the
  settings, by its dotted key, and ``subject`` is the model (``subject.py``);
* where it reads local files, ``sources(settings) -> list[Path]``;
* where a figure of its own says more than the usual ones, ``figure(kept) -> Figure`` by model;
* where there is more to see than examples, ``figures(settings, inputs, subject)``, which writes it to ``subject.out``.

It refuses what cannot be measured before the model is opened.
"""

KINDS: dict[str, str] = {
    "rewards": "answers by reward models, classifiers or the miniature's truth: means, spread, and the low tail",
    "checkable": "answers that a program finds right or wrong: GSM8K, IFEval, exact words, the miniature's skills",
}
"""By module: what is measured."""
